"""Which of its named things tiny-edit paints so that they are known: the trial that says how many a training carries.

nox -s tables -- tiny-things

One sentence of one thing, on grounds on which training did show it, so that the captions of the table `tiny-edit` stay unseen. The rates of
single things have wide intervals; what is read off them is which things belong to the lower half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from demo.tiny_edit import folders, grounds, judge, records, sentences, things, world

from ..figures import Figure, rate, size_of, write
from .stock_painter import Painting, StockPainter, weights


@dataclass(frozen=True)
class Size(Painting):
    """How many pictures of each thing, beside the size of a picture."""

    each: int = 6


def grounds_for(place: world.World, code: str, count: int, seed: int = 31) -> list[str]:
    """Grounds on which training shows the thing, none twice."""
    rng = np.random.default_rng([seed, int(code, 16)])
    shown = [name for name in place.grounds() if not records.held_out(code, name)]
    return [shown[index] for index in rng.permutation(len(shown))[:count]]


class Painter(StockPainter):
    """Paints sentences as a graph of stock nodes does."""

    def paint(self, code: str, ground: str, size: Size, seed: int) -> Tensor:
        """The thing on the ground, [3, S, S] in 0..1."""
        text = f"{sentences.together([things.words_of(code)])} {grounds.words_of(ground)}"

        def painted() -> Tensor:
            return self.sample(self.model, self.words(text), self.words(""), size.size, size.steps, seed)

        return self.once(size.size, painted, text=text, steps=size.steps, seed=seed)


def measure(painter: Any, eye: judge.Looking[Any], place: world.World, size: Size) -> list[Figure]:
    """The rate of each thing, the least known first, and that of all."""
    figures: list[Figure] = []
    every: list[bool] = []
    for code in things.NAMED:
        known = [
            eye.things(painter.paint(code, ground, size, number), 1, things.NAMED)[0].code == code
            for number, ground in enumerate(grounds_for(place, code, size.each))
        ]
        print(f"{things.words_of(code)}: {sum(known)} of {len(known)}", flush=True)
        figures.append(rate(things.words_of(code), known))
        every += known
    figures.sort(key=lambda one: one.value)
    return [rate("all named things", every), *figures]


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = size_of(Size(), command, __doc__, arguments)
    place = world.load(folders.world(folders.DEFAULT))
    eye = judge.Judge(place, things.NAMED)
    figures = measure(Painter(), eye, place, size)
    write("tiny-things", command, figures, {"settings": size.settings, "weights": weights()}, whole=place.whole and size == Size())
