"""Pictures of a subject and the masks that mark it, from nodes or from a folder, checked before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...images import masks
from . import marks as doubtful
from .pictures import SMALLEST, check_numbers, check_same_size, separate, separate_masks

log = logging.getLogger(__name__)


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
    pictures = separate(images, "three to five pictures of the subject, each with its mask")
    marked = separate_masks(marks)
    if len(pictures) != len(marked):
        raise ValueError(
            f"{len(pictures)} pictures but {len(marked)} masks: give one mask for each picture, in the same order "
            "(SAM Mask with `choice` other than `all` makes one for each)."
        )
    return [_reference(number, image, mask) for number, (image, mask) in enumerate(zip(pictures, marked, strict=True), 1)]


def _reference(number: int, image: Tensor, mask: Tensor) -> Reference:
    check_numbers(number, image)
    if int((mask > 0.5).sum()) < SMALLEST:  # before the sizes: Load Image gives an empty mask of 64 x 64 for a picture without one
        raise ValueError(
            f"the mask of picture {number} marks nothing: point SAM Mask at the subject in that picture, or leave the picture out."
        )
    check_same_size(number, image, mask)
    if (sentence := doubtful.doubt(f"picture {number}", mask)) is not None:
        log.warning("%s", sentence)
    return Reference(image, mask)


def doubts(references: Sequence[Reference]) -> tuple[str, ...]:
    """What should be looked at before these are learned from (`doubtful.doubts`)."""
    return doubtful.doubts((f"picture {number}", reference.mask) for number, reference in enumerate(references, 1))


def fingerprint(references: Sequence[Reference]) -> str:
    """The same for the same pictures and masks: 16 hexadecimal digits."""
    import hashlib

    digest = hashlib.sha256()
    for reference in references:
        for tensor in (reference.image, reference.mask):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update((tensor * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
