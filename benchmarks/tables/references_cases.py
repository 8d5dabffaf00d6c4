"""The cases of Reference Region's table: reference pictures of things that no training showed, and where in a picture they shall act."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demo.tiny_edit import scenes, things, world

from ..cache import image_of
from .halves import other_side
from .tiny_edit import photographs


@dataclass(frozen=True)
class Case:
    """A portrait [1, S, S, 3] of `code` beside `other` on `ground`, `shown` [1, S, S] of the first, a photograph, and the side to paint it
    on. `named`: a thing that training did show, for words."""

    code: str
    other: str
    ground: str
    portrait: Tensor
    shown: Tensor
    photograph: Tensor
    side: str
    named: str


def cases(place: world.World, count: int, size: int, seed: int = 11) -> list[Case]:
    """Draws portraits on grounds of training, and photographs that training never showed."""
    rng = np.random.default_rng(seed)
    names = np.random.default_rng(seed + 1)
    pictures = photographs(place, rng, count, size).movedim(1, -1)
    found: list[Case] = []
    for number in range(count):
        code, other = (things.HELD_OUT[index] for index in rng.choice(len(things.HELD_OUT), 2, replace=False))
        first, second = (0.28, 0.74) if rng.random() < 0.5 else (0.72, 0.26)
        both = (scenes.Placed(other, second, 0.55, 0.42), scenes.Placed(code, first, 0.55, 0.42))
        ground = scenes.random_ground(rng, place.grounds())
        drawn = scenes.render(place, scenes.Scene(both, ground), size)
        side = "left" if number % 2 else "right"
        named = things.NAMED[names.integers(len(things.NAMED))]
        found.append(
            Case(code, other, ground.name, image_of(drawn.image)[None], mask_of(drawn, 1), pictures[number : number + 1], side, named)
        )
    return found


@dataclass(frozen=True)
class Two:
    """Two things, a portrait [1, S, S, 3] of each alone, `shown` [1, S, S] of each, and the side of the first."""

    codes: tuple[str, str]
    portraits: tuple[Tensor, Tensor]
    shown: tuple[Tensor, Tensor]
    side: str

    @property
    def sides(self) -> tuple[str, str]:
        """Where the first and the second shall stand."""
        return self.side, other_side(self.side)


def twos(place: world.World, count: int, size: int, seed: int = 13) -> list[Two]:
    """Draws two portraits each, on two grounds of training."""
    rng = np.random.default_rng(seed)
    found: list[Two] = []
    for number in range(count):
        codes = [things.HELD_OUT[index] for index in rng.choice(len(things.HELD_OUT), 2, replace=False)]
        first, second = (_portrait(place, rng, code, size) for code in codes)
        found.append(
            Two(
                (codes[0], codes[1]),
                (image_of(first.image)[None], image_of(second.image)[None]),
                (mask_of(first, 0), mask_of(second, 0)),
                "left" if number % 2 else "right",
            )
        )
    return found


def _portrait(place: world.World, rng: np.random.Generator, code: str, size: int) -> scenes.Rendered:
    thing = scenes.Placed(code, 0.5, 0.52, float(rng.uniform(0.5, 0.7)), float(rng.normal(0, 6)), bool(rng.random() < 0.5))
    return scenes.render(place, scenes.Scene((thing,), scenes.random_ground(rng, place.grounds())), size)


def mask_of(drawn: scenes.Rendered, number: int) -> Tensor:
    """Where a thing of a rendered picture is seen, as ComfyUI's MASK, [1, S, S] of 0 and 1."""
    return (torch.from_numpy(drawn.masks[number].copy()) >= 0.5).float()[None]
