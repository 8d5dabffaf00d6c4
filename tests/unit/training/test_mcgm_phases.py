"""The two phases of MCGM's training: what learns, what is kept, how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.training.engine import loop
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm.loss import Loss
from maskprompt.training.mcgm.options import Options
from torch import Tensor

from demo.painter import Painter

from ...support.learners import METHODS
from ...support.mcgm_training import (
    ONE_AND_TWO,
    Trained,
    Weights,
    alike,
    changed,
    examples,
    options,
    quick_previews,
    roughened,
    small,
    subjects_of,
    tiny,
    train,
    trained,
    values,
    whole_training,
)

__all__ = ["quick_previews", "small", "tiny", "whole_training"]  # fixtures


@pytest.mark.parametrize("method", METHODS)
def test_each_phase_changes_all_that_it_trains_and_nothing_else(small: Any, tiny: Painter, method: Method) -> None:
    """The mask encoder too: every weight of a cell that some mask shows, and each subject's vector."""
    given = options(method=method, steps=2, weight_steps=0)
    shown = examples([(1, 0)])
    with subjects_of(small, tiny.clip, given) as subjects:
        own = set(subjects.parameters(1))
        before = values(subjects)
        frozen = {name: value.clone() for name, value in subjects.learner.network.state_dict().items()}
        train(subjects, shown, given)
        first = values(subjects)
        assert changed(before, first) == own
        assert own == {"handles.l", "mask_encoder.linear.weight", "mask_encoder.linear.bias", "mask_encoder.subjects"}
        moved = (first["mask_encoder.linear.weight"] != before["mask_encoder.linear.weight"]).any(0)
        assert torch.equal(moved, shown[0].cells[0].amax(0).flatten() > 0)
        assert (first["mask_encoder.subjects"] != 0).any(1).all()
        assert (first["handles.l"] != before["handles.l"]).any(1).all()
        train(subjects, shown, replace(given, steps=0, weight_steps=3))
        second = values(subjects)
        assert changed(first, second) == set(subjects.parameters(2))
        if method == "lora":
            assert all(torch.equal(value, frozen[name]) for name, value in subjects.learner.network.state_dict().items())
        learned = subjects.learner.learned()
    assert {name.split(".")[0] for name in learned} == {"diffusion_model", "text_encoders"}


def test_the_loss_on_a_fixed_batch_falls_in_each_phase(small: Any, tiny: Painter) -> None:
    (shown,) = examples([(0, 1)])
    given = options(handle_rate=1e-3, attention_weight=1.0)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with subjects_of(small, tiny.clip, given) as subjects, torch.enable_grad():
        loss = Loss(subjects, [shown], given)

        def fixed(step: int, generator: torch.Generator) -> Tensor:
            return loss.of(shown, torch.tensor([0]), torch.tensor([[0, 1]]), noise, torch.tensor([2.0]))

        first = loop.run(subjects.parameters(1), fixed, replace(given.settings(1, 32), steps=15)).losses
        second = loop.run(subjects.parameters(2), fixed, replace(given.settings(2, 32), steps=15)).losses
    assert first[-1] < 0.95 * first[0]
    assert second[-1] < 0.8 * second[0]


PARTS = ("handles", "mask_encoder", "diffusion_model", "text_encoders")


@pytest.mark.parametrize("method", METHODS)
def test_computing_blocks_twice_gives_the_same_gradients(small: Any, tiny: Painter, method: Method) -> None:
    found: list[Weights] = []
    for checkpointing in (False, True):
        given = options(method=method, checkpointing=checkpointing, batch=2, attention_weight=0.5)
        with subjects_of(small, tiny.clip, given) as subjects, torch.enable_grad():
            roughened(subjects.learner.adapted, subjects.text.adapted)
            for value in subjects.parameters(2).values():
                value.requires_grad_(True)
            Loss(subjects, examples([(0, 1), (1, 0)]), given)(0, loop.random_numbers(0, 0)).backward()
            found.append({name: value.grad.clone() for name, value in subjects.parameters(2).items() if value.grad is not None})
            assert found[-1].keys() == subjects.parameters(2).keys()
    for part in PARTS:
        own = {name: value for name, value in found[0].items() if name.startswith(part)}
        largest = max(float(value.abs().max()) for value in own.values())
        assert largest > 0
        for name, value in own.items():
            torch.testing.assert_close(found[1][name], value, atol=1e-6 * largest, rtol=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_it_ends_as_if_nothing_had_been(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, method: Method, stop: int
) -> None:
    """In either phase, and where one ends; other ways to save memory are no other training."""
    given = options(method=method, steps=2, weight_steps=3)
    path = tmp_path / "states" / "scene.pt"
    wanted = whole_training(given)
    assert [(one.step, len(one.losses)) for one in wanted.told] == [(step, step) for step in range(1, 6)]
    assert wanted.told[-1].losses == wanted.progress.losses
    assert wanted.progress.step == 5
    before = trained(small, tiny.clip, given, path, stop)
    assert [one.step for one in before.told] == list(range(1, stop + 1))
    assert not alike(before.weights, wanted.weights, 1e-5)
    assert sorted(kept.name[:8] for kept in path.parent.iterdir()) == ["scene-1.", "scene-2-"][: 1 if stop <= 2 else 2]
    after = trained(small, tiny.clip, replace(given, checkpointing=stop == 4), path)
    assert [one.step for one in after.told] == list(range(stop + 1, 6))
    assert alike(after.weights, wanted.weights, 1e-5)
    assert after.progress.losses == pytest.approx(wanted.progress.losses, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learned_and_not_saved_is_not_learned_again(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(method=method, steps=2, weight_steps=3)
    path = tmp_path / "scene.pt"
    first = trained(small, tiny.clip, given, path)
    assert alike(first.weights, whole_training(given).weights)
    monkeypatch.setattr(Loss, "__call__", lambda *_: pytest.fail("it trains again"))
    again = trained(small, tiny.clip, given, path)
    assert alike(again.weights, first.weights)
    assert again.progress == first.progress
    assert again.told == []


def test_a_longer_second_phase_goes_on_and_a_longer_first_one_begins_the_second_again(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = options(steps=2, weight_steps=1)
    path = tmp_path / "scene.pt"
    trained(small, tiny.clip, given, path)
    longer = replace(given, weight_steps=3)
    found = trained(small, tiny.clip, longer, path)
    assert [one.step for one in found.told] == [4, 5]
    assert alike(found.weights, whole_training(longer).weights, 1e-5)
    assert not caplog.records
    longer = replace(given, steps=3)
    found = trained(small, tiny.clip, longer, path)
    assert [one.step for one in found.told] == [3, 4]
    assert alike(found.weights, whole_training(longer).weights, 1e-5)
    assert not caplog.records


def test_trainings_of_other_second_phases_share_the_first_and_keep_their_own_second(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted in the second phase one after the other, each goes on where it was."""
    given = options(steps=2, weight_steps=3)
    path = tmp_path / "scene.pt"
    several = given, replace(given, rate=2e-3), replace(given, rank=3)
    told = [[one.step for one in trained(small, tiny.clip, other, path, stop=4).told] for other in several]
    assert told == [[1, 2, 3, 4], [3, 4], [3, 4]]
    for other in several:
        found = trained(small, tiny.clip, other, path)
        assert [one.step for one in found.told] == [5]
        assert alike(found.weights, whole_training(other).weights, 1e-5)
    assert len(list(tmp_path.iterdir())) == 4
    assert not caplog.records


def test_the_same_seed_trains_the_same(small: Any, tiny: Painter, whole_training: Callable[[Options], Trained]) -> None:
    given = options(steps=2, weight_steps=3)
    assert alike(trained(small, tiny.clip, given).weights, whole_training(given).weights)
    other = trained(small, tiny.clip, replace(given, seed=1))
    assert changed(other.weights, whole_training(given).weights) == other.weights.keys()


def test_steps_are_drawn_from_all_that_there_is(small: Any, tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often one as two subjects, any picture, any order of names, any noise level; the same numbers draw the same."""
    given = options(batch=2)
    calls = []
    monkeypatch.setattr(Loss, "of", lambda self, *drawn: calls.append(drawn) or torch.zeros(()))
    shown = examples(*ONE_AND_TWO)
    with subjects_of(small, tiny.clip, given) as subjects:
        loss = Loss(subjects, shown, given)
        for step in (*range(200), 0):
            loss(step, loop.random_numbers(0, step))
        levels = loss.schedule.sigmas
    first = calls[0]
    last = calls.pop()
    assert first[0] is last[0]
    assert all(torch.equal(one, other) for one, other in zip(first[1:], last[1:], strict=True))
    pairs = [call for call in calls if call[0] is shown[1]]
    assert 70 < len(pairs) < 130
    orders = [tuple(order) for _, _, places, _, _ in pairs for order in places.tolist()]
    assert set(orders) == {(0, 1), (1, 0)}
    assert 0.35 < orders.count((0, 1)) / len(orders) < 0.65
    assert any(places[0].tolist() != places[1].tolist() for _, _, places, _, _ in pairs)
    for part in (0, 1):
        chosen = torch.cat([call[1] for call in calls if call[0] is shown[part]])
        assert chosen.unique().tolist() == [0, 1, 2]
    sigmas = torch.cat([call[4] for call in calls])
    noises = torch.stack([call[3] for call in calls])
    assert torch.isin(sigmas, levels).all()
    assert sigmas.median() == pytest.approx(float(levels.median()), rel=0.35)
    assert noises.shape == (200, 2, 4, 8, 8)
    assert noises.std() == pytest.approx(1, abs=0.02)
