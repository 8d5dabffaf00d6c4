"""Mask-ControlNet's table and the renders that its tiny network learns from: cases, scores, distances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cache import image_of
from benchmarks.tables import mask_controlnet as table
from benchmarks.tables import mask_controlnet_cases
from benchmarks.tables.mask_controlnet_scores import SAME, Score, compared, frechet, perceptual
from demo import judge, scenes, subjects, train_mask_controlnet
from demo.subjects import SUBJECTS
from demo.train_mask_controlnet import Pairs


@pytest.fixture(scope="module")
def eye() -> judge.Judge:
    return judge.load()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs(300, 0)


def test_what_is_trained_with_shows_no_subject_and_no_held_out_ground(pairs: Pairs) -> None:
    shown = [(thing.shape, thing.paint) for pair in pairs.pairs for thing in pair.reference.things]
    assert not {(one.shape, one.paint) for one in SUBJECTS} & set(shown)
    painted = [(pair.painted.things[0], pair.painted.ground) for pair in pairs.pairs]
    assert not any(scenes.held_out(thing.shape, thing.paint.colour, ground) for thing, ground in painted)
    assert {len(pair.reference.things) for pair in pairs.pairs} == {1, 2, 3}


def test_a_pair_paints_the_marked_object_alone_in_its_place_on_another_ground(pairs: Pairs) -> None:
    for number in range(40):
        pair = pairs.pairs[number]
        example = pairs[number]
        assert pair.painted.things == (pair.reference.things[pair.chosen],)
        assert pair.painted.ground != pair.reference.ground
        assert example.caption == pairs.captions[number]
        assert example.caption.endswith(f" on {pair.painted.ground}")
        assert example.marks.shape == (1, 128, 128)
        inside = example.marks[0] > 0.99  # the same pixels in both, but for the grain of the picture
        assert example.reference is not None
        assert (example.image[inside] - example.reference[inside]).abs().mean() < 0.02
    same = Pairs(300, 0)
    other = Pairs(300, 1)
    assert torch.equal(same[3].image, pairs[3].image)
    assert same.fingerprint() == pairs.fingerprint() != other.fingerprint()


def test_objects_do_not_hide_each_other(pairs: Pairs) -> None:
    for pair in pairs.pairs[:80]:
        together = scenes.render(pair.reference).masks
        for number, thing in enumerate(pair.reference.things):
            alone = scenes.render(scenes.Scene((thing,), pair.reference.ground, 0, pair.reference.photo)).masks[0]
            assert together[number].sum() > 0.9 * alone.sum()


def test_the_narrow_encoder_gives_the_checkpoint_s_latents() -> None:
    from demo.painter import Painter

    picture = torch.rand(1, 64, 64, 3)
    wanted = Painter().vae.encode(picture)
    found = train_mask_controlnet.narrow_encoder()(picture.movedim(-1, 1))
    torch.testing.assert_close(found, wanted.float(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("subject", SUBJECTS[:4], ids=lambda one: one.name)
def test_cases_ask_for_other_grounds_and_never_say_a_colour(subject: subjects.Subject) -> None:
    cases = mask_controlnet_cases.cases_of(subject)
    assert cases == mask_controlnet_cases.cases_of(subject)
    assert len({case.scene.seed for case in cases}) == mask_controlnet_cases.REFERENCES
    for case in cases:
        assert case.ground != case.scene.ground
        assert case.ground in subject.grounds()
        assert not set(case.prompt.split()) & set(scenes.COLOURS)
    photographs = [case.scene.photo is not None for case in cases]
    assert 0 < sum(photographs) < len(photographs)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.name)
def test_only_the_mask_tells_the_cases_of_a_pair_apart(subject: subjects.Subject) -> None:
    pairs = mask_controlnet_cases.pairs_of(subject)
    assert len(pairs) == 2 * mask_controlnet_cases.REFERENCES
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert one.scene is other.scene
        assert one.prompt == other.prompt
        assert {one.number, other.number} == {0, 1}
        assert not set(one.subject.colours) & set(other.subject.colours)


def score(case: mask_controlnet_cases.Case, shown: scenes.Scene, eye: judge.Judge, method: table.Method = table.MASK) -> Score:
    bench = object.__new__(table.Bench)
    bench.eye = eye
    return bench.judged([case], image_of(scenes.render(shown).image)[None], method)[0]


def test_the_judge_sees_what_is_asked_for_and_what_is_not(eye: judge.Judge) -> None:
    case = mask_controlnet_cases.pairs_of(SUBJECTS[0])[0]
    right = score(case, mask_controlnet_cases.real(case), eye)
    assert right.kept
    assert right.chosen
    assert right.ground or case.ground == case.scene.ground
    assert right.psnr > 40
    assert right.ssim > 0.99
    assert right.perceptual < 1e-6
    both = score(case, case.scene, eye)
    assert both.beside
    assert not both.chosen
    assert case.scene.ground == case.ground or both.returned
    other = mask_controlnet_cases.Case(case.subject, case.scene, 1 - case.number, case.ground)
    assert not score(case, mask_controlnet_cases.real(other), eye).chosen
    marked = case.scene.things[case.number]
    away = case.scene.things[1 - case.number]
    painted_over = score(case, scenes.Scene((replace(marked, paint=away.paint),), case.ground, 5), eye)
    assert painted_over.overlap > SAME
    assert not painted_over.chosen
    nothing = score(case, scenes.Scene((), case.ground, 5), eye)
    assert (nothing.kept, nothing.chosen, nothing.beside) == (False, False, False)
    assert nothing.overlap == 0
    assert nothing.fidelity < right.fidelity


def test_a_distance_to_itself_is_nothing(eye: judge.Judge) -> None:
    rng = np.random.default_rng(0)
    drawn = torch.stack([image_of(scenes.render(scenes.random_scene(rng)).image) for _ in range(24)])
    worse = (drawn + 0.2 * torch.rand(drawn.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert perceptual(eye, drawn, drawn).abs().max() < 1e-6
    assert perceptual(eye, drawn, worse).min() > 1e-3
    assert frechet(eye, drawn, drawn) == pytest.approx(0, abs=1e-2)
    assert frechet(eye, drawn, worse) > 10 * abs(frechet(eye, drawn, drawn))


@pytest.mark.parametrize(("fidelity", "returned", "met"), [(0.9, 0.1, True), (0.505, 0.5, False)])
def test_the_bar_is_met_where_the_intervals_do_not_touch(fidelity: float, returned: float, met: bool) -> None:
    rng = np.random.default_rng(0)

    def scores(middle: float, share: float) -> list[Score]:
        return [
            Score(0.9, True, True, True, middle + rng.uniform(-0.1, 0.1), True, rng.random() < share, False, 20.0, 0.9, 0.1)
            for _ in range(200)
        ]

    figures = compared("one against another", scores(fidelity, returned), scores(0.5, 0.5))
    assert all(figure.name.startswith("one against another: ") for figure in figures)
    found = {figure.name.rpartition(": ")[2]: figure for figure in figures}
    assert found["object fidelity"].value == pytest.approx(fidelity - 0.5, abs=0.03)
    assert found["object fidelity"].met is (fidelity - 0.5 > 0.1)
    assert found["the reference's ground comes back"].met is met
    assert not found["the object is distorted or missing"].met


def test_a_file_that_is_not_shipped_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    files = {"mask": train_mask_controlnet.FILE, **dict.fromkeys(table.TRAINED, train_mask_controlnet.FILE)}
    for kind, option in table.TRAINED.items():
        with pytest.raises(SystemExit, match=f"train_mask_controlnet --threads 1 {option}`"):
            table.Bench(table.Size(), {**files, kind: tmp_path / "nothing.safetensors"})


def test_networks_of_other_pairs_are_held_against_each_other_without_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"mask": 0.9, "grounds": 0.8, "none": 0.6}

    class Told:
        size = table.Size(subjects=1)

        def scores(self, cases: tuple[mask_controlnet_cases.Case, ...], method: table.Method, seed: int) -> list[Score]:
            fidelity = kept.get(method.kind, 0.3)
            return [Score(0.9, True, True, True, fidelity, True, False, False, 20.0, 0.9, 0.1) for _ in cases]

    monkeypatch.setattr(table, "reconstruction", lambda bench, chosen: [])
    bench: Any = Told()
    figures = {figure.name: figure for figure in table.tables(bench)}
    for one, other, apart in ((table.ON_GROUNDS, table.BY_ITSELF, 0.2), (table.MASK, table.ON_GROUNDS, 0.1)):
        found = figures[f"{one.name}, against {other.name}: object fidelity"]
        assert found.value == pytest.approx(apart)
        assert (found.bar, found.met) == ("", None)
    assert figures["with the mask prompt against without: object fidelity"].met
    assert {f"{method.name}: object fidelity" for method in (table.BY_ITSELF, table.ON_GROUNDS)} <= figures.keys()
