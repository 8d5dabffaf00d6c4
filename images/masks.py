"""Masks and boxes as they come from other nodes, brought into one shape. Pure tensor work, no ComfyUI.

A mask here is float [B, H, W] in 0..1. A box is a dict {x, y, width, height} in pixels, the origin at the top left.
"""

from __future__ import annotations

import logging
import math
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)

FARTHEST = 1_000_000
"""The largest number of pixels that a box may name."""
NEAR = 0.01
"""So near to a border, as a part of the picture's side, a mask touches it."""


class Box(TypedDict):
    """A rectangle in pixels: columns x to x + width, rows y to y + height."""

    x: int
    y: int
    width: int
    height: int


def to_mask(mask: Any, name: str = "mask") -> torch.Tensor:
    """A MASK from any node as float32 [B, H, W] in 0..1, on the device it came on.

    Takes [H, W], [B, H, W], [B, 1, H, W] and [B, H, W, 1]; float, bool or uint8 (0..255). Values are clamped, NaN becomes 0.
    ValueError, with `name` in it, for anything else.
    """
    if not isinstance(mask, torch.Tensor):
        raise ValueError(
            f"{name}: a mask was expected, got {'nothing' if mask is None else type(mask).__name__}. Wire a MASK output to it."
        )
    given = list(mask.shape)
    if mask.ndim == 2:
        mask = mask[None]
    elif mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    elif mask.ndim == 4 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(
            f"{name}: a mask has the shape [batch, height, width] with at least one pixel, this one is {given}. "
            "If it is an image, convert it with Convert Image to Mask."
        )
    scale = 255.0 if mask.dtype == torch.uint8 else 1.0
    return torch.nan_to_num(mask.float() / scale, nan=0.0).clamp(0.0, 1.0)


def resize(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[B, h, w] -> [B, height, width] as Pillow's bilinear resize does: every pixel counts when it shrinks. The same tensor if it fits."""
    if mask.shape[-2:] == (height, width):
        return mask
    resized = F.interpolate(mask[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].clamp(0.0, 1.0)


def match_batch(mask: torch.Tensor, batch: int, name: str = "mask") -> torch.Tensor:
    """[b, H, W] -> [batch, H, W] by ComfyUI's rule: repeated in turn when too few, cut when too many (with a logged warning)."""
    count = mask.shape[0]
    if count > batch:
        log.warning("%s: %d masks for %d images, only the first %d are used", name, count, batch, batch)
    return mask if count == batch else mask[torch.arange(batch, device=mask.device) % count]


def depth(inside: torch.Tensor) -> torch.Tensor:
    """How far every pixel of bool [B, H, W] is from the nearest one outside, in pixels: float32, 0 outside; H + W if there is none."""
    from scipy import ndimage

    far = float(inside.shape[1] + inside.shape[2])
    found = [np.full(one.shape, far) if one.all() else np.asarray(ndimage.distance_transform_edt(one)) for one in inside.cpu().numpy()]
    return torch.from_numpy(np.stack(found)).float().to(inside.device)


def grown(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """The mask [B, H, W] and whatever lies at most so many pixels from where it is at least half; the same tensor for 0."""
    if pixels <= 0:
        return mask
    inside = mask >= 0.5
    inside = torch.where(inside.any(2, keepdim=True).any(1, keepdim=True), inside, mask > 0)
    near = (depth(~inside) <= pixels) & inside.any(2, keepdim=True).any(1, keepdim=True)
    return torch.maximum(mask, near.to(mask.dtype))


def without_holes(mask: torch.Tensor) -> torch.Tensor:
    """The mask [B, H, W] with 1 wherever what is at least half closes a pixel in."""
    from scipy import ndimage

    filled = [np.asarray(ndimage.binary_fill_holes(one)) for one in (mask >= 0.5).cpu().numpy()]
    return torch.maximum(mask, torch.from_numpy(np.stack(filled)).to(mask))


def tidied(mask: torch.Tensor, part: float = 0.005) -> torch.Tensor:
    """bool [H, W] without holes and without islands that are smaller than `part` of its area."""
    from scipy import ndimage

    inside = mask.cpu().numpy()
    smallest = part * inside.sum()
    for wanted in (False, True):
        found: Any = ndimage.label(inside == wanted)
        labels = found[0]
        small = np.bincount(labels.ravel()) < smallest
        small[0] = False
        inside = np.where(small[labels], not wanted, inside)
    return torch.from_numpy(inside).to(mask.device)


def bounding_box(mask: torch.Tensor, threshold: float = 0.5) -> Box | None:
    """The smallest box around all pixels of [H, W] above `threshold`; None if there are none."""
    inside = mask > threshold
    rows, columns = torch.where(inside.any(dim=1))[0], torch.where(inside.any(dim=0))[0]
    if len(rows) == 0:
        return None
    top, left = int(rows[0]), int(columns[0])
    return {"x": left, "y": top, "width": int(columns[-1]) + 1 - left, "height": int(rows[-1]) + 1 - top}


def clip_box(box: Box, height: int, width: int, name: str = "box") -> Box:
    """The part of `box` inside a picture of height × width pixels, with a logged warning if that is not all of it.

    ValueError if the box has no area or lies wholly outside.
    """
    if box["width"] <= 0 or box["height"] <= 0:
        raise ValueError(f"{name}: {describe(box)} has no area. Width and height must be at least 1 pixel.")
    left, top = max(box["x"], 0), max(box["y"], 0)
    right = min(box["x"] + box["width"], width)
    bottom = min(box["y"] + box["height"], height)
    if right <= left or bottom <= top:
        raise ValueError(f"{name}: {describe(box)} lies outside of the picture, which is {width} x {height} pixels.")
    clipped: Box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    if clipped != box:
        log.warning(
            "%s: %s reaches over the edge of the %d x %d picture, %s is used", name, describe(box), width, height, describe(clipped)
        )
    return clipped


def box_mask(box: Box, height: int, width: int, feather: int = 0) -> torch.Tensor:
    """float32 [1, height, width]: 1 inside `box` (which must lie in the picture, see `clip_box`), 0 elsewhere.

    With `feather` > 0 the edge rises from 0 to 1 over that many pixels inside the box, except where it lies on the picture's border; as
    wide as there is room where the box is too small for it, so that its middle is 1.
    """
    columns = _depth(box["x"], box["width"], width)
    rows = _depth(box["y"], box["height"], height)
    depths = torch.minimum(rows[:, None], columns[None, :])[None]
    deepest = float(depths.max())
    if feather <= 0 or deepest <= 0:
        return (depths > 0).float()
    has_room = feather <= deepest + 0.5  # the middle of an even number of pixels is the line between two
    return (depths / (feather if has_room else deepest)).clamp(0.0, 1.0)


def touches_all_borders(marked: torch.Tensor) -> bool:
    """Say whether marked pixels, bool [H, W], come within `NEAR` of each of the four borders, as those of a background do."""
    rows, columns = (max(1, round(NEAR * side)) for side in marked.shape)
    return all(bool(edge.any()) for edge in (marked[:rows], marked[-rows:], marked[:, :columns], marked[:, -columns:]))


def of_one_shape(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Say whether a mask of this height and width can be of such a picture: sides rounded to a multiple of 8 are let pass."""
    rows, columns = mask
    height, width = picture
    slack = max(8.0, height / rows, width / columns)
    return abs(rows * width / columns - height) <= slack or abs(columns * height / rows - width) <= slack


def boxes_per_image(boxes: Any, batch: int, name: str = "bboxes") -> list[list[Box]]:
    """Boxes in any form that core nodes hand on, as one list per image of the batch.

    One dict or a list of dicts counts for every image; a list of lists holds one list per image, its last one counting for the
    images beyond (core SAM3's rule). Coordinates are rounded to whole pixels. ValueError for any other form.
    """
    if isinstance(boxes, dict):
        return [[_box(boxes, name)]] * batch
    if not isinstance(boxes, (list, tuple)):
        raise ValueError(f"{name}: a box, a list of boxes, or one list of boxes per image was expected, got {type(boxes).__name__}.")
    if not any(isinstance(entry, (list, tuple)) for entry in boxes):
        return [[_box(entry, name) for entry in boxes]] * batch
    frames = [[_box(entry, name) for entry in (frame if isinstance(frame, (list, tuple)) else [frame])] for frame in boxes]
    if len(frames) > batch:
        log.warning("%s: boxes for %d images, but there are %d; the rest is not used", name, len(frames), batch)
    return [frames[min(index, len(frames) - 1)] for index in range(batch)]


def frames_in(boxes: Any) -> int:
    """For how many pictures boxes in a core node's form were made: the number of lists in a list of lists, else 1."""
    return len(boxes) if isinstance(boxes, (list, tuple)) and any(isinstance(entry, (list, tuple)) for entry in boxes) else 1


def boxes_output(frames: list[list[Box]]) -> Box | list[list[Box]]:
    """Boxes as a node hands them on: for one picture with at most one box that box (all zeros for none), else one list per picture."""
    if len(frames) == 1 and len(frames[0]) <= 1:
        return frames[0][0] if frames[0] else {"x": 0, "y": 0, "width": 0, "height": 0}
    return frames


def describe(box: Box) -> str:
    """A box in words, for messages."""
    return f"the box x={box['x']}, y={box['y']}, width={box['width']}, height={box['height']}"


def _box(entry: Any, name: str) -> Box:
    try:
        numbers = [float(entry[key]) for key in ("x", "y", "width", "height")]
    except (KeyError, TypeError, ValueError, IndexError):
        raise ValueError(f'{name}: a box is {{"x": 0, "y": 0, "width": 64, "height": 64}} in pixels, got {_short(entry)}.') from None
    except OverflowError:  # a whole number of more than 308 digits
        numbers = [math.inf]
    if not all(abs(number) <= FARTHEST for number in numbers):
        raise ValueError(f"{name}: every number of a box must be finite, at most {FARTHEST:,} pixels, got {_short(entry)}.")
    left, top = round(numbers[0]), round(numbers[1])
    right = round(numbers[0] + numbers[2])
    bottom = round(numbers[1] + numbers[3])
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def _short(entry: Any) -> str:
    """A box as text of at most 120 characters."""
    try:
        text = repr(entry)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:117]}..."


def _depth(start: int, length: int, total: int) -> torch.Tensor:
    """How far each pixel's middle is inside of a box along a side, in pixels [total], negative outside; the picture's border is no edge."""
    centres = torch.arange(total) + 0.5
    nowhere = torch.full((total,), math.inf)
    from_start = (centres - start) if start > 0 else nowhere
    from_end = (start + length - centres) if start + length < total else nowhere
    return torch.minimum(from_start, from_end)
