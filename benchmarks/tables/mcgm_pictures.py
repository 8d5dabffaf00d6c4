"""The pictures that MCGM's table learns from, and the poses and grounds that it paints."""

from __future__ import annotations

import functools

import numpy as np

from demo import scenes, subjects
from demo.subjects import SUBJECTS, Subject

SIZE = subjects.SIZE
PLACES: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.5, 0.5),),
    2: ((0.27, 0.45), (0.73, 0.55)),
    3: ((0.26, 0.3), (0.73, 0.3), (0.5, 0.74)),
}
"""Where one, two and three subjects stand in the picture that is learned."""
SIZES: dict[int, tuple[float, float]] = {1: (0.45, 0.7), 2: (0.38, 0.48), 3: (0.36, 0.44)}
"""Of their masks, from and to, as parts of the picture."""
STAR, BALL, TRIANGLE, HEART, BOX, RING, FISH, CROSS = SUBJECTS
PICTURES: tuple[tuple[Subject, ...], ...] = (
    (BALL,), (FISH,), (HEART,), (BALL, HEART), (STAR, CROSS), (RING, TRIANGLE), (BALL, HEART, TRIANGLE), (STAR, CROSS, TRIANGLE),
)  # fmt: skip
"""No two subjects of a picture share a colour, so that each cell of an object is of one of them."""


@functools.cache
def rendered(picture: tuple[Subject, ...]) -> scenes.Rendered:
    """The one picture that is learned from."""
    size = sum(SIZES[len(picture)]) / 2
    things = (scenes.Thing(one.shape, one.paint, x, y, size) for one, (x, y) in zip(picture, PLACES[len(picture)], strict=True))
    return scenes.render(scenes.Scene(tuple(things), suiting(picture)[0], 1), SIZE)


@functools.cache
def poses(picture: tuple[Subject, ...], count: int) -> list[scenes.Rendered]:
    """The subjects elsewhere, larger or smaller, tilted; several change places. Fewer are the first of more."""
    rng = subjects.random_numbers(picture[0], len(picture), 2)
    drawn = []
    for _ in range(count):
        order = rng.permutation(len(picture))
        things = []
        for place, one in zip(order, picture, strict=True):
            size = float(rng.uniform(*SIZES[len(picture)]))
            x, y = (
                rng.uniform(size / 2, 1 - size / 2, 2)
                if len(picture) == 1
                else np.add(PLACES[len(picture)][place], rng.uniform(-0.03, 0.03, 2))
            )
            things.append(scenes.Thing(one.shape, one.paint, float(x), float(y), size, float(rng.uniform(-15, 15))))
        drawn.append(scenes.render(scenes.Scene(tuple(things), scenes.GROUNDS[0], 0), SIZE))
    return drawn


def suiting(picture: tuple[Subject, ...]) -> list[str]:
    """The drawn grounds on which no subject's colour is lost."""
    return [ground for ground in scenes.GROUNDS if all(ground in one.grounds() for one in picture)] or list(scenes.GROUNDS)


def grounds(picture: tuple[Subject, ...], count: int) -> list[str]:
    """Of the pictures that are painted: others than that of the picture which was learned, where there are others."""
    others = suiting(picture)[1:] or suiting(picture)
    return [others[number % len(others)] for number in range(count)]
