"""A judge of pictures: which shapes in which colours stand where, and on what ground.

A small network, trained on renders only (`python -m demo.train_judge`), that names every pixel's shape and colour and the
picture's ground. It scores the tiny model's pictures; its own accuracy on fresh renders is part of every table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import scenes

FILE = Path(__file__).resolve().parent / "judge.safetensors"
SIZE = 128
SHAPE_NAMES: tuple[str, ...] = ("", *scenes.SHAPES)
COLOUR_NAMES: tuple[str, ...] = ("", *scenes.COLOURS)
GROUND_NAMES: tuple[str, ...] = (*scenes.GROUNDS, scenes.PHOTO)
SMALLEST = 0.006
"""An object is at least this part of the picture (a 10-pixel square of 128)."""


def _double(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers += [nn.Conv2d(width, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers)


class Judge(nn.Module):
    """Pictures [B, 3, 128, 128] in 0..1 to logits: shape [B, 11, 64, 64], colour [B, 9, 64, 64], ground [B, 9].

    Class 0 of shape and colour is "no object".
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList([_double(widths[max(0, i - 1)], w) for i, w in enumerate(widths)])
        self.up = nn.ModuleList([_double(widths[i] + widths[i - 1], widths[i - 1]) for i in (3, 2, 1)])
        self.shape, self.colour = nn.Conv2d(width, len(SHAPE_NAMES), 1), nn.Conv2d(width + 3, len(COLOUR_NAMES), 1)
        self.ground = nn.Linear(sum(widths), len(GROUND_NAMES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(pictures * 2 - 1)
        levels = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else F.max_pool2d(x, 2))
            levels.append(x)
        ground = self.ground(torch.cat([level.mean((2, 3)) for level in levels], 1))
        for block, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))
        return self.shape(x), self.colour(torch.cat([x, F.avg_pool2d(pictures, 2)], 1)), ground


@dataclass(frozen=True)
class Found:
    """One object in a picture: its shape, its colour, its mask (bool [64, 64]) and its mean colour (0..255)."""

    shape: str
    colour: str
    mask: np.ndarray
    mean: np.ndarray

    @property
    def centre(self) -> float:
        """Where it stands from left (0) to right (1)."""
        return float(np.nonzero(self.mask)[1].mean() / self.mask.shape[1])


@dataclass(frozen=True)
class Verdict:
    """The objects in a picture, from left to right, and its ground."""

    objects: tuple[Found, ...]
    ground: str

    def best(self, shape: str) -> Found | None:
        """The largest object of a shape; the largest of any shape if there is none of it."""
        same = [found for found in self.objects if found.shape == shape] or list(self.objects)
        return max(same, key=lambda found: int(found.mask.sum()), default=None)


def load(file: Path = FILE) -> Judge:
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()})
    return judge.eval()


@torch.no_grad()
def look(judge: Judge, pictures: Tensor) -> list[Verdict]:
    """What the judge sees in pictures [B, H, W, 3] in 0..1 (scaled to 128 pixels)."""
    from scipy import ndimage

    small = F.interpolate(pictures.movedim(-1, 1).float(), size=(SIZE, SIZE), mode="bilinear", antialias=True).clamp(0, 1)
    verdicts = []
    for start in range(0, len(small), 32):
        batch = small[start : start + 32]
        shapes, colours, grounds = (part.softmax(1) for part in judge(batch))
        half = F.avg_pool2d(batch, 2).movedim(1, -1).numpy() * 255
        for shape, colour, ground, pixels in zip(shapes, colours, grounds, half, strict=True):
            labels, count = ndimage.label((shape[0] < 0.5).numpy())
            objects = []
            for number in range(1, count + 1):
                mask = labels == number
                if mask.mean() < SMALLEST:
                    continue
                where = torch.from_numpy(mask)
                name = SHAPE_NAMES[1 + int(shape[1:, where].sum(1).argmax())]
                paint = COLOUR_NAMES[1 + int(colour[1:, where].sum(1).argmax())]
                core = ndimage.binary_erosion(mask)
                objects.append(Found(name, paint, mask, pixels[core if core.sum() > 8 else mask].mean(0)))
            verdicts.append(Verdict(tuple(sorted(objects, key=lambda found: found.centre)), GROUND_NAMES[int(ground.argmax())]))
    return verdicts


def colour_error(mean: np.ndarray, colour: str) -> float:
    """CIEDE2000 between a mean colour (0..255) and a named one as it is rendered (its light included)."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    wanted = np.asarray(scenes.COLOURS[colour], np.float32) * scenes.MEAN_LIGHT
    return float(deltaE_ciede2000(rgb2lab(mean.reshape(1, 1, 3) / 255), rgb2lab(wanted.clip(0, 255).reshape(1, 1, 3) / 255))[0, 0])
