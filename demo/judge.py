"""A judge of pictures: which shapes in which colours stand where, and on what ground; and how alike two objects are.

Two small networks, trained on renders only (`python -m demo.train_judge`): one finds the objects, their colours and the
ground; the other names an object's shape from its silhouette alone. They score the tiny model's pictures; their own accuracy
on fresh renders is part of every table. What both see of a cut-out object on the way makes its `features`.
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
PART = 0.15
"""A colour is one of an object's two when at least this part of it has that colour."""
ALONE = 0.6
"""How much of the side of its picture a cut-out object takes: about what the renders' objects do."""


def _double(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers += [nn.Conv2d(width, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers)


class Judge(nn.Module):
    """Pictures [B, 3, 128, 128] in 0..1 to logits: object or not [B, 64, 64], colour [B, 9, 64, 64] (0: none), ground [B, 9].

    `silhouette` names shapes: cut-out objects [B, 1, 32, 32] in 0..1 to logits [B, 10]. `usual` is the mean and the deviation
    of what `raw_features` gives for renders [2, C].
    """

    usual: Tensor

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList([_double(widths[max(0, i - 1)], w) for i, w in enumerate(widths)])
        self.up = nn.ModuleList([_double(widths[i] + widths[i - 1], widths[i - 1]) for i in (3, 2, 1)])
        self.found = nn.Conv2d(width, 1, 1)
        self.colour = nn.Conv2d(width + 3, len(COLOUR_NAMES), 1)
        self.ground = nn.Linear(sum(widths), len(GROUND_NAMES))
        stages = [_double(1, 16), nn.MaxPool2d(2), _double(16, 32), nn.MaxPool2d(2), _double(32, 48), nn.MaxPool2d(2)]
        self.silhouette = nn.Sequential(*stages, nn.Flatten(), nn.Linear(48 * 16, len(scenes.SHAPES)))
        self.register_buffer("usual", torch.stack([torch.zeros(n := sum(self.sizes)), torch.ones(n)]))

    @property
    def sizes(self) -> list[int]:
        """How many features each of the levels gives: mean and deviation of every channel, and the silhouette's."""
        widths = [block[0].out_channels for block in (*self.down, *self.up)]  # pyright: ignore[reportIndexIssue]
        return [*(2 * width for width in widths), 48 * 16]

    def levels(self, pictures: Tensor) -> list[Tensor]:
        """What the first network sees on its way: four levels down to a sixteenth of the picture, and three up again to a half."""
        x = self.stem(pictures * 2 - 1)
        levels = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else F.max_pool2d(x, 2))
            levels.append(x)
        for block, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))
            levels.append(x)
        return levels

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.levels(pictures)
        ground = self.ground(torch.cat([level.mean((2, 3)) for level in levels[: len(self.down)]], 1))
        return self.found(levels[-1])[:, 0], self.colour(torch.cat([levels[-1], F.avg_pool2d(pictures, 2)], 1)), ground


@dataclass(frozen=True)
class Found:
    """One object in a picture: its shape, its colour, its mask (bool [64, 64]), its mean colour (0..255).

    `colours` is which part of it has each colour.
    """

    shape: str
    colour: str
    mask: np.ndarray
    mean: np.ndarray
    colours: dict[str, float]

    @property
    def centre(self) -> float:
        """Where it stands from left (0) to right (1)."""
        return float(np.nonzero(self.mask)[1].mean() / self.mask.shape[1])

    def painted(self, first: str, second: str) -> bool:
        """Whether these are its two main colours, and each of them is at least `PART` of it."""
        main = sorted(self.colours, key=lambda name: -self.colours[name])[:2]
        return set(main) == {first, second} and min(self.colours[name] for name in main) >= PART


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
    state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()}
    judge.load_state_dict(state)
    return judge.eval()


def cut_out(found: Tensor, mask: np.ndarray) -> Tensor:
    """One object of a picture [64, 64] in 0..1 as the silhouette network takes it: its box with a margin, [1, 32, 32]."""
    x, y, width, height = scenes.box_of(mask.astype(np.float32))
    side = max(width, height) + 4
    alone = F.pad(found * torch.from_numpy(mask), (side,) * 4)
    left, top = side + x + (width - side) // 2, side + y + (height - side) // 2
    return F.interpolate(alone[None, None, top : top + side, left : left + side], size=(32, 32), mode="bilinear", antialias=True)[0]


def core(mask: np.ndarray) -> np.ndarray:
    """The mask without its edge, whose pixels are half of what lies behind; the whole mask where little else is left."""
    from scipy import ndimage

    inner = np.asarray(ndimage.binary_erosion(mask), bool)
    return inner if inner.sum() > 8 else mask


def _object(judge: Judge, found: Tensor, colour: Tensor, pixels: np.ndarray, mask: np.ndarray) -> Found:
    """The object at `mask` of what the first network says of a picture [64, 64] and [9, 64, 64], and the picture's pixels [64, 64, 3]."""
    shape = scenes.SHAPES[int(judge.silhouette(cut_out(found, mask)[None]).argmax())]
    inside = colour[1:, torch.from_numpy(mask)]
    paint = COLOUR_NAMES[1 + int(inside.sum(1).argmax())]
    parts = torch.bincount(inside.argmax(0), minlength=len(scenes.COLOURS)) / inside.shape[1]
    return Found(shape, paint, mask, pixels[core(mask)].mean(0), dict(zip(scenes.COLOURS, parts.tolist(), strict=True)))


@torch.no_grad()
def cells(judge: Judge, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Of pictures [B, H, W, 3] in 0..1, cell by cell: how sure an object is there [B, 64, 64], and of which colour [B, 8, 64, 64]."""
    found, colours, _ = judge(scaled(pictures))
    return found.sigmoid(), colours.softmax(1)[:, 1:]


@torch.no_grad()
def look(judge: Judge, pictures: Tensor, masks: Tensor | None = None) -> list[Verdict]:
    """What the judge sees in pictures [B, H, W, 3] in 0..1 (scaled to 128 pixels).

    With masks [B, H, W], objects are what it sees of them there: where only a box was painted, what goes on outside is none of it.
    """
    from skimage import measure

    small = scaled(pictures)
    within = torch.ones(len(small), 1, 1, 1) if masks is None else masks[:, None].float()
    within = F.interpolate(within, size=(SIZE // 2, SIZE // 2), mode="area")[:, 0]
    verdicts = []
    for start in range(0, len(small), 32):
        batch = small[start : start + 32]
        found, colours, grounds = judge(batch)
        found = found.sigmoid() * within[start : start + 32]
        colours = colours.softmax(1)
        half = F.avg_pool2d(batch, 2).movedim(1, -1).numpy() * 255
        for alone, colour, ground, pixels in zip(found, colours, grounds, half, strict=True):
            labels = np.asarray(measure.label((alone > 0.5).numpy(), connectivity=1))
            parts = [mask for number in range(1, int(labels.max()) + 1) if (mask := labels == number).mean() >= SMALLEST]
            objects = [_object(judge, alone, colour, pixels, mask) for mask in parts]
            verdicts.append(Verdict(tuple(sorted(objects, key=lambda found: found.centre)), GROUND_NAMES[int(ground.argmax())]))
    return verdicts


def scaled(pictures: Tensor) -> Tensor:
    """[B, H, W, 3] as the judge takes them: [B, 3, 128, 128]."""
    return F.interpolate(pictures.movedim(-1, 1).float(), size=(SIZE, SIZE), mode="bilinear", antialias=True).clamp(0, 1)


def alone(picture: Tensor, mask: Tensor) -> Tensor:
    """An object of a picture [3, H, W] on mid grey, in the middle of 128 pixels, and its mask: [4, 128, 128]. `mask` [H, W] in 0..1."""
    x, y, width, height = scenes.box_of(mask.numpy())
    if not width:
        raise ValueError("the mask is empty")
    side = round(max(width, height) / ALONE)
    both = F.pad(torch.cat([picture * mask + 0.5 * (1 - mask), mask[None]]), (side,) * 4)
    both[:3] += 0.5 * (1 - F.pad(torch.ones_like(mask), (side,) * 4))
    left, top = side + x + (width - side) // 2, side + y + (height - side) // 2
    return F.interpolate(both[None, :, top : top + side, left : left + side], size=(SIZE, SIZE), mode="bilinear", antialias=True)[0]


@torch.no_grad()
def raw_features(judge: Judge, pictures: Tensor, masks: Tensor) -> Tensor:
    """What both networks see of cut-out objects, [B, C]: each level's mean and deviation over the object, then the silhouette's."""
    whole = F.interpolate(masks[:, None].float(), size=pictures.shape[1:3], mode="bilinear")[:, 0]
    cut = torch.stack([alone(picture, mask) for picture, mask in zip(pictures.movedim(-1, 1).float(), whole, strict=True)])
    found = []
    for level in judge.levels(cut[:, :3]):
        weight = F.interpolate(cut[:, 3:], size=level.shape[2:], mode="area") + 1e-6
        weight = weight / weight.sum((2, 3), keepdim=True)
        mean = (level * weight).sum((2, 3), keepdim=True)
        found += [mean[:, :, 0, 0], ((level - mean) ** 2 * weight).sum((2, 3)).sqrt()]
    small = F.avg_pool2d(cut[:, 3], 2)
    shapes = torch.stack([cut_out(one, (one > 0.5).numpy()) for one in small])
    return torch.cat([*found, judge.silhouette[:-1](shapes)], 1)


def features(judge: Judge, pictures: Tensor, masks: Tensor) -> Tensor:
    """Embeddings [B, C] of length one of the objects at `masks` [B, h, w] in pictures [B, H, W, 3], all in 0..1.

    Each level's features, less what is usual, count alike, so that the product of two embeddings is their levels' mean cosine:
    about zero for two objects that have nothing in common, one for the same picture. ValueError where a mask is empty.
    """
    raw = (raw_features(judge, pictures, masks) - judge.usual[0]) / judge.usual[1]
    return F.normalize(torch.cat([F.normalize(level, dim=1) for level in raw.split(judge.sizes, 1)], 1), dim=1)


def colour_errors(pixels: np.ndarray, colour: str) -> np.ndarray:
    """CIEDE2000 [N] between pixels [N, 3] (0..255) and a named colour as it is rendered (its light included)."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    wanted = np.asarray(scenes.COLOURS[colour], np.float32) * scenes.MEAN_LIGHT
    return np.asarray(deltaE_ciede2000(rgb2lab(pixels[None] / 255), rgb2lab(wanted.clip(0, 255)[None, None] / 255)))[0]


def colour_error(mean: np.ndarray, colour: str) -> float:
    """The same of one mean colour [3]."""
    return float(colour_errors(mean[None], colour)[0])
