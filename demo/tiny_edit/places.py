"""Where in a thing each token of a picture lies: what the transformer's blocks learn to tell while they learn to paint.

A thing is painted by many tokens that have to agree where it is, how it is turned, and which of them is its ear. What they should agree on
is known, as every picture is drawn; so the training asks the tokens for it half-way through the blocks, beside what it asks of the picture
(as Yu et al., 2024, "Representation alignment", ask for what a vision encoder sees). Painting needs none of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .scenes import Placed
from .world import World

NOTHING = -128
"""The place of a token that shows no thing."""
UNIT = 100
"""Places are in hundredths of the thing's longer side, from its middle: -50 to 50 along that side."""
WAVES: tuple[int, ...] = (1, 2, 4)
FEATURES = 1 + 4 * len(WAVES)
OUTLINE = 32
"""Cells of the longer side of a cut-out's outline."""

_OUTLINES: dict[tuple[int, str], np.ndarray] = {}


def outline(world: World, code: str) -> np.ndarray:
    """Gives where a cut-out is, bool [h, w], its longer side 32 cells."""
    key = (id(world), code)
    if key not in _OUTLINES:
        alpha = world.cut_outs[code][..., 3]
        ys, xs = np.nonzero(alpha > 127)
        cut = Image.fromarray(alpha[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
        scale = OUTLINE / max(cut.size)
        shape = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
        _OUTLINES[key] = np.asarray(cut.resize(shape, Image.Resampling.BOX)) > 127
    return _OUTLINES[key]


def places_of(world: World, things: Sequence[Placed], tokens: int, box: Sequence[float] | None = None) -> np.ndarray:
    """Gives where each token of a picture lies in the thing that it shows: across and down, int8 [2, tokens, tokens].

    Across is the cut-out's own: an ear that a flip brings to the other side has the same place. Of things that hide each other the last one
    counts. `box` (x, y, width, height in parts of the picture) is grey and shows nothing.
    """
    found = np.full((2, tokens, tokens), NOTHING, np.int8)
    centres = (np.arange(tokens) + 0.5) / tokens
    for thing in things:
        inside = outline(world, thing.code)
        height, width = inside.shape
        turn = math.radians(thing.tilt)
        right = (centres[None, :] - thing.x) / thing.size
        down = (centres[:, None] - thing.y) / thing.size
        across = right * math.cos(turn) + down * math.sin(turn)
        along = down * math.cos(turn) - right * math.sin(turn)
        across = -across if thing.flip else across
        column = np.floor(across * OUTLINE + width / 2).astype(int)
        row = np.floor(along * OUTLINE + height / 2).astype(int)
        shown = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        shown[shown] = inside[row[shown], column[shown]]
        found[0][shown] = np.rint(across[shown] * UNIT)
        found[1][shown] = np.rint(along[shown] * UNIT)
    if box is not None:
        x, y, width, height = box
        covered = (centres > x) & (centres < x + width)
        found[:, ((centres > y) & (centres < y + height))[:, None] & covered[None, :]] = NOTHING
    return found


def halved(places: np.ndarray) -> np.ndarray:
    """Gives the places int8 [..., S/2, S/2] of tokens twice as wide: the mean of those of four [..., S, S] that show a thing, if two do."""
    side = places.shape[-1] // 2
    four = places.reshape(*places.shape[:-2], side, 2, side, 2)
    shown = four != NOTHING
    count = shown.sum((-3, -1))
    mean = np.where(shown, four, 0).sum((-3, -1)) / np.maximum(count, 1)
    return np.where(count >= 2, np.rint(mean), NOTHING).astype(np.int8)


def features_of(places: Tensor) -> Tensor:
    """Puts places int8 [B, L, 2] into what a linear layer can tell: whether there is a thing, cosines and sines of where, [B, L, 13]."""
    shown = places[..., :1] != NOTHING
    waves = torch.tensor(WAVES, device=places.device) * (math.pi / UNIT)
    angles = (places.float()[..., None] * waves).flatten(2)
    return torch.cat([shown, angles.cos() * shown, angles.sin() * shown], -1)
