"""Takes back what a model did to the surroundings of a painted piece, and says in words what that was. Pure tensor work, no ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .align import Alignment, measure
from .colour import seam_matched
from .warp import moved

NOT_SEEN = 0.1
"""A shift, or what a zoom moves the border by, that nobody sees, in pixels."""
SAME_COLOUR = 0.005
"""A difference of colours that nobody sees, of 1: a little more than a step of 8 bits."""
HUES = (("redder", "more cyan"), ("greener", "more magenta"), ("bluer", "more yellow"))


@dataclass(frozen=True)
class Report:
    """What was found of one piece, in numbers and as a sentence; whether anybody would see the shift or zoom, and the tint."""

    found: Alignment
    sentence: str
    moved: bool
    tinted: bool


def mended(
    original: Tensor,
    painted: Tensor,
    outside: Tensor,
    place: bool,
    tint: bool,
    match: bool,
    after: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, list[Report]]:
    """Painted pieces [N, P, Q, 3 or more] brought onto the originals [M, h, w, 3 or more], with a report on each.

    `outside` (bool [K, h, w]) says where nothing was to be painted. Shorter batches are taken in turn. `place` undoes shift and zoom,
    `tint` the tint, `match` brings the colours to the seam's. With all three off the pieces are the very tensor given. `after` is called
    with the number of pieces that are done.
    """
    count = max(len(original), len(painted))
    made = []
    reports = []
    for index in range(count):
        under = original[index % len(original), ..., :3].float().cpu()
        piece = painted[index % len(painted), ..., :3].float().cpu()
        free = outside[index % len(outside)].cpu()
        found = measure(under, piece, free)
        height, width = under.shape[:2]
        reports.append(reported(found, height, width))
        if place or tint or match:
            piece = undone(piece, found, height, width, place, tint)
            made.append(seam_matched(piece, under, free) if match else piece)
        after(index + 1)
    return (torch.stack(made).to(painted) if made else painted), reports


def undone(piece: Tensor, found: Alignment, height: int, width: int, place: bool = True, tint: bool = True) -> Tensor:
    """The piece [P, Q, 3] at the size [height, width, 3] of its place, with what was found taken back, in 0..1."""
    planes = piece.movedim(-1, 0)
    shifted = found.place_told and not _lies_still(found, height, width)
    if place and shifted:
        # Moved at the larger of both sizes, so that no detail is lost twice.
        size = [max(new, old) for new, old in zip((height, width), planes.shape[1:], strict=True)]
        planes = _scaled(planes, *size)
        planes = moved(planes, found.right * size[1] / width, found.down * size[0] / height, found.zoom)
    planes = _scaled(planes, height, width)
    if tint and found.tint_told:
        gain, offset = (torch.tensor(numbers)[:, None, None] for numbers in (found.gain, found.offset))
        planes = (planes - offset) / gain.clamp(min=0.2)
    return planes.clamp(0, 1).movedim(0, -1)


def reported(found: Alignment, height: int, width: int) -> Report:
    """What was found in a place of height x width pixels, in words."""
    placed = _place_in_words(found, height, width)
    tinted = _tint_in_words(found)
    said = [*placed, *tinted]
    sentences = [f"The surroundings came back {', '.join(said)}."] if said else []
    if not found.place_told:
        sentences.append(f"Shift and zoom cannot be told: {found.reason}.")
    elif not said:
        sentences.append("The surroundings came back where they were and in their colours.")
    return Report(found, " ".join(sentences), bool(placed), bool(tinted))


def _lies_still(found: Alignment, height: int, width: int) -> bool:
    border = abs(found.zoom - 1) * max(height, width) / 2
    return max(abs(found.right), abs(found.down), border) < NOT_SEEN


def _place_in_words(found: Alignment, height: int, width: int) -> list[str]:
    if not found.place_told or _lies_still(found, height, width):
        return []
    said = []
    for amount, towards, back in ((found.right, "to the right", "to the left"), (found.down, "down", "up")):
        if abs(amount) >= NOT_SEEN:
            said.append(f"{abs(amount):.1f} px {towards if amount > 0 else back}")
    if abs(found.zoom - 1) * max(height, width) / 2 >= NOT_SEEN:
        said.append(f"{abs(found.zoom - 1) * 100:.1f} % {'larger' if found.zoom > 1 else 'smaller'}")
    return said


def _tint_in_words(found: Alignment) -> list[str]:
    if not found.tint_told:
        return []
    at_grey = [0.5 * (gain - 1) + offset for gain, offset in zip(found.gain, found.offset, strict=True)]
    brightness = sum(at_grey) / 3
    said = []
    if abs(brightness) >= SAME_COLOUR:
        said.append(f"{abs(brightness) * 100:.1f} % {'brighter' if brightness > 0 else 'darker'}")
    for amount, (more, less) in zip(at_grey, HUES, strict=True):
        if abs(amount - brightness) >= 2 * SAME_COLOUR:
            said.append(f"{abs(amount - brightness) * 100:.1f} % {more if amount > brightness else less}")
    contrast = sum(found.gain) / 3 - 1
    if abs(contrast) >= 4 * SAME_COLOUR:
        said.append(f"with {abs(contrast) * 100:.0f} % {'more' if contrast > 0 else 'less'} contrast")
    return said


def _scaled(planes: Tensor, height: int, width: int) -> Tensor:
    """[C, h, w] to [C, height, width], bicubic; the same tensor where it fits."""
    if planes.shape[1:] == (height, width):
        return planes
    return F.interpolate(planes[None], size=(height, width), mode="bicubic", antialias=True)[0]
