"""Cutting a box out of a picture with some of its surroundings, and putting the painted piece back. Pure tensor work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import Box, depth

Sides = tuple[int, int, int, int]
"""Pixels at the left, top, right and bottom."""
COARSE = (16, 32)
"""How many pixels one of the latent's makes, along a side, in VAEs that are coarser than the 8 which pieces are made for."""


@dataclass(frozen=True)
class Crop:
    """A piece of a picture: its place, and the mask [B, h, w] in the place's pixels.

    The picture has `height` x `width` pixels and was `extended` by so many more (left, top, right, bottom) before it was cut; the place is
    in the extended picture's pixels, and may reach over its edge, where the mask is 0. `size` is the height and width that the piece was
    handed on with, None if it is not known.
    """

    place: Box
    height: int
    width: int
    mask: Tensor
    extended: Sides = (0, 0, 0, 0)
    size: tuple[int, int] | None = None

    @property
    def inner(self) -> Box:
        """The part of the place that lies in the extended picture."""
        left, top, right, bottom = self.extended
        x = max(self.place["x"], 0)
        y = max(self.place["y"], 0)
        end_x = min(self.place["x"] + self.place["width"], self.width + left + right)
        end_y = min(self.place["y"] + self.place["height"], self.height + top + bottom)
        return {"x": x, "y": y, "width": end_x - x, "height": end_y - y}

    @property
    def outside(self) -> Tensor:
        """bool [B, h, w]: the place's pixels that are the picture's own and stay so."""
        left, top, _, _ = self.extended
        rows = torch.arange(self.place["height"]) + self.place["y"] - top
        columns = torch.arange(self.place["width"]) + self.place["x"] - left
        own = ((rows >= 0) & (rows < self.height))[:, None] & ((columns >= 0) & (columns < self.width))[None]
        return (self.mask == 0) & own.to(self.mask.device)


def surround(box: Box, height: int, width: int, context: float, also: Box | None = None, shape: tuple[int, int] | None = None) -> Box:
    """The box with `context` times its size on each side and `also`, grown towards a square, within the picture.

    The context is DreamCom's (its code cuts out the box plus half of its size on each side); a square is what SD learned from. With a
    `shape` (height, width) it is grown to that one's proportions instead, over the picture's edge where the picture is too small for that.
    """
    wanted_width, wanted_height = (box[side] * (1 + 2 * context) for side in ("width", "height"))
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    if also is not None:
        left, right = _union(middle[0], wanted_width, also["x"], also["width"])
        top, bottom = _union(middle[1], wanted_height, also["y"], also["height"])
        middle = ((left + right) / 2, (top + bottom) / 2)
        wanted_width, wanted_height = right - left, bottom - top
    if shape is None:
        longer = max(wanted_width, wanted_height)
        new_width = min(width, math.ceil(longer))
        new_height = min(height, math.ceil(longer))
    else:
        factor = max(wanted_width / shape[1], wanted_height / shape[0])
        new_width = math.ceil(shape[1] * factor - 1e-6)
        new_height = math.ceil(shape[0] * factor - 1e-6)
    return {
        "x": _placed(round(middle[0] - new_width / 2), new_width, width),
        "y": _placed(round(middle[1] - new_height / 2), new_height, height),
        "width": new_width,
        "height": new_height,
    }


def _union(middle: float, length: float, start: int, other: int) -> tuple[float, float]:
    """From where to where both reach: `length` around `middle`, and `other` from `start` on."""
    return min(middle - length / 2, start), max(middle + length / 2, start + other)


def _placed(start: int, length: int, side: int) -> int:
    """The start nearest to the wanted one at which the length lies on a side, or covers the whole of it evenly."""
    return min(max(start, 0), side - length) if length <= side else (side - length) // 2


def whole(height: int, width: int) -> Box:
    """The place that is the picture itself."""
    return {"x": 0, "y": 0, "width": width, "height": height}


def painting_size(place: Box, resolution: int, multiple: int = 8) -> tuple[int, int]:
    """Height and width to paint a place at: its shape, about `resolution` squared pixels, both multiples of 8. 0 keeps its size."""
    scale = resolution / math.sqrt(place["width"] * place["height"]) if resolution else 1.0
    height, width = (max(multiple, round(place[side] * scale / multiple) * multiple) for side in ("height", "width"))
    return height, width


def cut(picture: Tensor, place: Box) -> Tensor:
    """The place's pixels of [B, H, W, ...]; beyond the picture's edge those of the edge."""
    height, width = picture.shape[1:3]
    bottom = place["y"] + place["height"]
    right = place["x"] + place["width"]
    if place["x"] >= 0 and place["y"] >= 0 and bottom <= height and right <= width:
        return picture[:, place["y"] : bottom, place["x"] : right]
    rows = torch.arange(place["y"], bottom, device=picture.device).clamp(0, height - 1)
    columns = torch.arange(place["x"], right, device=picture.device).clamp(0, width - 1)
    return picture[:, rows][:, :, columns]


def extended(picture: Tensor, sides: Sides) -> Tensor:
    """[B, H, W, C] with so many more pixels (left, top, right, bottom), those of the edge repeated, opaque; the same tensor for none."""
    if not any(sides):
        return picture
    left, top, right, bottom = sides
    height, width = picture.shape[1:3]
    grown = cut(picture, {"x": -left, "y": -top, "width": width + left + right, "height": height + top + bottom})
    if picture.shape[-1] == 4:
        grown[..., 3] = 1
        grown[:, top : top + height, left : left + width, 3] = picture[..., 3]
    return grown


def extended_mask(mask: Tensor, sides: Sides) -> Tensor:
    """[B, H, W] with so many more pixels, which are all to be painted."""
    left, top, right, bottom = sides
    return F.pad(mask, (left, right, top, bottom), value=1.0) if any(sides) else mask


def within(mask: Tensor, place: Box) -> Tensor:
    """The place's part of a mask [B, H, W], 0 beyond the picture's edge."""
    height, width = mask.shape[1:]
    right = place["x"] + place["width"] - width
    bottom = place["y"] + place["height"] - height
    return F.pad(mask, (-place["x"], right, -place["y"], bottom))


def scale(picture: Tensor, height: int, width: int) -> Tensor:
    """[B, h, w, C] to [B, height, width, C], bicubic, in 0..1; the same tensor where it fits."""
    if picture.shape[1:3] == (height, width):
        return picture
    resized = F.interpolate(picture.movedim(-1, 1).float(), size=(height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).movedim(1, -1).to(picture.dtype)


def uncut(piece: Tensor, under: Tensor, crop: Crop) -> Tensor:
    """Gives a painted piece [B, h, w, 3 or 4] back the edges that a VAE cut off it, as they are `under` it in its place [B, H, W, C].

    A VAE that makes one latent pixel of 16 or of 32 (FLUX.2, Wan 2.2) cuts a piece of another size to whole ones, evenly on both sides;
    stretched over its place it would be zoomed and shifted. Where the piece fits the picture outside of the mask better as it is, or is
    of another size, it is given as it is.
    """
    height, width = piece.shape[1:3]
    if crop.size is None or (height, width) == crop.size:
        return piece
    if not any((height, width) == (crop.size[0] // step * step, crop.size[1] // step * step) for step in COARSE):
        return piece
    colours = min(3, under.shape[-1])
    count = max(len(under), len(piece))
    given = piece[torch.arange(count) % len(piece)][..., :colours]
    place = under[torch.arange(count) % len(under)][..., :colours]
    whole = scale(place, *crop.size).to(given).clone()
    top, left = (crop.size[0] - height) // 2, (crop.size[1] - width) // 2
    whole[:, top : top + height, left : left + width] = given
    outside = crop.outside[torch.arange(count) % len(crop.mask)].to(place.device)
    stretched_off, cut_off = ((scale(one, *place.shape[1:3]).to(place) - place).abs().mean(-1)[outside].mean() for one in (given, whole))
    return piece if bool(stretched_off < cut_off) else whole


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
    picture stays as it was, one of the piece is not used. Where the crop extended its picture, the result is that much larger.
    """
    original = extended(original, crop.extended)
    count = max(len(original), len(painted))
    colours = min(3, original.shape[-1])
    result = original.expand(count, *original.shape[1:]).clone() if len(original) == 1 else original[torch.arange(count) % len(original)]
    place = crop.place
    inner = crop.inner
    bottom = inner["y"] + inner["height"]
    right = inner["x"] + inner["width"]
    borders = (inner["y"] == 0, bottom == result.shape[1], inner["x"] == 0, right == result.shape[2])
    here: Box = {**inner, "x": inner["x"] - place["x"], "y": inner["y"] - place["y"]}
    piece = cut(scale(painted[..., :colours].to(original), place["height"], place["width"]), here)
    piece = piece[torch.arange(count) % len(piece)]
    mask = cut(crop.mask, here)
    alpha = feathered(mask, feather, borders).to(original)[torch.arange(count) % len(mask)][..., None]
    under = cut(result, inner)[..., :colours]
    under.copy_(torch.where(alpha > 0, torch.lerp(under, piece, alpha), under))
    return result
