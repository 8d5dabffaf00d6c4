"""The table of Reference Region: its cases are what they say, its figures on made-up pictures, each way on random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.tables import halves, references, references_cases
from demo.tiny_edit import things, world

SMALL = references.Size(cases=2, words=1, twos=2, size=64, steps=1)


def colour_of(place: world.World, code: str) -> torch.Tensor:
    pixels = torch.from_numpy(place.cut_outs[code].copy()).float() / 255
    return pixels[pixels[..., 3] > 0.5][:, :3].mean(0)


def test_what_is_shown_is_the_thing_that_is_asked_for(place: world.World) -> None:
    """Things of this world have one colour each: what is shown of the portrait has the hue of its thing, in any light."""
    for case in references_cases.cases(place, 3, 128):
        assert case.code != case.other
        mean = case.portrait[case.shown > 0.5].mean(0)
        own, other = (torch.cosine_similarity(mean, colour_of(place, code), 0) for code in (case.code, case.other))
        assert 0.02 < float(case.shown.mean()) < 0.35
        assert own > max(float(other), 0.99)
        assert case.ground in place.grounds()
        assert case.named in things.NAMED


def test_two_portraits_show_one_thing_each(place: world.World) -> None:
    found = references_cases.twos(place, 4, 128)
    assert [case.sides for case in found] == [("right", "left"), ("left", "right")] * 2
    for case in found:
        for number, code in enumerate(case.codes):
            mean = case.portraits[number][case.shown[number] > 0.5].mean(0)
            likeness = [float(torch.cosine_similarity(mean, colour_of(place, one), 0)) for one in (code, case.codes[1 - number])]
            assert likeness[0] > max(likeness[1], 0.99)


def test_halves_are_halves() -> None:
    left, right = (halves.half(side, 8) for side in ("left", "right"))
    assert torch.equal(left + right, torch.ones(1, 8, 8))
    assert bool(left[0, :, :4].all())


class MadeUp:
    """Painter, judge of things and judge of grounds in one: a picture is a number in each half, and it knows what that number shows.

    With a region a thing stands where it shall, alone; without one the reference's other thing and ground are there, what words say is
    not, and two things change places. What is shown decides nothing but how bright the other half is.
    """

    def __init__(self) -> None:
        self.shown: list[str] = ["nothing"]
        self.ground = ""

    def _picture(self, sides: dict[str, str]) -> Tensor:
        picture = torch.zeros(3, 64, 64)
        for side, code in sides.items():
            self.shown.append(code)
            picture[:, halves.half(side, 64)[0] > 0.5] = float(len(self.shown) - 1)
        return picture

    def paint(self, case: references.Case, size: Any, way: references.Way, seed: int) -> Tensor:
        self.ground = "another" if way.region else case.ground
        self.found = case.code if way.region else case.other
        self.centre = halves.MIDDLES[case.side]
        return case.photograph[0].movedim(-1, 0) + (0 if way.show else 0.25)

    def with_words(self, case: references.Case, size: Any, region: bool, seed: int) -> Tensor:
        other = halves.other_side(case.side)
        return self._picture({case.side: case.code, other: case.named if region else "nothing"})

    def two(self, case: references.Two, size: Any, way: references.Way, seed: int) -> Tensor:
        codes = case.codes if way.region else case.codes[::-1]
        return self._picture(dict(zip(case.sides, codes, strict=True)))

    def look(self, picture: Tensor, codes: Sequence[str] = ()) -> list[Any]:
        if hasattr(self, "found"):
            return [SimpleNamespace(code=self.found, centre=self.centre)]
        number = int(picture.max())
        return [SimpleNamespace(code=self.shown[number])]

    def name(self, picture: Tensor) -> str:
        return self.ground


def test_figures_say_what_the_pictures_show(place: world.World) -> None:
    made: Any = MadeUp()
    figures = {one.name: one.value for one in references.measure(made, made, made, references_cases.cases(place, 2, 64), SMALL)}
    for way in references.WAYS:
        name = way.name
        found = [figures[f"{name}: {what}"] for what in ("the thing is there", "the thing is there, in its place")]
        bled = [
            figures[f"{name}: {what}"]
            for what in ("the other thing of the reference is there in its stead", "the reference's ground is named")
        ]
        assert found == [way.region, way.region]
        assert bled == [not way.region, not way.region]
        assert figures[f"{name}: mean difference from the photograph in the other half"] == pytest.approx(0 if way.show else 0.25, abs=1e-6)


def test_figures_of_words_and_of_two_say_what_the_pictures_show(place: world.World) -> None:
    made: Any = MadeUp()
    figures = {one.name: one.value for one in references.measure_words(made, made, references_cases.cases(place, 2, 64), SMALL)}
    assert figures["words beside it, no region: their thing is in the other half"] == 0
    assert figures["words beside it, a region: their thing is in the other half"] == 1
    assert figures["words beside it, no region: the reference's thing is in its own"] == 1
    figures = {one.name: one.value for one in references.measure_twos(made, made, references_cases.twos(place, 3, 64), SMALL)}
    for region, name in (
        (False, "two references, no regions"), (True, "two references, a region each"),
        (True, "two references, a region each, not in the negative"),
    ):  # fmt: skip
        found = [figures[f"{name}: {what}"] for what in ("a half has its own thing", "both have", "they changed places")]
        assert found == [region, region, not region]


def test_the_sheet_has_a_row_for_each_case_and_a_picture_for_each_way(
    place: world.World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(references, "SHEET", tmp_path / "sheet.png")
    references.sheet(MadeUp(), references_cases.cases(place, 2, 64), SMALL)
    page = Image.open(tmp_path / "sheet.png")
    assert page.width > 64 * (3 + len(references.WAYS))
    assert page.height > 64 * 2


@pytest.mark.thorough
@pytest.mark.usefixtures("kept_apart")
def test_it_paints_each_case_in_every_way(place: world.World, tiny_edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = references.Painter(tiny_edit)
    case = references_cases.cases(place, 1, 64)[0]
    two = references_cases.twos(place, 1, 64)[0]
    painted = [painter.paint(case, SMALL, way, 1) for way in references.WAYS]
    words = [painter.with_words(case, SMALL, region, 1) for region in (False, True)]
    twos = [painter.two(two, SMALL, way, 1) for way in references.TWO_WAYS]
    for found in (painted, [*painted, *words], twos):
        assert all(picture.shape == (3, 64, 64) and bool(picture.isfinite().all()) for picture in found)
        for number, one in enumerate(found):
            assert not any(torch.equal(one, other) for other in found[number + 1 :])
    monkeypatch.setattr(painter, "sample", lambda *_: pytest.fail("a picture that is kept was painted again"))
    assert torch.equal(painter.two(two, SMALL, references.TWO_WAYS[1], 1), twos[1])
    assert torch.equal(painter.with_words(case, SMALL, True, 1), words[1])
