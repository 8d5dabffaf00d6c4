"""Masks of simple shapes, and a mask encoder for them."""

from __future__ import annotations

import torch
from maskprompt.conditioning.handles import Handle

CAT = Handle("fox-cat", "cat", "12ab")
DOG = Handle("fox-dog", "striped dog", "34cd")


def blobs(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Binary masks [count, height, width] of large shapes, none empty and none alike."""
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") > 0.5)[:, 0].float()
