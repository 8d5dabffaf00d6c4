"""Brings a painted piece to its surroundings' colours at the seam. Pure tensor work, no ComfyUI.

The difference between original and piece just outside of the mask is carried smoothly over the mask and added, as seamless cloning does
(Perez, Gangnet and Blake, "Poisson image editing", 2003), here by Shepard's interpolation with an inverse cube, which comes close to the
membrane of that paper and is one convolution (Farbman, Fattal and Lischinski, "Convolution pyramids", 2011).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 192
"""The longer side in pixels at which the differences are carried on: they are smooth."""
RING = 0.03
"""How far from the mask the surroundings count, as a part of the longer side."""
SOFT = 1.5
"""Distance in pixels of that size within which differences are averaged, so that grain is not carried on."""
TOLERANCE = 0.02
"""The deviation that differences may have from their neighbours' without being let go of."""
ROUNDS = 3


def seam_matched(piece: Tensor, original: Tensor, outside: Tensor) -> Tensor:
    """The piece [h, w, 3] with the original's colours at the seam, in 0..1; the same tensor if nothing lies outside.

    `original` [h, w, 3]; `outside` (bool [h, w]) where the piece was not to be painted. Where the surroundings were painted anew they are
    let go of.
    """
    height, width = outside.shape
    scale = min(1.0, SIZE / max(height, width))
    small = [max(1, round(side * scale)) for side in (height, width)]
    known = F.interpolate(outside[None, None].float(), size=small, mode="area")[0, 0] > 0.999
    reach = max(2, round(RING * max(small)))
    near = F.max_pool2d((~known)[None].float(), 2 * reach + 1, 1, reach)[0] > 0
    ring = known & near
    if not bool(ring.any()):
        return piece
    difference = (original.float() - piece.float()).movedim(-1, 0)[None]
    difference = F.interpolate(difference, size=small, mode="area")[0]
    carried = _carried(difference, ring)
    correction = F.interpolate(carried[None], size=(height, width), mode="bilinear", align_corners=False)[0].movedim(0, -1)
    return (piece.float() + correction).clamp(0, 1).to(piece.dtype)


def _carried(difference: Tensor, ring: Tensor) -> Tensor:
    """Differences [3, h, w] of the ring (bool [h, w]) carried over all pixels, without those that stand alone."""
    weight = ring.float()
    middle = difference[:, ring].median(1).values[:, None, None]
    spread = TOLERANCE + 1.4826 * float((difference - middle).square().mean(0).sqrt()[ring].median())
    expected = middle.expand_as(difference)
    for _ in range(ROUNDS):
        off = (difference - expected).square().mean(0)
        weight = ring * (1 - off / (4.685 * spread) ** 2).clamp(min=0) ** 2
        if float(weight.sum()) < 0.05 * float(ring.sum()):
            return torch.zeros_like(difference)
        expected = shepard(difference, weight)
    return expected


def shepard(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of `values` [C, h, w] at each pixel, weighed by `weight` [h, w] and the inverse cube of the distance."""
    height, width = weight.shape
    size = (2 * height, 2 * width)
    rows, columns = (torch.fft.fftfreq(2 * side, 1 / (2 * side), dtype=torch.float64) for side in (height, width))
    kernel = (rows[:, None] ** 2 + columns[None] ** 2 + SOFT**2) ** -1.5
    spectrum = torch.fft.rfft2(kernel)
    planes = torch.cat([values.double() * weight.double(), weight.double()[None]])
    summed = torch.fft.irfft2(torch.fft.rfft2(planes, s=size) * spectrum, s=size)[:, :height, :width]
    return (summed[:-1] / summed[-1:].clamp(min=1e-30)).float()
