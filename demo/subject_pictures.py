"""What the demo's artist brings, under the workflows' file names: pictures of patterned objects, which the tiny model never saw, and masks.

For DreamCom five pictures of one subject; for MCGM one picture of two subjects, and masks that an artist would draw of new poses: the
fish by itself, ball and fish in other places, and one mask for both; for Mask-ControlNet a picture of a product, and one of two.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from . import photos, scenes

SHAPE = "heart"
PAINT = scenes.Paint("purple", "yellow", "stripes")
SIZE = 512
PREFIX = "subject-"
VIEWS: tuple[tuple[str, float, float, float, float], ...] = (
    ("rocket", 0.51, 0.48, 0.56, 6.0),
    ("grass", 0.47, 0.52, 0.50, -6.0),
    ("gravel", 0.50, 0.50, 0.64, 3.0),
    ("wood", 0.52, 0.53, 0.46, -9.0),
    ("sky", 0.49, 0.50, 0.60, 0.0),
)
"""Of each picture: a drawn ground or a photograph of the training set, the object's centre and size as parts of it, and its tilt."""

BALL = scenes.Paint("blue", "white", "halves")
FISH = scenes.Paint("orange", "white", "stripes")
TOGETHER = "ball-and-fish"
SCENE = scenes.Scene((scenes.Thing("ball", BALL, 0.27, 0.36, 0.46), scenes.Thing("fish", FISH, 0.72, 0.64, 0.48)), "wood", 1)
"""The one picture that MCGM learns both subjects from, as `TOGETHER`."""
POSES: dict[str, tuple[scenes.Thing, ...]] = {
    "pose-fish": (scenes.Thing("fish", FISH, 0.56, 0.42, 0.66, -20.0),),
    "place-ball": (scenes.Thing("ball", BALL, 0.72, 0.34, 0.42),),
    "place-fish": (scenes.Thing("fish", FISH, 0.29, 0.68, 0.50, 16.0),),
    "place-both": (scenes.Thing("ball", BALL, 0.70, 0.70, 0.42), scenes.Thing("fish", FISH, 0.32, 0.30, 0.50, -12.0)),
}
"""Masks, white on black: what is white in each."""
PRODUCTS: dict[str, tuple[str, tuple[scenes.Thing, ...]]] = {
    "product": ("coffee", (scenes.Thing("box", scenes.Paint("green", "white", "stripes"), 0.52, 0.5, 0.52, 7.0),)),
    "two-products": ("wood", (scenes.Thing("star", scenes.Paint("red", "white", "stripes"), 0.27, 0.4, 0.46),
                              scenes.Thing("ball", scenes.Paint("blue", "yellow", "halves"), 0.72, 0.58, 0.44))),
}  # fmt: skip
"""Of each picture its ground, or a photograph which training never showed, and what stands there."""
MIRRORED = frozenset({"pose-fish"})


def names() -> list[str]:
    return [*(f"{PREFIX}{number}" for number in range(1, len(VIEWS) + 1)), TOGETHER, *POSES, *PRODUCTS]


def load(name: str) -> np.ndarray:
    """The picture or mask of this name as uint8 [512, 512, 3]; ValueError for a name that is not in `names()`."""
    if name not in names():
        raise ValueError(f"no picture {name!r} of the subjects; there are {', '.join(names())}")
    if name == TOGETHER:
        return scenes.render(SCENE, SIZE).image
    if name in PRODUCTS:
        ground, things = PRODUCTS[name]
        drawn = ground in scenes.GROUNDS
        return scenes.render(scenes.Scene(things, ground if drawn else scenes.PHOTO, 1, None if drawn else _square(ground)), SIZE).image
    return _mask(POSES[name], name in MIRRORED) if name in POSES else _view(names().index(name))


def _view(number: int) -> np.ndarray:
    """DreamCom's subject in one of its `VIEWS`."""
    ground, x, y, size, tilt = VIEWS[number]
    drawn = ground in scenes.GROUNDS
    thing = scenes.Thing(SHAPE, PAINT, x, y, size, tilt)
    return scenes.render(scenes.Scene((thing,), ground if drawn else scenes.PHOTO, number, None if drawn else _square(ground)), SIZE).image


def _mask(things: tuple[scenes.Thing, ...], mirrored: bool) -> np.ndarray:
    """Where these things are, in white. They are turned as a picture is: `scenes` cuts off what leaves an object's square."""
    white = np.zeros((SIZE, SIZE), np.uint8)
    for thing in things:
        upright = scenes.render(scenes.Scene((replace(thing, tilt=0.0),), SCENE.ground), SIZE).masks[0]
        mask = Image.fromarray((upright * 255).round().astype(np.uint8))
        turned = mask.rotate(-thing.tilt, Image.Resampling.BICUBIC, center=(thing.x * SIZE, thing.y * SIZE))
        white = np.maximum(white, np.asarray(turned))
    return (white[:, ::-1] if mirrored else white)[..., None].repeat(3, 2)


def _square(name: str) -> np.ndarray:
    """The middle of a photograph."""
    photo = photos.load(name)
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    return photo[top : top + side, left : left + side]
