"""What every training asks of the pictures and masks that nodes give it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...images import masks

SMALLEST = 16
"""A marked object is at least this many pixels, or it is taken for a slip of the brush."""


def separate(images: Sequence[Tensor], wanted: str) -> list[Tensor]:
    """Takes IMAGE batches [B, H, W, C] apart into pictures [H, W, 3], float32 in 0..1, on the CPU.

    ValueError where there is none: `wanted` says what to wire.
    """
    found = [one for batch in images for one in batch[..., :3].detach().float().cpu().clamp(0, 1)]
    if not found:
        raise ValueError(f"no picture was given: wire {wanted}.")
    return found


def separate_masks(marks: Sequence[Tensor]) -> list[Tensor]:
    """Takes MASK batches [B, H, W] apart into masks [H, W], float32 in 0..1, on the CPU."""
    return [one for batch in marks for one in masks.to_mask(batch, "masks").detach().cpu()]


def check_numbers(number: int, image: Tensor) -> None:
    """Refuses picture `number`, counted from 1, if it holds NaN or infinite values: ValueError."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(
            f"picture {number} holds values that are no numbers (NaN): a node before it failed, often a VAE in half precision. "
            "Look at that picture, and wire one that is whole."
        )


def check_same_size(number: int, image: Tensor, mask: Tensor) -> None:
    """Refuses a mask [..., H, W] of another size than its picture [H, W, 3], which is number `number` from 1: ValueError."""
    height, width = image.shape[:2]
    if mask.shape[-2:] != (height, width):
        raise ValueError(
            f"picture {number} is {width} x {height} pixels but its mask {mask.shape[-1]} x {mask.shape[-2]}: make the mask from the same "
            "picture, before or after both are resized."
        )


def marking(marks: Tensor) -> Tensor:
    """Picks of masks [N, H, W] those that mark something."""
    return marks[(marks > 0.5).flatten(1).sum(1) >= SMALLEST]


def finite(latents: Tensor) -> Tensor:
    """Gives latents back as they are. ValueError where the VAE gave no numbers."""
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            "the VAE gives values that are no numbers (NaN): its half precision overflows, as the first SDXL VAE's does. Load "
            "another one (Load VAE), or start ComfyUI with --fp32-vae."
        )
    return latents
