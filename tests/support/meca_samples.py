"""Samples of MECA's training, and a VAE that does little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


class Vae:
    """The mean of every 8 x 8 pixels, and their brightness."""

    def __init__(self) -> None:
        self.largest = 0

    def encode(self, images: Tensor) -> Tensor:
        self.largest = max(self.largest, len(images))
        pixels = torch.cat([images, images.mean(-1, keepdim=True)], -1).movedim(-1, 1)
        return F.avg_pool2d(pixels, 8)


def draw(place: Path) -> Path:
    """Three pictures with captions: one with a mask beside it, one cut out by its alpha channel, one lying on its side."""
    place.mkdir(exist_ok=True)
    for number in range(3):
        image = Image.fromarray(np.full((40, 60, 3), 40 * number + 20, np.uint8))
        mask = np.zeros((40, 60), np.uint8)
        mask[:, :20] = 255
        if number == 0:
            Image.fromarray(mask).save(place / "0.mask.png")
        if number == 1:
            image.putalpha(Image.fromarray(mask))
        tag = Image.Exif()
        tag[0x0112] = 6 if number == 2 else 1
        image.save(place / f"{number}.png", exif=tag)
        (place / f"{number}.txt").write_text(f"\ufeffpicture  {number},\na thing\n", "utf-8")
    return place
