"""MCGM's losses (Skaik et al., equations 1 to 4; Avrahami et al., "Break-A-Scene"), as pure tensor maths."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-6


def masked(error: Tensor, mask: Tensor, background: float = 0.0) -> Tensor:
    """Equation 1: the squared error [B, C, h, w] where the mask [B, 1, h, w] is at least a half; the mean over all elements.

    As in Break-A-Scene's code the mean counts what lies outside too, so small subjects weigh less. `background` is the weight of the
    error outside, 0 in the paper.
    """
    inside = (mask >= 0.5).to(error.dtype)
    return (error**2 * (inside + (1 - inside) * background)).mean()


def of_maps(maps: Tensor, masks: Tensor) -> Tensor:
    """Equation 2's distance: each map over its own largest value against its mask, both [B, n, h, w]; mean over cells and pictures,
    summed over the n subjects."""
    largest = maps.flatten(2).amax(2).clamp(min=SMALLEST)[..., None, None]
    return ((maps / largest - masks) ** 2).mean((0, 2, 3)).sum()


def attention(maps: Tensor, masks: Tensor, mask_weight: float) -> Tensor:
    """Equation 3 for masks [B, n, h, w] and maps [B, n, h, w] of the handles, or [B, 2 n, h, w] of the handles and the mask tokens."""
    count = masks.shape[1]
    handles = maps[:, :count]
    tokens = maps[:, count:]
    own = of_maps(handles, masks)
    return own + mask_weight * of_maps(tokens, masks) if tokens.shape[1] and mask_weight else own


def total(reconstruction: Tensor, attention_loss: Tensor, weight: float) -> Tensor:
    """Equation 4."""
    return torch.add(reconstruction, attention_loss, alpha=weight)
