"""Cutting a box out of a picture with some of its surroundings, and putting the painted piece back. Pure tensor work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import Box, depth


@dataclass(frozen=True)
class Crop:
    """A piece of a picture: its place in the picture of `height` x `width` pixels, and the mask [B, h, w] in the place's pixels."""

    place: Box
    height: int
    width: int
    mask: Tensor


def surround(box: Box, height: int, width: int, context: float) -> Box:
    """The box with `context` times its size on each side, grown towards a square, within the picture.

    The context is DreamCom's (its code cuts out the box plus half of its size on each side); a square is what SD learned from.
    """
    wanted_width, wanted_height = (box[side] * (1 + 2 * context) for side in ("width", "height"))
    longer = max(wanted_width, wanted_height)
    new_width = min(width, math.ceil(longer))
    new_height = min(height, math.ceil(longer))
    left = round(box["x"] + box["width"] / 2 - new_width / 2)
    top = round(box["y"] + box["height"] / 2 - new_height / 2)
    return {
        "x": min(max(left, 0), width - new_width),
        "y": min(max(top, 0), height - new_height),
        "width": new_width,
        "height": new_height,
    }


def whole(height: int, width: int) -> Box:
    """The place that is the picture itself."""
    return {"x": 0, "y": 0, "width": width, "height": height}


def painting_size(place: Box, resolution: int, multiple: int = 8) -> tuple[int, int]:
    """Height and width to paint a place at: its shape, about `resolution` squared pixels, both multiples of 8. 0 keeps its size."""
    scale = resolution / math.sqrt(place["width"] * place["height"]) if resolution else 1.0
    height, width = (max(multiple, round(place[side] * scale / multiple) * multiple) for side in ("height", "width"))
    return height, width


def cut(picture: Tensor, place: Box) -> Tensor:
    """The place's pixels of [B, H, W, ...]."""
    return picture[:, place["y"] : place["y"] + place["height"], place["x"] : place["x"] + place["width"]]


def scale(picture: Tensor, height: int, width: int) -> Tensor:
    """[B, h, w, C] to [B, height, width, C], bicubic, in 0..1; the same tensor where it fits."""
    if picture.shape[1:3] == (height, width):
        return picture
    resized = F.interpolate(picture.movedim(-1, 1).float(), size=(height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).movedim(1, -1).to(picture.dtype)


def feathered(mask: Tensor, pixels: int, borders: tuple[bool, bool, bool, bool] = (True, True, True, True)) -> Tensor:
    """The mask [B, H, W] with a soft edge of this many pixels, wholly inside it: what was 0 stays 0, and nothing grows.

    `borders` (top, bottom, left, right) says which sides lie on the picture's border: there a mask has no edge. A mask thinner than
    twice the pixels gets a narrower soft edge, so that its middle keeps its value.
    """
    if pixels <= 0:
        return mask
    top, bottom, left, right = (int(not border) for border in borders)
    inside = F.pad((mask > 0).byte(), (left, right, top, bottom)).bool()
    reached = depth(inside)[:, top : top + mask.shape[1], left : left + mask.shape[2]] - 0.5
    reach = reached.amax((1, 2), keepdim=True).clamp(min=0.5, max=pixels)
    return mask * (reached / reach).clamp(0, 1).to(mask.dtype)


def paste(original: Tensor, painted: Tensor, crop: Crop, feather: int = 0) -> Tensor:
    """The painted piece [B, h, w, 3] in its place on the picture [B, H, W, 3 or 4]; what is outside the mask is the original's, bit by bit.

    A single original, painted piece or mask serves a whole batch of the others. Only colours are painted: an alpha channel of the
    picture stays as it was, one of the piece is not used.
    """
    count = max(len(original), len(painted))
    colours = min(3, original.shape[-1])
    result = original.expand(count, *original.shape[1:]).clone() if len(original) == 1 else original[torch.arange(count) % len(original)]
    place = crop.place
    bottom = place["y"] + place["height"]
    right = place["x"] + place["width"]
    borders = (place["y"] == 0, bottom == crop.height, place["x"] == 0, right == crop.width)
    piece = scale(painted[..., :colours].to(original), place["height"], place["width"])
    piece = piece[torch.arange(count) % len(piece)]
    alpha = feathered(crop.mask, feather, borders).to(original)[torch.arange(count) % len(crop.mask)][..., None]
    under = cut(result, place)[..., :colours]
    under.copy_(torch.where(alpha > 0, torch.lerp(under, piece, alpha), under))
    return result
