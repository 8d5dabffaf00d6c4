"""Normalised correlation of two pictures at every whole shift, where a mask lets it look. Pure tensor work, no ComfyUI.

Lewis, "Fast normalized cross-correlation" (1995), with the masks of Padfield, "Masked object registration in the Fourier domain" (2012).
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SEEN = 0.75
"""The part of the mask that must have a partner at a shift."""


def correlation(original: Tensor, piece: Tensor, outside: Tensor, reach: int) -> Tensor:
    """Pearson's correlation of original(x) and piece(x + shift) over the x in `outside` whose partner lies in the piece.

    All [h, w], or several pieces [N, h, w] at once. The result [2 reach + 1, 2 reach + 1] (of each) is for shifts of -reach..reach pixels,
    rows down and columns to the right; 0 where more than a quarter of the partners are missing.
    """
    size = (original.shape[0] + 2 * reach, original.shape[1] + 2 * reach)
    weight = outside.double()
    first = original.double() - original[outside].mean().double()
    second = piece.double() - piece.mean((-2, -1), keepdim=True).double()

    def transformed(plane: Tensor) -> Tensor:
        return torch.fft.rfft2(plane, s=size)

    def summed(one: Tensor, other: Tensor) -> Tensor:
        whole = torch.fft.irfft2(one * other, s=size)
        return whole.roll((reach, reach), (-2, -1))[..., : 2 * reach + 1, : 2 * reach + 1]

    seen, of_first, square_of_first = (transformed(part).conj() for part in (weight, first * weight, first.square() * weight))
    there, of_second, square_of_second = (transformed(part) for part in (torch.ones_like(weight), second, second.square()))
    count = summed(seen, there).clamp(min=1e-9)
    mean_first = summed(of_first, there) / count
    mean_second = summed(seen, of_second) / count
    together = summed(of_first, of_second) / count - mean_first * mean_second
    variance_first = (summed(square_of_first, there) / count - mean_first.square()).clamp(min=0)
    variance_second = (summed(seen, square_of_second) / count - mean_second.square()).clamp(min=0)
    scores = together / (variance_first * variance_second).sqrt().clamp(min=1e-8)
    return torch.where(count >= LEAST_SEEN * weight.sum(), scores, torch.zeros_like(scores)).float()
