"""Cuts the foreground that a mask shows out of a picture, as a square that a vision model takes whole. Pure tensor work, no ComfyUI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import of_one_shape

KEEP = "keep"
FILLS = {"white": 1.0, "grey": 0.5, "black": 0.0}
OUTSIDES = (*FILLS, KEEP)
"""What may stand around the foreground: a colour, or the picture itself."""


def cut_out(picture: Tensor, mask: Tensor, outside: str = "white") -> Tensor:
    """Cut the foreground of a picture [H, W, 3] in 0..1 out as a square [S, S, 3]; `mask` is [h, w] in 0..1, of any size.

    The foreground is where the mask, brought to the picture's size, is at least 0.5; the cut is its bounding box. With a colour for
    `outside`, that colour is laid wherever the foreground is not, and around the box up to a square. With `keep` the cut is the square
    around the box, moved into the picture, and nothing in it is changed; where the picture is too small for it, white is added.
    ValueError if the mask shows nothing, or is of another shape than the picture.
    """
    if outside not in OUTSIDES:
        raise ValueError(f"outside is '{outside}', and one of {', '.join(OUTSIDES)} is needed.")
    height, width = picture.shape[:2]
    inside = shown(mask, height, width).to(picture.device)
    top, bottom = _span(inside.any(1))
    left, right = _span(inside.any(0))
    if outside == KEEP:
        side = max(bottom - top, right - left)
        top, bottom = _widened(top, bottom, side, height)
        left, right = _widened(left, right, side, width)
        return _square(picture[top:bottom, left:right], 1.0)
    fill = FILLS[outside]
    filled = torch.where(inside[..., None], picture, torch.full_like(picture, fill))
    return _square(filled[top:bottom, left:right], fill)


def shown(mask: Tensor, height: int, width: int) -> Tensor:
    """Say where a mask [h, w] of any size, brought to the picture's, is at least 0.5: bool [height, width].

    ValueError if that is nowhere, or if the mask is of another shape.
    """
    inside = F.interpolate(mask[None, None].float(), (height, width), mode="bilinear", antialias=True)[0, 0] >= 0.5
    if not bool(inside.any()):
        raise ValueError("the mask shows nothing of the picture: no pixel of it is 0.5 or more.")
    if not of_one_shape((mask.shape[0], mask.shape[1]), (height, width)):
        raise ValueError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} but the picture is {width}x{height}: their shapes differ, so another part of the "
            "picture would be measured. Make the mask from this picture."
        )
    return inside


def _span(marked: Tensor) -> tuple[int, int]:
    """The first True of a line, and the place after the last."""
    places = marked.nonzero()[:, 0]
    return int(places[0]), int(places[-1]) + 1


def _widened(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """A span of that length around the given one, within 0..limit; all of it if it is shorter."""
    length = min(length, limit)
    first = min(max(0, (start + end - length) // 2), limit - length)
    return first, first + length


def _square(picture: Tensor, fill: float) -> Tensor:
    """The picture in the middle of a square of that colour."""
    height, width = picture.shape[:2]
    side = max(height, width)
    square = picture.new_full((side, side, picture.shape[2]), fill)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
