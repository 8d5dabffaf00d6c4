"""Subjects that training never showed, their pictures and backgrounds."""

from __future__ import annotations

import numpy as np
import pytest

from demo import photos, scenes, subjects
from demo.scenes import Paint, Rendered, Scene
from demo.subjects import SUBJECTS, Subject


def test_subjects_are_unlike_each_other_and_what_training_showed() -> None:
    assert len(SUBJECTS) >= 8
    for part in ([one.shape for one in SUBJECTS], [one.name for one in SUBJECTS], [frozenset(one.colours) for one in SUBJECTS]):
        assert len(set(part)) == len(SUBJECTS)
    assert {one.paint.pattern for one in SUBJECTS} == {"halves", "stripes"}  # and training's family has none, as a test above says
    for one in SUBJECTS:
        assert subjects.distance(*(scenes.COLOURS[name] for name in one.colours)) > 30
        assert 4 <= len(one.grounds()) <= 8
    assert "snow" not in Subject("star", Paint("red", "white", "stripes")).grounds()
    assert Subject("star", Paint("orange", "purple", "stripes")).grounds() == list(scenes.GROUNDS)
    with pytest.raises(ValueError, match="one colour"):
        _ = Subject("star", Paint("red")).colours


class Watch:
    """Which photographs are loaded and which scenes rendered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.photographs: set[str] = set()
        self.drawn: list[tuple[Scene, Rendered]] = []
        load = photos.load
        render = scenes.render

        def watched_load(name: str) -> np.ndarray:
            self.photographs.add(name)
            return load(name)

        def watched_render(scene: Scene, size: int = 128) -> Rendered:
            self.drawn.append((scene, render(scene, size)))
            return self.drawn[-1][1]

        monkeypatch.setattr(photos, "load", watched_load)
        monkeypatch.setattr(scenes, "render", watched_render)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.shape)
def test_references_show_the_whole_subject(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    shown, again, fewer, others = (subjects.references(subject, count, seed) for count, seed in ((5, 0), (5, 0), (2, 0), (5, 1)))
    assert watch.photographs <= set(photos.TRAINING)
    assert len({scene.ground for scene, _ in watch.drawn[:5]}) >= 4
    for index, (scene, rendered) in enumerate(watch.drawn[:5]):
        (one,), (mask,) = scene.things, rendered.masks
        assert one.paint == subject.paint
        assert 0.4 <= one.size <= 0.65
        assert np.array_equal(shown[index].image, rendered.image)
        assert np.array_equal(shown[index].image, again[index].image)
        assert not np.array_equal(shown[index].image, others[index].image)
        assert mask.sum() == pytest.approx(scenes.shape_mask(subject.shape, round(one.size * 128), one.tilt).sum())
        assert not any(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert [one.image.tobytes() for one in fewer] == [one.image.tobytes() for one in shown[:2]]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.shape)
def test_backgrounds_leave_the_box_to_the_subject(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    shown = subjects.backgrounds(subject)
    again = subjects.backgrounds(subject, 20, 0)
    assert watch.photographs == set(photos.HELD_OUT)
    assert len(shown) == 20
    assert sum(one.similar for one in shown) == 7
    assert {scene.ground for scene, _ in watch.drawn[:20]} == {scenes.PHOTO, *subject.grounds()}
    for one, two, (scene, rendered) in zip(shown, again, watch.drawn, strict=False):
        x, y, width, height = one.box
        assert 48 <= min(width, height) <= max(width, height) <= 80
        assert x >= 0 <= y
        assert max(x + width, y + height) <= 128
        assert width / height == pytest.approx(subject.aspect, rel=0.16) or min(width, height) == 48
        assert one.box == two.box
        assert np.array_equal(one.image, two.image)
        assert len(scene.things) == int(one.similar)
        for beside in scene.things:
            assert beside.shape == subject.shape
            assert beside.paint.pattern is None
            assert beside.paint.colour not in subject.colours
            assert rendered.masks[0].sum() > 500
            assert not rendered.masks[0][y : y + height, x : x + width].any()
