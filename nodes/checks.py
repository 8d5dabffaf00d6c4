"""What comes into a node, checked at its border: each function returns the value in one form, or says in the artist's words what is wrong.

`name` is the input's name and `node` the node's, as the artist reads them. All errors are ValueErrors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..images.masks import Box, boxes_per_image, to_mask

REPAIR = "Start ComfyUI with --fp32-vae or --bf16-vae if it was decoded in half precision, or lower the CFG."


def image(value: Any, name: str, node: str, finite: bool = True) -> Tensor:
    """An IMAGE as float [B, H, W, 3 or 4], B, H and W at least 1; the very tensor given if it is one already.

    A grey picture [B, H, W, 1] gets its three colours, whole numbers 0..255 become 0..1; half precision stays. Pictures with NaN or
    infinite values are refused unless `finite` is False.
    """
    where = f"{node}: {name}"
    if isinstance(value, dict) and "samples" in value:
        raise ValueError(f"{where} must be a picture, but this is a latent. Put VAE Decode between.")
    if not isinstance(value, Tensor):
        raise ValueError(f"{where} must be a picture, got {_kind(value)}. Wire an IMAGE output to it.")
    given = list(value.shape)
    if value.ndim != 4:
        extra = " It looks like a mask: put Convert Mask to Image between." if value.ndim == 3 else ""
        raise ValueError(f"{where} must be pictures of the shape [batch, height, width, colours], this one is {given}.{extra}")
    if given[0] == 0:
        raise ValueError(
            f"{where} is a batch of no pictures, no picture was given: the node before it found nothing. Wire at least one picture."
        )
    if 0 in given:
        raise ValueError(f"{where} has no pixels: it is {given[2]} pixels wide and {given[1]} high. Wire a picture of at least one pixel.")
    if given[3] not in (1, 3, 4):
        raise ValueError(f"{where} has {given[3]} channels; a picture is grey (1), in colours (3), or in colours with alpha (4).")
    if value.dtype in (torch.uint8, torch.bool):
        value = value.float() / (255 if value.dtype == torch.uint8 else 1)
    elif not value.is_floating_point():
        raise ValueError(f"{where} holds numbers of the kind {str(value.dtype).removeprefix('torch.')}; a picture's are from 0.0 to 1.0.")
    if finite and not bool(torch.isfinite(value).all()):
        broken = int((~torch.isfinite(value)).any(-1).sum())
        raise ValueError(
            f"{where}: {broken} of its {value[..., 0].numel()} pixels are no numbers (NaN) or infinite; it holds values that are no "
            f"numbers (NaN) where colours belong. {REPAIR}"
        )
    return value.expand(-1, -1, -1, 3) if given[3] == 1 else value


def mask(value: Any, name: str, node: str) -> Tensor:
    """A MASK in any form that nodes hand on as float32 [B, H, W] in 0..1, B, H and W at least 1. NaN counts as 0."""
    where = f"{node}: {name}"
    if isinstance(value, Tensor) and value.ndim > 2 and value.shape[0] == 0:
        raise ValueError(f"{where} is a batch of no masks: the node before it found or chose nothing. Wire at least one mask.")
    if isinstance(value, Tensor) and value.is_complex():
        raise ValueError(f"{where} holds complex numbers; a mask's are from 0.0 to 1.0.")
    return to_mask(value, where)


def number(value: Any, name: str, node: str, least: float, most: float) -> float:
    """A number in `least`..`most`, finite, also where it was wired and ComfyUI has not looked at it."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise ValueError(f"{node}: {name} must be a number from {least:g} to {most:g}, got {_kind(value)}.")
    try:
        found = float(value)
    except (OverflowError, TypeError, ValueError):
        found = math.inf
    if not least <= found <= most:
        raise ValueError(f"{node}: {name} must be from {least:g} to {most:g}, got {_short(value)}.")
    return found


def whole(value: Any, name: str, node: str, least: int, most: int) -> int:
    """A whole number in `least`..`most`; 3.0 counts as one, 3.5 does not."""
    if type(value) is int and least <= value <= most:
        return value  # as it is: a float holds no seed above 2 ** 53
    found = number(value, name, node, least, most)
    if found != int(found):
        raise ValueError(f"{node}: {name} must be a whole number from {least} to {most}, got {_short(value)}.")
    return int(found)


def choice(value: Any, name: str, node: str, options: Sequence[str]) -> str:
    """One of the options."""
    if value not in options:
        raise ValueError(f"{node}: {name} must be one of {', '.join(options)}, got {_short(value)}: there is no {name} {_short(value)}.")
    return value


def boxes(value: Any, batch: int, name: str, node: str) -> list[list[Box]]:
    """Boxes in any form that nodes hand on, one list for each picture of the batch."""
    return boxes_per_image(value, batch, f"{node}: {name}")


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (bool, str)):
        return f"the text {_short(value)}" if isinstance(value, str) else _short(value)
    return type(value).__name__


def _short(value: Any) -> str:
    """A value as text of at most 40 characters."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
