"""What tiny-edit is given in place of the pictures that the transformers' workflows load: things of its own world.

It knows no real cup and no real cat. Each picture has the name and the size of the one that it stands in for, and its things are where
the workflows click and where they leave room. The cut-outs are fetched by `demo.tiny_edit.world`; the grounds are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .tiny_edit import scenes, world

MUG, CAT, PRESENT, BALL = "2615", "1f431", "1f381", "26bd"
PLANKS = scenes.Ground("wood", seed=4)
SCENES: dict[str, tuple[tuple[int, int], scenes.Scene]] = {
    "coffee": ((600, 400), scenes.Scene((scenes.Placed(MUG, 0.5, 0.6, 0.4),), PLANKS)),
    "chelsea": ((451, 300), scenes.Scene((scenes.Placed(CAT, 0.5, 0.52, 0.5),), scenes.Ground("yellow wall", seed=2))),
    "two-products": (
        (512, 512),
        scenes.Scene((scenes.Placed(PRESENT, 0.27, 0.4, 0.4), scenes.Placed(BALL, 0.72, 0.6, 0.36)), scenes.Ground("snow", seed=3)),
    ),
}
"""Of each picture, by the name of the file without its ending: its width and height, and the scene that its middle shows."""


def picture(place: world.World, name: str) -> np.ndarray:
    """Draws the picture that stands in for `name`, uint8 [H, W, 3]; KeyError if there is none."""
    (width, height), scene = SCENES[name]
    side = max(width, height)
    top, left = (side - height) // 2, (side - width) // 2
    return scenes.render(place, scene, side).image[top : top + height, left : left + width]


def add(folder: Path, names: Iterable[str]) -> None:
    """Puts them into a server's input folder under the files' own names, fetching the cut-outs where they are missing."""
    names = list(names)
    if not names:
        return
    place = world.load(world.prepare(photographs=False))
    for name in names:
        Image.fromarray(picture(place, Path(name).stem)).save(folder / name)
