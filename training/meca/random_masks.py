"""Random masks for training ("Patch-enhanced Mask Encoder Prompt Image Generation", section 4.1, which does not say of what kind)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 0.1
MOST = 0.9
"""A mask covers this part of the picture at least, and at most."""
SHAPES = ("rectangle", "ellipse", "blob")


def random_mask(size: int, rng: np.random.Generator) -> Tensor:
    """bool [size, size]: the inside or the outside of a rectangle, an ellipse or a free form, all equally likely.

    Every covered part from `LEAST` to `MOST` is equally likely too, and met to within a row of pixels.
    """
    shape = SHAPES[rng.integers(len(SHAPES))]
    part = rng.uniform(LEAST, MOST)
    field = _blob(size, rng) if shape == "blob" else _around_a_point(size, shape, rng)
    if rng.random() < 0.5:
        field = -field
    limit = np.partition(field.flatten().numpy(), round(part * size * size) - 1)[round(part * size * size) - 1]
    return field <= float(limit)


def _around_a_point(size: int, shape: str, rng: np.random.Generator) -> Tensor:
    """How far each pixel lies from a point in the picture's middle half, measured so that equal distances form the shape."""
    (y, x), ratio = rng.uniform(0.25, 0.75, 2), float(np.exp(rng.uniform(-0.7, 0.7)))
    centres = (torch.arange(size) + 0.5) / size
    rows, columns = ((centres - y) * ratio)[:, None], ((centres - x) / ratio)[None, :]
    return torch.maximum(rows.abs(), columns.abs()) if shape == "rectangle" else rows**2 + columns**2


def _blob(size: int, rng: np.random.Generator) -> Tensor:
    """Hills and valleys, two to four of them along each side."""
    cells = int(rng.integers(3, 6))
    coarse = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), np.float32))
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0, 0]
