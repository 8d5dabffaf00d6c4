"""Pictures of a subject and the masks that mark it, from nodes or from a folder, checked before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...images import masks

log = logging.getLogger(__name__)

SMALLEST = 16
"""A marked subject is at least this many pixels, or it is taken for a slip of the brush."""
NEARLY_ALL = 0.98
"""A box of more than this part of a picture is likely to be an inverted mask's."""


@dataclass(frozen=True)
class Reference:
    """A picture, float32 [H, W, 3] in 0..1, and its subject's mask, float32 [H, W] in 0..1, on the CPU."""

    image: Tensor
    mask: Tensor

    @cached_property
    def box(self) -> masks.Box:
        """The smallest box around the subject."""
        found = masks.bounding_box(self.mask)
        if found is None:
            raise ValueError("the mask is empty")
        return found


def pair(images: Sequence[Tensor], marks: Sequence[Tensor]) -> list[Reference]:
    """References of IMAGE batches [B, H, W, 3] and MASK batches [B, H, W], in their order; the batches may differ in size.

    ValueError where there is no picture, not one mask for each, nothing marked, a mask of another shape than its picture, or a
    picture that holds values that are no numbers.
    """
    pictures = [one for batch in images for one in batch[..., :3].detach().float().cpu().clamp(0, 1)]
    marked = [one for batch in marks for one in masks.to_mask(batch, "masks").detach().cpu()]
    if not pictures:
        raise ValueError("no picture was given: wire three to five pictures of the subject, each with its mask.")
    if len(pictures) != len(marked):
        raise ValueError(
            f"{len(pictures)} pictures but {len(marked)} masks: give one mask for each picture, in the same order "
            "(SAM Mask with `choice` other than `all` makes one for each)."
        )
    return [_reference(number, image, mask) for number, (image, mask) in enumerate(zip(pictures, marked, strict=True), 1)]


def finite(latents: Tensor) -> Tensor:
    """The latents themselves. ValueError where the VAE gave no numbers."""
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            "the VAE gives values that are no numbers (NaN): its half precision overflows, as the first SDXL VAE's does. Load "
            "another one (Load VAE), or start ComfyUI with --fp32-vae."
        )
    return latents


def _reference(number: int, image: Tensor, mask: Tensor) -> Reference:
    size = tuple(image.shape[:2])
    given = tuple(mask.shape)
    if not bool(torch.isfinite(image).all()):
        raise ValueError(
            f"picture {number} holds values that are no numbers (NaN): a node before it failed, often a VAE in half precision. "
            "Look at that picture, and wire one that is whole."
        )
    if int((mask > 0.5).sum()) < SMALLEST:  # before the sizes: Load Image gives an empty mask of 64 x 64 for a picture without one
        raise ValueError(
            f"the mask of picture {number} marks nothing: point SAM Mask at the subject in that picture, or leave the picture out."
        )
    if size != given:
        raise ValueError(
            f"picture {number} is {size[1]} x {size[0]} pixels but its mask {given[1]} x {given[0]}: make the mask from the same "
            "picture, before or after both are resized."
        )
    reference = Reference(image, mask)
    if reference.box["width"] * reference.box["height"] > NEARLY_ALL * mask.numel():
        log.warning(
            "The mask of picture %d reaches over all of it. If it marks the background, invert it; else nothing is left around the "
            "subject to learn from.", number,
        )  # fmt: skip
    return reference


def fingerprint(references: Sequence[Reference]) -> str:
    """The same for the same pictures and masks: 16 hexadecimal digits."""
    import hashlib

    digest = hashlib.sha256()
    for reference in references:
        for tensor in (reference.image, reference.mask):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update((tensor * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
