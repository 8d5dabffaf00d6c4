"""Which tokens of a reference picture may be seen, and a picture for the VAE in which the hidden ones have left no trace.

An edit model takes a reference as a latent whose cells, `patch` x `patch` at a time, are its tokens. A hidden token is left out of the
attention. That alone is not enough: a VAE looks around each cell (its convolutions reach over dozens of pixels, and one with attention or
group norms looks everywhere), so that what is hidden gets into the tokens beside it. Hence the picture is encoded with its hidden part
filled from what is seen, and then nothing of it can get anywhere. Pure tensor work, no ComfyUI.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.depth_hint import filled
from ..images.masks import depth

LEAST_SEEN = 0.5
"""The part of a token's pixels that must be seen for it to be."""


def without_hidden(picture: Tensor, visible: Tensor) -> Tensor:
    """The picture [B, H, W, C] with what is not `visible` (bool [B, H, W]) taken smoothly from what is; black where nothing is.

    What is hidden has no part in the result, whatever it is (NaN as well). Visible pixels stay to the bit.
    """
    seen = torch.where(visible[..., None], picture, torch.zeros_like(picture))
    return torch.stack([filled(seen[..., colour], visible) for colour in range(picture.shape[-1])], -1)


def token_grid(height: int, width: int, downscale: int, patch: int) -> tuple[int, int]:
    """Rows and columns of tokens of a picture: the VAE drops what is no multiple of `downscale`, the model fills up to a whole patch."""
    rows, columns = (-(-(side // downscale) // patch) for side in (height, width))
    return rows, columns


def visible_tokens(visible: Tensor, downscale: int, patch: int, margin: int = 0) -> Tensor:
    """bool [B, rows, columns] of `token_grid`: which tokens of a reference may be seen, where `visible` is bool [B, H, W] of its pixels.

    A token counts as seen if half of its pixels are, those that lie closer to a hidden pixel than `margin` not counted. With the picture of
    `without_hidden` no margin is needed for secrecy; one keeps out tokens whose neighbourhood is the fill's rather than the picture's.
    What ComfyUI's VAE cuts off on both sides is cut off here, and what the model adds to a last, incomplete patch is not counted.
    """
    height, width = visible.shape[1:]
    rows, columns = token_grid(height, width, downscale, patch)
    if rows == 0 or columns == 0:
        raise ValueError(
            f"a reference of {width}x{height} pixels is smaller than one cell of the VAE ({downscale}x{downscale}). Wire a larger picture."
        )
    kept = depth(visible) > margin if margin > 0 else visible
    used_height = height // downscale * downscale
    used_width = width // downscale * downscale
    top = (height - used_height) // 2
    left = (width - used_width) // 2
    kept = kept[:, top : top + used_height, left : left + used_width].float()
    cell = downscale * patch
    padding = (0, columns * cell - used_width, 0, rows * cell - used_height)
    seen = F.avg_pool2d(F.pad(kept, padding)[:, None], cell)[:, 0]
    there = F.avg_pool2d(F.pad(torch.ones_like(kept), padding)[:, None], cell)[:, 0]
    return seen >= LEAST_SEEN * there


def at_most(picture: Tensor, visible: Tensor, pixels: float, cell: int) -> tuple[Tensor, Tensor]:
    """The picture [B, H, W, C] and what is `visible` of it, scaled down to about so many pixels, sides multiples of `cell` (pixels).

    A picture that is no larger stays to the bit, and every picture if `pixels` is 0. A pixel of the smaller one is visible if half of its
    place is.
    """
    height, width = picture.shape[1:3]
    if pixels <= 0 or height * width <= pixels:
        return picture, visible
    scale = math.sqrt(pixels / (height * width))
    size = [max(1, round(side * scale / cell)) * cell for side in (height, width)]
    smaller = F.interpolate(picture.movedim(-1, 1), size=size, mode="bilinear", align_corners=False, antialias=True).movedim(1, -1)
    part = F.interpolate(visible[:, None].float(), size=size, mode="area")[:, 0]
    return smaller.clamp(0, 1), part >= 0.5


def shown(picture: Tensor, tokens: Tensor, downscale: int, patch: int) -> Tensor:
    """What a model is shown of a reference: what the VAE takes of [B, H, W, 3], hidden `tokens` (bool [B, rows, columns]) grey."""
    used = cut_to(picture, downscale)
    height, width = used.shape[1:3]
    cell = downscale * patch
    large = tokens.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width]
    return torch.where(large[..., None], used, torch.full_like(used, 0.5))


def cut_to(picture: Tensor, cell: int) -> Tensor:
    """The middle of [B, H, W, C], of sides that are multiples of `cell` pixels; itself where a side is smaller than one."""
    height, width = (side // cell * cell or side for side in picture.shape[1:3])
    top = (picture.shape[1] - height) // 2
    left = (picture.shape[2] - width) // 2
    return picture[:, top : top + height, left : left + width]
