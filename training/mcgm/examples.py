"""What MCGM learns from: one picture, shown again and again with some of its subjects, flipped, moved, on other grounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...images import masks
from ...models.mcgm import mask_encoder
from ..data.pictures import finite
from .scene import Background, Scene

AT_ONCE = 8
"""Pictures are encoded before training, so that the VAE need not stay loaded: this many at most."""
SMALLEST = 0.35
LARGEST = 0.75
"""A moved subject's size, the root of its box's area, as a part of the canvas's; less where several share it, or where so much
would not fit."""
TURN = 20.0
STRETCH = 1.25
"""Degrees by which a moved subject is turned at most, and the factor between its new proportions and its own."""
SHARED = 0.05
TRIES = 30
"""Subjects are placed anew, at most so often, while one covers more than this part of another."""


@dataclass(frozen=True)
class Shown:
    """One picture [H, W, 3] in 0..1 with masks [n, H, W] of the subjects in it, whose numbers are `subjects`."""

    image: Tensor
    masks: Tensor
    subjects: tuple[int, ...]


def draw(scene: Scene, count: int, background: Background, move: bool, rng: np.random.Generator) -> Shown:
    """`count` of a fitted scene's subjects, chosen at random (union sampling), flipped with a chance of one half.

    `move`: on a plain background each subject stands by itself somewhere else, larger or smaller, turned and stretched a little. Without,
    the picture is as it was, as in the paper. On the original background nothing is moved.
    """
    subjects = tuple(int(number) for number in rng.permutation(len(scene.masks))[:count])
    if background == "plain" and move:
        shown = _moved(scene, subjects, rng)
    else:
        shown = Shown(scene.image, scene.masks[list(subjects)], subjects)
        shown = _on_plain(shown, rng) if background == "plain" else shown
    return Shown(shown.image.flip(1), shown.masks.flip(2), subjects) if rng.random() < 0.5 else shown


def _on_plain(shown: Shown, rng: np.random.Generator) -> Shown:
    union = shown.masks.amax(0)[..., None]
    return Shown(shown.image * union + _colour(rng) * (1 - union), shown.masks, shown.subjects)


def _moved(scene: Scene, subjects: Sequence[int], rng: np.random.Generator) -> Shown:
    canvas = (scene.masks.shape[1], scene.masks.shape[2])
    image = _colour(rng).expand(*canvas, 3)
    marks = []
    for number in subjects:
        pixels, mark = _apart(scene, number, len(subjects), marks, rng)
        image = image * (1 - mark[..., None]) + pixels * mark[..., None]
        marks = [other * (1 - mark) for other in marks] + [mark]
    return Shown(image, torch.stack(marks), tuple(subjects))


def _apart(scene: Scene, number: int, count: int, others: Sequence[Tensor], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A subject in a place where it covers little of the others, if one is found."""
    placed = _placed(scene.image, scene.masks[number], count, rng)
    for _ in range(TRIES):
        if all(float((placed[1] * other).sum()) <= SHARED * float(other.sum()) for other in others):
            break
        placed = _placed(scene.image, scene.masks[number], count, rng)
    return placed


def _placed(image: Tensor, mask: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A subject somewhere on a canvas of the picture's size: pixels [H, W, 3] and mask [H, W]."""
    box, (rows, columns) = masks.bounding_box(mask), mask.shape
    if box is None:
        raise ValueError("the mask is empty")
    side = float(rng.uniform(SMALLEST, LARGEST)) * math.sqrt(rows * columns / count)
    factor = side / math.sqrt(box["width"] * box["height"])
    stretch = float(STRETCH ** rng.uniform(-0.5, 0.5))
    angle = math.radians(float(rng.uniform(-TURN, TURN)))
    cos = math.cos(angle)
    sin = math.sin(angle)
    width, height = box["width"] * factor * stretch, box["height"] * factor / stretch
    wide, tall = _extent(width, height, cos, sin)
    fits = min(1.0, columns / wide, rows / tall)  # a long subject may reach further than the canvas
    width, height = max(2, round(width * fits)), max(2, round(height * fits))
    wide, tall = _extent(width, height, cos, sin)
    x, y = (_somewhere(length, room, rng) for length, room in ((wide, columns), (tall, rows)))
    cut = torch.cat([image, mask[..., None]], 2)[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]]
    small = F.interpolate(cut.movedim(-1, 0)[None], size=(height, width), mode="bilinear", antialias=True)
    across, down = torch.meshgrid(torch.arange(columns) + 0.5 - x, torch.arange(rows) + 0.5 - y, indexing="xy")
    places = torch.stack([(across * cos + down * sin) * 2 / width, (down * cos - across * sin) * 2 / height], 2)
    placed = F.grid_sample(small, places[None].float(), "bilinear", "border", align_corners=False)[0].clamp(0, 1)
    return placed[:3].movedim(0, -1), placed[3] * (places.abs() <= 1).all(2)


def _extent(width: float, height: float, cos: float, sin: float) -> tuple[float, float]:
    """How wide and tall a rectangle is when it is turned."""
    return width * cos + height * abs(sin), width * abs(sin) + height * cos


def _somewhere(length: float, room: int, rng: np.random.Generator) -> float:
    """The middle of something of this length, wholly within the room if it fits."""
    return float(rng.uniform(length / 2, room - length / 2)) if length < room else room / 2


def _colour(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(3)).float()


@dataclass(frozen=True)
class Examples:
    """Encoded pictures that show equally many subjects: `latents` [E, 4, h, w] as the VAE gives them; `cells` [E, n, 64, 64], what the mask
    encoder reads; `masks` [E, n, h, w] in 0..1, on the latents' pixels; `subjects` [E, n], the numbers of the subjects shown."""

    latents: Tensor
    cells: Tensor
    masks: Tensor
    subjects: Tensor


def encode(
    scene: Scene,
    vae: Any,
    background: Background,
    move: bool,
    count: int,
    seed: int,
    on_crop: Callable[[int, int], None] | None = None,
) -> list[Examples]:
    """About `count` pictures of a fitted scene, as many of every number of subjects from one on, through the VAE.

    `on_crop` is told how many are done, and of how many; what it raises interrupts. ValueError where the VAE gives no numbers.
    """
    rng = np.random.default_rng(seed)
    most = len(scene.masks)
    each = max(1, count // most)
    found = []
    # Not in inference mode, in which ComfyUI runs nodes: what is made there cannot take part in a gradient.
    with torch.inference_mode(False), torch.no_grad():
        for number in range(1, most + 1):
            parts: list[Examples] = []
            for first in range(0, each, AT_ONCE):
                # Drawn a few at a time: all of them in pixels would be gigabytes.
                shown = [draw(scene, number, background, move, rng) for _ in range(min(AT_ONCE, each - first))]
                parts.append(_examples(finite(vae.encode(torch.stack([one.image for one in shown])).float().cpu()), shown))
                if on_crop is not None:
                    on_crop((number - 1) * each + first + len(shown), most * each)
            found.append(_joined(parts))
    return found


def whole(scene: Scene, vae: Any) -> Examples:
    """The fitted scene itself, with all of its subjects."""
    with torch.inference_mode(False), torch.no_grad():
        shown = Shown(scene.image, scene.masks, tuple(range(len(scene.masks))))
        return _examples(finite(vae.encode(scene.image[None]).float().cpu()), [shown])


def _joined(parts: Sequence[Examples]) -> Examples:
    columns = zip(*((part.latents, part.cells, part.masks, part.subjects) for part in parts), strict=True)
    return Examples(*(torch.cat(column) for column in columns))


def _examples(latents: Tensor, shown: Sequence[Shown]) -> Examples:
    return Examples(
        latents,
        torch.stack([mask_encoder.cells(one.masks) for one in shown]),
        F.interpolate(torch.stack([one.masks for one in shown]), size=latents.shape[-2:], mode="area"),
        torch.tensor([one.subjects for one in shown]),
    )
