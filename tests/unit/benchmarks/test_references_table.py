"""The table of Reference Region, on tiny-edit of random weights: its cases are what they say, and it runs from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.tables import references, stock_painter
from demo.tiny_edit import folders, judge, things, world

from ...support import tiny_edit_world

SMALL = references.Size(cases=2, size=64, steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny-edit")
    tiny_edit_world.random_weights(made)
    return made


def colour_of(place: world.World, code: str) -> torch.Tensor:
    pixels = torch.from_numpy(place.cut_outs[code].copy()).float() / 255
    return pixels[pixels[..., 3] > 0.5][:, :3].mean(0)


def test_what_is_shown_is_the_thing_that_is_asked_for(folder: Path) -> None:
    """Things of this world have one colour each: what is shown of the portrait has the hue of its thing, in any light."""
    place = world.load(folder / "world")
    for case in references.cases(place, references.Size(cases=3, size=128)):
        assert case.code != case.other
        mean = case.portrait[case.shown > 0.5].mean(0)
        own, other = (torch.cosine_similarity(mean, colour_of(place, code), 0) for code in (case.code, case.other))
        assert 0.02 < float(case.shown.mean()) < 0.35
        assert own > max(float(other), 0.99)
        region = case.region(128)
        assert float(region.mean()) == 0.5
        assert bool(region[0, 0, 0]) == (case.side == "left")


def test_it_paints_each_case_in_four_ways(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(folders, "DEFAULT", folder)
    monkeypatch.setattr(stock_painter, "WORK", tmp_path / "kept")
    place = world.load(folder / "world")
    painter = references.Painter(tmp_path)
    found = references.cases(place, SMALL)
    pictures = [painter.paint(found[0], SMALL, region, show, 1) for region in (False, True) for show in (False, True)]
    assert all(picture.shape == (3, 64, 64) and bool(picture.isfinite().all()) for picture in pictures)
    assert all(not torch.equal(pictures[0], other) for other in pictures[1:])
    figures = references.measure(painter, judge.Judge(place, things.HELD_OUT), found, SMALL)
    assert len(figures) == 12
    assert {figure.cases for figure in figures} == {2}
