"""A judge of pictures: which shapes in which colours stand where, and on what ground.

Two small networks, trained on renders only (`python -m demo.train_judge`): one finds the objects, their colours and the
ground; the other names an object's shape from its silhouette alone. They score the tiny model's pictures; their own accuracy
on fresh renders is part of every table.
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
    """Pictures [B, 3, 128, 128] in 0..1 to logits: object or not [B, 64, 64], colour [B, 9, 64, 64] (0: none), ground [B, 9].

    `silhouette` names shapes: cut-out objects [B, 1, 32, 32] in 0..1 to logits [B, 10].
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList([_double(widths[max(0, i - 1)], w) for i, w in enumerate(widths)])
        self.up = nn.ModuleList([_double(widths[i] + widths[i - 1], widths[i - 1]) for i in (3, 2, 1)])
        self.found, self.colour = nn.Conv2d(width, 1, 1), nn.Conv2d(width + 3, len(COLOUR_NAMES), 1)
        self.ground = nn.Linear(sum(widths), len(GROUND_NAMES))
        stages = [_double(1, 16), nn.MaxPool2d(2), _double(16, 32), nn.MaxPool2d(2), _double(32, 48), nn.MaxPool2d(2)]
        self.silhouette = nn.Sequential(*stages, nn.Flatten(), nn.Linear(48 * 16, len(scenes.SHAPES)))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(pictures * 2 - 1)
        levels = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else F.max_pool2d(x, 2))
            levels.append(x)
        ground = self.ground(torch.cat([level.mean((2, 3)) for level in levels], 1))
        for block, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))
        return self.found(x)[:, 0], self.colour(torch.cat([x, F.avg_pool2d(pictures, 2)], 1)), ground


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


def cut_out(found: Tensor, mask: np.ndarray) -> Tensor:
    """One object of a picture [64, 64] in 0..1 as the silhouette network takes it: its box with a margin, [1, 32, 32]."""
    x, y, width, height = scenes.box_of(mask.astype(np.float32))
    side = max(width, height) + 4
    alone = F.pad(found * torch.from_numpy(mask), (side,) * 4)
    left, top = side + x + (width - side) // 2, side + y + (height - side) // 2
    return F.interpolate(alone[None, None, top : top + side, left : left + side], size=(32, 32), mode="bilinear", antialias=True)[0]


@torch.no_grad()
def look(judge: Judge, pictures: Tensor) -> list[Verdict]:
    """What the judge sees in pictures [B, H, W, 3] in 0..1 (scaled to 128 pixels)."""
    from scipy import ndimage
    from skimage import measure

    small = F.interpolate(pictures.movedim(-1, 1).float(), size=(SIZE, SIZE), mode="bilinear", antialias=True).clamp(0, 1)
    verdicts = []
    for start in range(0, len(small), 32):
        batch = small[start : start + 32]
        found, colours, grounds = judge(batch)
        found, colours = found.sigmoid(), colours.softmax(1)
        half = F.avg_pool2d(batch, 2).movedim(1, -1).numpy() * 255
        for alone, colour, ground, pixels in zip(found, colours, grounds, half, strict=True):
            labels = np.asarray(measure.label((alone > 0.5).numpy(), connectivity=1))
            objects = []
            for number in range(1, int(labels.max()) + 1):
                mask = labels == number
                if mask.mean() < SMALLEST:
                    continue
                where = torch.from_numpy(mask)
                name = scenes.SHAPES[int(judge.silhouette(cut_out(alone, mask)[None]).argmax())]
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
