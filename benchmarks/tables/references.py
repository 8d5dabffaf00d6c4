"""What Reference Region does for tiny-edit's pictures, by the judge of its world: a thing in its region, and nothing of what is hidden.

nox -s tables -- references

Things that no training showed, on photographs that none showed; the tasks are those that tiny-edit learned with two references. It paints
from the files that ComfyUI loads, in ComfyUI's own sampler.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.tiny_edit import folders, judge, scenes, things, world

from ..cache import sha
from ..figures import Figure, rate, size_of, write
from .stock_painter import Painting, StockPainter, needs_a_training
from .tiny_edit import photographs

SIDES = {"left": 0.25, "right": 0.75}


@dataclass(frozen=True)
class Size(Painting):
    """How many cases, beside the size of a picture."""

    cases: int = 100


@dataclass(frozen=True)
class Case:
    """A portrait [1, S, S, 3] of `code` beside `other`, `shown` [1, S, S] of the first, a photograph, and the side to paint it on."""

    code: str
    other: str
    portrait: Tensor
    shown: Tensor
    photograph: Tensor
    side: str

    def region(self, size: int) -> Tensor:
        """The half of the picture on that side, [1, S, S]."""
        mask = torch.zeros(1, size, size)
        half = slice(0, size // 2) if self.side == "left" else slice(size // 2, size)
        mask[:, :, half] = 1
        return mask


def cases(place: world.World, size: Size, seed: int = 11) -> list[Case]:
    rng = np.random.default_rng(seed)
    grounds = photographs(place, rng, size.cases, size.size).movedim(1, -1)
    found: list[Case] = []
    for number in range(size.cases):
        code, other = (things.HELD_OUT[index] for index in rng.choice(len(things.HELD_OUT), 2, replace=False))
        first, second = (0.28, 0.74) if rng.random() < 0.5 else (0.72, 0.26)
        both = (scenes.Placed(other, second, 0.55, 0.42), scenes.Placed(code, first, 0.55, 0.42))
        drawn = scenes.render(place, scenes.Scene(both, scenes.random_ground(rng, place.grounds())), size.size)
        portrait = torch.from_numpy(drawn.image.copy()).float()[None] / 255
        shown = (torch.from_numpy(drawn.masks[1].copy()) >= 0.5).float()[None]
        side = "left" if number % 2 else "right"
        found.append(Case(code, other, portrait, shown, grounds[number : number + 1], side))
    return found


class Painter(StockPainter):
    """Paints a case in any of the four ways."""

    def paint(self, case: Case, size: Size, region: bool, show: bool, seed: int) -> Tensor:
        """The thing of the portrait into the photograph, [3, S, S] in 0..1."""
        given = [sha(part.numpy().tobytes()) for part in (case.portrait, case.shown, case.photograph)]
        how = {"given": given, "side": case.side, "way": [region, show], "steps": size.steps, "seed": seed}
        return self.once(size.size, lambda: self._paint(case, size, region, show, seed), **how)

    @torch.no_grad()
    def _paint(self, case: Case, size: Size, region: bool, show: bool, seed: int) -> Tensor:
        from maskprompt.nodes.reference_region import ReferenceRegionNode

        line: tuple[Any, ...] = (
            self.model, self.words(f"the thing of the first picture on the {case.side} in the second picture"), self.words("")
        )  # fmt: skip
        asked: dict[str, Any] = {"region": case.region(size.size) if region else None, "show": case.shown if show else None}
        for image, more in ((case.portrait, asked), (case.photograph, {})):
            line = ReferenceRegionNode.execute(
                model=line[0], positive=line[1], negative=line[2], image=image, vae=self.vae, **more
            ).args  # fmt: skip
        return self.sample(line[0], line[1], line[2], size.size, size.steps, seed)


def measure(painter: Painter, eye: judge.Judge, found: Sequence[Case], size: Size) -> list[Figure]:
    """Each case four times from the same noise: with and without the region, with and without what is shown."""
    figures: list[Figure] = []
    for region in (False, True):
        for show in (False, True):
            there: list[bool] = []
            place: list[bool] = []
            stranger: list[bool] = []
            for number, case in enumerate(found):
                picture = painter.paint(case, size, region, show, number)
                likest = eye.look(picture, things.HELD_OUT)[0]
                there.append(likest.code == case.code)
                place.append(likest.code == case.code and abs(likest.centre - SIDES[case.side]) < 0.25)
                stranger.append(likest.code == case.other)
            name = f"{'a region' if region else 'no region'}, {'its other thing hidden' if show else 'all of it shown'}"
            figures.append(rate(f"{name}: the thing is there", there))
            figures.append(rate(f"{name}: the thing is there, in its place", place))
            figures.append(rate(f"{name}: the other thing of the reference is there in its stead", stranger))
    return figures


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = size_of(Size(), command, __doc__, arguments)
    needs_a_training(command)
    place = world.load(folders.world(folders.DEFAULT))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        figures = measure(Painter(Path(folder)), judge.Judge(place, things.HELD_OUT), cases(place, size), size)
    write("references", command, figures, {"settings": size.settings}, whole=size == Size())
