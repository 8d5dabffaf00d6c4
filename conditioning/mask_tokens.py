"""Mask tokens beside the words of a CONDITIONING, so that positive and negative still go through the UNet together.

ComfyUI runs texts of different lengths in one pass by repeating each until all are as long as their least common multiple; beyond four
times the shortest it runs them apart. Repeating a whole text changes no attention. So every text here gets its mask tokens once for each
77 of its own tokens: lengths stay in the ratio that they had (77 and 154 become 79 and 158), no pass is added, and a mask has the share
of the attention that it was trained with, however long the prompt is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

CHUNK = 77
"""The tokens that a CLIP text encoder reads at once; longer prompts are several such pieces."""
MOST_REPEATED = 4
"""ComfyUI repeats a text this often, no more (`CONDCrossAttn.can_concat`)."""
PIXELS = 8
"""Pixels to a cell of the latent, in which areas are given."""
PLACES = "maskprompt_mask_tokens"
"""The option of a CONDITIONING that tells where its mask tokens are: ((first column, masks, copies), …)."""

Entry = list[Any]
"""[text [B, T, width], options]: one of the texts of a CONDITIONING."""


def unit_of(lengths: Collection[int]) -> int:
    """For how many tokens of text the mask tokens are appended once, given the lengths of all texts that are sampled together."""
    common = math.gcd(*lengths)
    if common % CHUNK == 0:
        return CHUNK
    return common if max(lengths) <= MOST_REPEATED * common else CHUNK


def append(text: Tensor, tokens: Tensor, unit: int) -> Tensor:
    """text [B, T, width] and mask tokens [n, width] or [B, n, width] to [B, T + copies · n, width]; copies = T / unit, at least 1.

    The words keep their places. Gradients reach both.
    """
    tokens = tokens.to(text.device, text.dtype)
    tokens = tokens.expand(len(text), *tokens.shape[-2:])
    return torch.cat([text, tokens.repeat(1, copies_of(text, unit), 1)], dim=1)


def copies_of(text: Tensor, unit: int) -> int:
    """How often the mask tokens are appended to a text [B, T, width]."""
    return max(1, text.shape[1] // unit)


def with_tokens(conditioning: list[Entry], tokens: Callable[[Mapping[str, Any]], Tensor], unit: int) -> list[Entry]:
    """The CONDITIONING with mask tokens at the end of each of its texts; all else in it stays. The given one is not changed.

    `tokens`: the mask tokens [n, width] for a text's options (its area).
    """
    result: list[Entry] = []
    for text, options in conditioning:
        added = tokens(options)
        place = (text.shape[1], added.shape[-2], copies_of(text, unit))
        result.append([append(text, added, unit), {**options, PLACES: (*options.get(PLACES, ()), place)}])
    return result


def in_area(masks: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Masks [N, H, W] of the whole picture to the part that a text with these options paints: its area is all that the UNet sees.

    An area in pixels needs masks of the picture's own size: ValueError if it does not fit into them, a logged warning if it does.
    """
    if options.get("set_area_to_bounds"):
        raise ValueError(
            "the positive prompt is confined to a mask with `set_cond_area` at 'mask bounds': the size of that part is known only while "
            "painting, so a mask cannot be placed in it. Set it to 'default'."
        )
    area = options.get("area")
    if area is None:
        return masks
    height, width = masks.shape[-2:]
    relative = area[0] == "percentage"
    sizes, offsets = _halves(area[1:] if relative else area)
    if relative:
        (rows, columns), (top, left) = ((sizes[0] * height, sizes[1] * width), (offsets[0] * height, offsets[1] * width))
    else:
        (rows, columns), (top, left) = ([PIXELS * size for size in sizes], [PIXELS * offset for offset in offsets])
        _check_fits(rows, columns, top, left, height, width)
    first_row = min(round(top), height - 1)
    first_column = min(round(left), width - 1)
    last_row = max(round(top + rows), first_row + 1)
    last_column = max(round(left + columns), first_column + 1)
    return masks[:, first_row:last_row, first_column:last_column]


def _halves(area: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """(height, width, y, x), or the same with a number of frames before each pair, as ([height, width], [y, x])."""
    half = len(area) // 2
    return list(area[:half][-2:]), list(area[half:][-2:])


def _check_fits(rows: float, columns: float, top: float, left: float, height: int, width: int) -> None:
    what = f"an area of {columns:g} x {rows:g} pixels at x={left:g}, y={top:g}"
    if top + rows > height or left + columns > width:
        raise ValueError(
            f"the positive prompt has {what}, which does not fit into the masks ({width} x {height}). Give masks of the painted picture's "
            "own size, or set the area with Conditioning (Set Area with Percentage)."
        )
    log.warning("Pose by Masks: a prompt has %s; the masks (%d x %d) are taken to have the picture's own size.", what, width, height)
