"""What the judge sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from demo import autoencoder, judge, scenes, subjects, tiny_model, train_judge
from demo.scenes import Paint, Scene, Thing
from demo.subjects import SUBJECTS, Subject

from ...support.demo_scenes import colour_error, thing


@pytest.fixture(scope="module")
def eye() -> judge.Judge:
    return judge.load()


@pytest.mark.parametrize("pattern", [False, True])
def test_the_judge_knows_fresh_renders(eye: judge.Judge, pattern: bool) -> None:
    """A quick look at what `train_judge` measures on 600."""
    right = train_judge.right_of(eye, seed=7, count=60, pattern=pattern)
    assert {name: sum(values) >= 54 for name, values in right.items()} == {"shape": True, "colour": True, "ground": True}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.shape)
def test_the_judge_tells_how_much_of_a_subject_has_which_colour(eye: judge.Judge, subject: Subject) -> None:
    scene = Scene((Thing(subject.shape, subject.paint, 0.5, 0.5, 0.6),), "bricks", seed=2)
    rendered = scenes.render(scene)
    found = judge.look(eye, torch.from_numpy(rendered.image)[None].float() / 255)[0].best(subject.shape)
    assert found is not None
    pixels = rendered.image[rendered.masks[0] == 1]
    errors = np.stack([colour_error(pixels, name)[0] for name in subject.colours])
    for name, part in zip(subject.colours, (errors.argmin(0) == 0, errors.argmin(0) == 1), strict=True):
        assert found.colours[name] == pytest.approx(part.mean(), abs=0.08)
    assert sum(found.colours.values()) == pytest.approx(1)
    assert found.painted(*subject.colours)
    assert found.painted(*reversed(subject.colours))


def test_the_judge_can_look_at_a_box_only(eye: judge.Judge) -> None:
    rendered = scenes.render(Scene((thing("ball", "red", 0.25, size=0.4), thing("ball", "blue", 0.75, size=0.4)), "sand"))
    pictures = torch.from_numpy(rendered.image).expand(3, -1, -1, -1).float() / 255
    masks = torch.zeros(3, 128, 128)
    masks[1, :, :64] = 1
    masks[2, :, :96] = 1
    nothing, left, half = judge.look(eye, pictures, masks)
    whole = judge.look(eye, pictures[:1])[0]
    assert [one.colour for one in whole.objects] == ["red", "blue"]
    assert nothing.objects == ()
    assert [one.colour for one in left.objects] == ["red"]
    assert np.array_equal(left.objects[0].mask, whole.objects[0].mask)
    assert np.array_equal(half.objects[1].mask, whole.objects[1].mask & (np.arange(64) < 48))


def test_subjects_survive_the_autoencoder(eye: judge.Judge) -> None:
    """What the autoencoder loses no training can bring back: shape and colours must still be seen in pictures that passed it."""
    narrow = autoencoder.narrowed(tiny_model.load_checkpoint(tiny_model.CHECKPOINT)[2])
    for subject in SUBJECTS:
        pictures = torch.stack([torch.from_numpy(one.image) for one in subjects.references(subject, 8, seed=1)]).movedim(-1, 1).float()
        with torch.no_grad():
            back = narrow.decode(narrow.encode(pictures / 255)).clamp(0, 1).movedim(1, -1)
        found = [verdict.best(subject.shape) for verdict in judge.look(eye, back)]
        right = [one is not None and one.shape == subject.shape and one.painted(*subject.colours) for one in found]
        assert sum(right) >= 6, subject.name


def test_two_colours_count_when_they_are_the_main_ones() -> None:
    def found(**colours: float) -> judge.Found:
        return judge.Found("star", "red", np.ones((64, 64), bool), np.zeros(3), dict.fromkeys(scenes.COLOURS, 0.0) | colours)

    assert found(red=0.5, white=0.4, blue=0.1).painted("white", "red")
    assert found(red=0.8, white=0.15, blue=0.05).painted("red", "white")
    assert not found(red=0.8, white=0.14, blue=0.06).painted("red", "white")
    assert not found(red=0.4, white=0.25, blue=0.35).painted("red", "white")
    assert not found(red=0.5, white=0.5).painted("red", "blue")


def test_the_training_of_the_judge_labels_both_colours() -> None:
    ball = Thing("ball", Paint("red", "white", "halves"), 0.25, 0.5, 0.4)
    box = thing("box", "blue", 0.75, 0.5, 0.4)
    scene = Scene((ball, box), "grass", 1)
    objects, colours, ground = train_judge.labels_of(scene, scenes.render(scene))
    assert judge.GROUND_NAMES[ground] == "grass"
    names = np.asarray(judge.COLOUR_NAMES)[colours]
    assert set(names[objects == 0]) == {""}
    assert set(names[objects == 2]) == {"blue"}
    for rows, name in ((slice(0, 31), "red"), (slice(33, 64), "white")):
        assert set(names[rows][objects[rows] == 1]) == {name}
    rng = np.random.default_rng(0)
    kinds = [train_judge.patterned(rng, scene, 0.5).things[1].paint.pattern for _ in range(60)]
    assert set(kinds) == {None, *scenes.PATTERNS}
    assert 15 < kinds.count(None) < 45


def test_features_are_of_the_object_alone(eye: judge.Judge) -> None:
    """Neither the ground, nor the place, nor the size tells much; the subject does."""
    shown = {subject: subjects.references(subject, 3) for subject in SUBJECTS}
    images = torch.stack([torch.from_numpy(one.image) for group in shown.values() for one in group]).float() / 255
    masks = torch.stack([torch.from_numpy(one.masks[0]) for group in shown.values() for one in group])
    found = judge.features(eye, images, masks)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    alike = (found @ found.T).numpy()
    same = np.kron(np.eye(len(SUBJECTS)), np.ones((3, 3))) > 0
    assert alike[same & ~np.eye(len(alike), dtype=bool)].min() > alike[~same].max()
    solid = (masks > 0.5).float()
    elsewhere = images * solid[..., None] + torch.rand_like(images) * (1 - solid[..., None])
    torch.testing.assert_close(judge.features(eye, elsewhere, solid), judge.features(eye, images, solid), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="mask is empty"):
        judge.features(eye, images[:1], torch.zeros(1, 128, 128))
