"""What the demo's artist brings: five pictures of one patterned object, which the tiny model never saw, under the workflows' file names."""

from __future__ import annotations

import numpy as np

from . import photos, scenes

SHAPE, PAINT = "heart", scenes.Paint("purple", "yellow", "stripes")
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


def names() -> list[str]:
    return [f"{PREFIX}{number}" for number in range(1, len(VIEWS) + 1)]


def load(name: str) -> np.ndarray:
    """The picture `subject-1` to `subject-5` as uint8 [512, 512, 3]; ValueError for any other name."""
    if name not in names():
        raise ValueError(f"no picture {name!r} of the subject; there are {', '.join(names())}")
    number = names().index(name)
    ground, x, y, size, tilt = VIEWS[number]
    drawn = ground in scenes.GROUNDS
    thing = scenes.Thing(SHAPE, PAINT, x, y, size, tilt)
    return scenes.render(scenes.Scene((thing,), ground if drawn else scenes.PHOTO, number, None if drawn else _square(ground)), SIZE).image


def _square(name: str) -> np.ndarray:
    """The middle of a photograph."""
    photo = photos.load(name)
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    return photo[top : top + side, left : left + side]
