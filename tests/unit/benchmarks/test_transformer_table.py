"""The table of a transformer that paints under the nodes: its cases, its figures on made-up pictures, each way on random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.tables import transformer
from demo.tiny_edit import things, world

SMALL = transformer.Size(pairs=2, boxes=1, size=64, steps=3)


class MadeUp:
    """Painter, judge of things and judge of grounds in one: what it "paints" is a number, and it knows what that number shows.

    Regions put both things right, one prompt with places exchanges them, and one prompt paints the first alone, on another ground.
    """

    def __init__(self) -> None:
        self.shown: list[tuple[dict[str, float], str]] = []

    def _picture(self, shown: dict[str, float], ground: str) -> Tensor:
        self.shown.append((shown, ground))
        return torch.full((3, 64, 64), float(len(self.shown) - 1))

    def pair(self, case: transformer.Pair, way: transformer.Asking, size: Any, seed: int) -> Tensor:
        first, second = case.middles
        if way.places:
            first, second = second, first
        elif not way.base:
            return self._picture({case.first: first}, "another")
        return self._picture({case.first: first + 0.1, case.second: second - 0.1}, case.ground)

    def things(self, picture: Tensor, count: int, codes: Sequence[str]) -> list[Any]:
        shown, _ = self.shown[int(picture[0, 0, 0])]
        return [SimpleNamespace(code=code, centre=x) for code, x in shown.items()][:count]

    def look(self, picture: Tensor, codes: Sequence[str] = ()) -> list[Any]:
        """Of a picture of which one half is grey (0.5): what stands in the other."""
        left, right = float(picture[0, 0, 0]), float(picture[0, 0, -1])
        assert (left == 0.5) != (right == 0.5)
        shown, _ = self.shown[int(left if right == 0.5 else right)]
        return [SimpleNamespace(code=code) for code, x in shown.items() if (x < 0.5) == (right == 0.5)] or [SimpleNamespace(code="nothing")]

    def name(self, picture: Tensor) -> str:
        return self.shown[int(picture[0, 0, 0])][1]


class InTheBox(MadeUp):
    """Without masks the neighbour comes into the box and all around it is darker by 0.1; with them it is as it was asked for."""

    def box(self, case: transformer.Box, way: transformer.Masking, size: Any, seed: int) -> Tensor:
        self.wanted = case.code if way.cross else case.other
        return case.whole[0].movedim(-1, 0) - (0 if way.cross else 0.1)

    def things(self, picture: Tensor, count: int, codes: Sequence[str]) -> list[Any]:
        return [SimpleNamespace(code=self.wanted)]


def test_pairs_ask_for_both_orders(place: world.World) -> None:
    found = transformer.pairs(place, 6)
    assert [case.swapped for case in found] == [True, False] * 3
    for case in found:
        first, second = (things.with_article(things.words_of(code)) for code in (case.first, case.second))
        assert case.first != case.second
        assert case.text(places=False).startswith(f"{first} and {second} ")
        right, left = ("right", "left") if case.swapped else ("left", "right")
        assert case.text(places=True).startswith(f"{first} on the {right} and {second} on the {left} ")
        assert case.middles == ((0.75, 0.25) if case.swapped else (0.25, 0.75))


def test_the_box_is_grey_and_beside_a_thing(place: world.World) -> None:
    for number, case in enumerate(transformer.boxes(place, 4, 128)):
        assert 0.1 < float(case.mask.mean()) < 0.3
        assert torch.equal(case.masked[case.mask < 0.5], case.whole[case.mask < 0.5])
        assert bool((case.masked[case.mask > 0.5] == 128 / 255).all())
        assert case.code != case.other
        middle = float((case.mask[0].amax(0) * torch.arange(128)).sum() / case.mask[0].amax(0).sum()) / 128
        assert middle == pytest.approx(0.73 if number % 2 == 0 else 0.27, abs=0.06)


def test_figures_of_pairs_say_what_the_pictures_show(place: world.World) -> None:
    made = MadeUp()
    found = transformer.pairs(place, 3)
    judge: Any = made
    figures = {one.name: one for one in transformer.measure_pairs(made, judge, judge, found, SMALL)}
    alone = "each half, looked at alone, shows its own thing"
    for way in transformer.askings()[2:]:
        assert [figures[f"{way.name}: {what}"].value for what in ("both things there", "ground right")] == [1, 1]
        assert figures[f"{way.name}: both things there, each in its own half"].value == 1
        assert figures[f"{way.name}: each in its own half, the first named on the right"].cases == 2
        assert figures[f"{way.name}: {alone}"].value == figures[f"{way.name}: {alone}, the first named on the right"].value == 1
    assert figures["one prompt: both things there"].value == figures["one prompt: ground right"].value == 0
    assert figures["one prompt with places: both things there"].value == 1
    assert figures["one prompt with places: both things there, each in its own half"].value == 0
    assert [figures[f"{way}: {alone}"].value for way in ("one prompt", "one prompt with places")] == [0, 0]


def test_figures_of_boxes_say_what_the_pictures_show(place: world.World) -> None:
    made: Any = InTheBox()
    found = transformer.boxes(place, 2, 64)
    figures = {one.name: one.value for one in transformer.measure_boxes(made, made, found, SMALL)}
    assert len(figures) == 3 * len(transformer.MASKINGS)
    assert figures["Masked Attention, off: the right thing in the box"] == 0
    assert figures["Masked Attention, off: the thing beside it in the box"] == 1
    assert figures["Masked Attention, off: mean difference around the box"] == pytest.approx(0.1)
    for way in transformer.MASKINGS[1:]:
        told = [
            figures[f"Masked Attention, {way.name}: {what}"] for what in ("the right thing in the box", "mean difference around the box")
        ]
        assert told == pytest.approx([1, 0])


@pytest.mark.thorough
@pytest.mark.usefixtures("kept_apart")
def test_it_paints_each_case_in_every_way(place: world.World, tiny_edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = transformer.Painter(tiny_edit)
    case = transformer.pairs(place, 1)[0]
    box = transformer.boxes(place, 1, 64)[0]
    pairs = [painter.pair(case, way, SMALL, 1) for way in transformer.askings()]
    boxes = [painter.box(box, way, SMALL, 1) for way in transformer.MASKINGS]
    for found in (pairs, boxes):
        assert all(picture.shape == (3, 64, 64) and bool(picture.isfinite().all()) for picture in found)
        for number, one in enumerate(found):
            assert not any(torch.equal(one, other) for other in found[number + 1 :])
    monkeypatch.setattr(painter, "sample", lambda *_: pytest.fail("a picture that is kept was painted again"))
    assert torch.equal(painter.pair(case, transformer.askings()[2], SMALL, 1), pairs[2])
    assert torch.equal(painter.box(box, transformer.MASKINGS[3], SMALL, 1), boxes[3])
