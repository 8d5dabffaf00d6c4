"""Which patches of a vision encoder a mask shows. Pure geometry, no ComfyUI.

The encoder sees a square of `size` pixels, cut into n x n patches of `patch` pixels (n = size // patch; what is left over at the right and
bottom is not seen). A mask covers the whole picture, whatever its own number of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CROP = "crop"
LETTERBOX = "letterbox"
FITS = (CROP, LETTERBOX)
GREY = 0.5
_EXACT = 1e-9


@dataclass(frozen=True)
class Place:
    """Where a picture lies on the square: scaled to `height` x `width` pixels, its corner at `top`, `left` (negative: cut off there)."""

    height: int
    width: int
    top: int
    left: int


def place(height: int, width: int, size: int, fit: str) -> Place:
    """The place of a picture of `height` x `width` pixels.

    crop: the shorter side fills the square, the middle of the longer one is seen (ComfyUI's own centre crop, rounded as it rounds).
    letterbox: the longer side fills the square, bars of equal width (within a pixel) lie beside the picture.
    """
    scale = size / (min if fit == CROP else max)(height, width)
    rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
    if fit == CROP:
        return Place(rows, columns, -((rows - size) // 2), -((columns - size) // 2))
    return Place(rows, columns, (size - rows) // 2, (size - columns) // 2)


def shown(mask: Tensor, where: Place, size: int, patch: int) -> Tensor:
    """The part of every patch's area that lies in the mask: float64 [B, n, n] in 0..1 from bool [B, H, W]. Bars are outside.

    Exact for every size of mask: the mask is not resampled, each of its pixels counts with the area it has on the patch.
    """
    rows = _areas(mask.shape[1], where.top, where.height, size, patch).to(mask.device)
    columns = _areas(mask.shape[2], where.left, where.width, size, patch).to(mask.device)
    return torch.stack([rows @ one.double() @ columns.T for one in mask])


def visible(mask: Tensor, where: Place, size: int, patch: int, threshold: float) -> Tensor:
    """bool [B, n, n] from bool [B, H, W]: hidden is a patch with more than `threshold` (0..1) of its area outside of the mask.

    The paper's re-binarised D_p (section 3.2). A patch that has nothing of the picture, only bar, is hidden at every threshold.
    """
    whole = torch.ones(1, 1, 1, dtype=torch.bool, device=mask.device)
    hidden = 1 - shown(mask, where, size, patch) > threshold + _EXACT
    return ~hidden & (shown(whole, where, size, patch) > _EXACT)


def left_out(mask: Tensor, where: Place, size: int, patch: int) -> Tensor:
    """The part of each mask's area that lies beside the crop, where the encoder sees nothing: float64 [B] in 0..1, 0 for empty masks."""
    seen = shown(mask, where, size, patch).sum((1, 2)) * patch * patch
    area = mask.double().mean((1, 2)) * where.height * where.width
    return torch.where(area > 0, 1 - seen / area.clamp(min=_EXACT), torch.zeros_like(area)).clamp(0, 1)


def enlarged(patches: Tensor, size: int, patch: int) -> Tensor:
    """[B, n, n] bool at the encoder's resolution, [B, size, size]; what no patch covers is False."""
    squares = patches.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return F.pad(squares, (0, size - squares.shape[2], 0, size - squares.shape[1]))


def preview(pixels: Tensor, patches: Tensor, patch: int) -> Tensor:
    """What the encoder saw: IMAGE [B, size, size, 3] from pixels [B, 3, size, size] in 0..1, hidden patches a flat grey."""
    seen = enlarged(patches, pixels.shape[-1], patch)[:, None]
    return torch.where(seen, pixels.clamp(0, 1), torch.full_like(pixels, GREY)).movedim(1, -1)


def _areas(pixels: int, start: int, length: int, size: int, patch: int) -> Tensor:
    """How much of each patch every mask pixel covers along one axis, float64 [n, pixels]; rows sum to one where there is no bar."""
    edges = (torch.arange(size // patch + 1, dtype=torch.float64) * patch - start) * pixels / length
    begin = torch.arange(pixels, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], begin + 1) - torch.maximum(edges[:-1, None], begin)
    return shared.clamp(min=0) / (edges[1:] - edges[:-1])[:, None]
