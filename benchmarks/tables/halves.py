"""The two halves of a picture, in which tables on tiny-edit ask for things."""

from __future__ import annotations

import torch
from torch import Tensor

MIDDLES: dict[str, float] = {"left": 0.25, "right": 0.75}
"""Where across a picture the middle of each half is."""


def other_side(side: str) -> str:
    """The other half's name."""
    return "right" if side == "left" else "left"


def half(side: str, size: int) -> Tensor:
    """The half of a picture of that many pixels a side as a MASK, [1, S, S]."""
    mask = torch.zeros(1, size, size)
    mask[:, :, slice(0, size // 2) if side == "left" else slice(size // 2, size)] = 1
    return mask
