"""Random square crops of a reference picture: what a training on three to five pictures lives on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...images import masks
from ..data.references import Reference

FILL = 0.5
"""What lies beyond a picture's edge: mid grey, zero to the model. The loss leaves it out."""


@dataclass(frozen=True)
class Crop:
    """`image` [S, S, 3] in 0..1; `box` [S, S], 1 in the box of what is seen of the subject; `valid` [S, S], 0 where padding is; float32."""

    image: Tensor
    box: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far crops differ: with `chance` the picture is scaled by 1 ± `scale`; at least `keep` of the subject's box stays in view.

    `margin`: the box is drawn larger on each side by up to this part of its size. 0 is the paper's: subjects
    learn to fill a box to its very edges.
    """

    scale: float = 0.2
    chance: float = 0.6
    keep: float = 0.8
    tries: int = 500
    margin: float = 0.0

    def __call__(self, reference: Reference, size: int, rng: np.random.Generator) -> Crop:
        """A crop of `size` pixels (section 6.1). The picture's short side is `size` before scaling; scaled down, padding is added.

        A picture of which no such crop keeps enough is shown whole.
        """
        height, width = reference.mask.shape
        for _ in range(self.tries):
            scale = 1 + rng.uniform(-self.scale, self.scale) if rng.random() < self.chance else 1.0
            scaled = _scaled(height, width, scale * size / min(height, width))
            # Where the scaled picture is larger than the crop this is the crop's corner in it, else minus the padding before it.
            top, left = (int(rng.integers(min(0, side - size), max(0, side - size) + 1)) for side in scaled)
            if _kept(reference, scaled, top, left, size) >= self.keep:
                return self._roomy(cut(reference, scaled, top, left, size), rng)
        return self._roomy(whole(reference, size), rng)

    def _roomy(self, crop: Crop, rng: np.random.Generator) -> Crop:
        """The crop with its box drawn larger, within the crop."""
        box = masks.bounding_box(crop.box)
        if self.margin == 0 or box is None:
            return crop
        left, right = (round(box["width"] * rng.uniform(0, self.margin)) for _ in range(2))
        top, bottom = (round(box["height"] * rng.uniform(0, self.margin)) for _ in range(2))
        size = len(crop.box)
        x, y = max(0, box["x"] - left), max(0, box["y"] - top)
        width = min(size, box["x"] + box["width"] + right) - x
        height = min(size, box["y"] + box["height"] + bottom) - y
        return replace(crop, box=masks.box_mask({"x": x, "y": y, "width": width, "height": height}, size, size)[0])


def whole(reference: Reference, size: int) -> Crop:
    """The whole picture, as large as it fits, in the middle of the square."""
    height, width = reference.mask.shape
    scaled = _scaled(height, width, size / max(height, width))
    return cut(reference, scaled, -((size - scaled[0]) // 2), -((size - scaled[1]) // 2), size)


def cut(reference: Reference, scaled: tuple[int, int], top: int, left: int, size: int) -> Crop:
    """`size` x `size` pixels of the picture when it is `scaled` (height, width), from (top, left), which may lie outside it."""

    def window(tensor: Tensor, fill: float) -> Tensor:
        edges = (-left, left + size - scaled[1], -top, top + size - scaled[0])
        return F.pad(tensor, edges, value=fill)

    image = F.interpolate(reference.image.movedim(-1, 0)[None], size=scaled, mode="bilinear", antialias=True)[0].clamp(0, 1)
    mask = window(masks.resize(reference.mask[None], *scaled), 0)[0]
    found = masks.bounding_box(mask) or _box_seen(reference, scaled, top, left, size)
    return Crop(window(image, FILL).movedim(0, -1).contiguous(), masks.box_mask(found, size, size)[0], window(torch.ones(1, *scaled), 0)[0])


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    return max(1, round(height * factor)), max(1, round(width * factor))


def _spans(reference: Reference, scaled: tuple[int, int], top: int, left: int) -> list[tuple[float, float]]:
    """From where to where the subject's box reaches in the crop, which may be beyond it: rows, then columns."""
    box, (height, width) = reference.box, reference.mask.shape
    sides = ((box["y"], box["height"], scaled[0] / height, top), (box["x"], box["width"], scaled[1] / width, left))
    return [(start * factor - corner, (start + length) * factor - corner) for start, length, factor, corner in sides]


def _kept(reference: Reference, scaled: tuple[int, int], top: int, left: int, size: int) -> float:
    """Which part of the subject's box lies in the crop."""
    part = 1.0
    for low, high in _spans(reference, scaled, top, left):
        part *= max(0.0, min(high, size) - max(low, 0.0)) / (high - low)
    return part


def _box_seen(reference: Reference, scaled: tuple[int, int], top: int, left: int, size: int) -> masks.Box:
    """The part of the subject's box in the crop, at least a pixel: for a subject so thin that its scaled mask is empty."""
    (y, down), (x, right) = (
        (min(max(round(low), 0), size - 1), min(max(round(high), round(low) + 1, 1), size))
        for low, high in _spans(reference, scaled, top, left)
    )
    return {"x": x, "y": y, "width": right - x, "height": down - y}
