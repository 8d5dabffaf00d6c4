"""Which thing each token of a picture shows, and where in it: what the transformer's blocks learn to tell while they learn to paint.

A thing is painted by many tokens that have to agree what and where it is, how it is turned, and which of them is its ear. What they
should agree on is known, as every picture is drawn; so the training asks them for it half-way through the blocks, beside the picture (as
Yu et al., 2024, "Representation alignment", ask for what a vision encoder sees). Where a reference shows the thing, some heads are told
which of its tokens to look at, too: those of the same place. Painting needs none of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import things
from .scenes import Placed
from .world import OUTLINE, World

NOTHING = -128
"""The place of a token that shows no thing."""
UNIT = 100
"""Places are in hundredths of the thing's longer side, from its middle: -50 to 50 along that side."""
WAVES: tuple[int, ...] = (1, 2, 4)
BITS = 8
FEATURES = 1 + 4 * len(WAVES) + BITS

NEARLY = 8
"""How far apart, in the same hundredths, two tokens may lie that show the same piece of a thing: about the width of a portrait's token."""

SHARED = 2**BITS - 1 - len(things.NAMED)
"""How many numbers there are for the things without a name, some of which share one."""
NUMBERS: dict[str, int] = {
    code: (number if number < len(things.NAMED) else len(things.NAMED) + (number - len(things.NAMED)) % SHARED) - 2 ** (BITS - 1) + 1
    for number, code in enumerate((*things.TRAINING, *things.HELD_OUT))
}
"""A thing's number, which fits eight bits, is never `NOTHING`, and is a named thing's own."""


def places_of(world: World, shown: Sequence[Placed], tokens: int, box: Sequence[float] | None = None) -> np.ndarray:
    """Gives where each token of a picture lies in the thing that it shows, across and down, and its number: int8 [3, tokens, tokens].

    Across is the cut-out's own: an ear that a flip brings to the other side has the same place. Of things that hide each other the last one
    counts. `box` (x, y, width, height in parts of the picture) is grey and shows nothing.
    """
    found = np.full((3, tokens, tokens), NOTHING, np.int8)
    centres = (np.arange(tokens) + 0.5) / tokens
    for thing in shown:
        inside = world.outlines[thing.code]
        height, width = inside.shape
        turn = math.radians(thing.tilt)
        right = (centres[None, :] - thing.x) / thing.size
        down = (centres[:, None] - thing.y) / thing.size
        across = right * math.cos(turn) + down * math.sin(turn)
        along = down * math.cos(turn) - right * math.sin(turn)
        across = -across if thing.flip else across
        column = np.floor(across * OUTLINE + width / 2).astype(int)
        row = np.floor(along * OUTLINE + height / 2).astype(int)
        covers = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        covers[covers] = inside[row[covers], column[covers]]
        found[0][covers] = np.rint(across[covers] * UNIT)
        found[1][covers] = np.rint(along[covers] * UNIT)
        found[2][covers] = NUMBERS[thing.code]
    if box is not None:
        x, y, width, height = box
        covered = (centres > x) & (centres < x + width)
        found[:, ((centres > y) & (centres < y + height))[:, None] & covered[None, :]] = NOTHING
    return found


def halved(places: np.ndarray) -> np.ndarray:
    """Gives the places int8 [..., 3, S/2, S/2] of tokens twice as wide, from [..., 3, S, S].

    If two of four tokens show a thing, it is the mean place of them, and one of their things.
    """
    side = places.shape[-1] // 2
    four = places.reshape(*places.shape[:-2], side, 2, side, 2)
    shown = four != NOTHING
    count = shown.sum((-3, -1))
    mean = np.where(shown, four, 0).sum((-3, -1)) / np.maximum(count, 1)
    mean[..., 2, :, :] = four.max((-3, -1))[..., 2, :, :]
    return np.where(count >= 2, np.rint(mean), NOTHING).astype(np.int8)


def features_of(places: Tensor) -> Tensor:
    """Puts places int8 [B, L, 3] into what a linear layer can tell, [B, L, 21]: whether there is a thing, cosines and sines of where, and
    the bits of its number as ones and minus ones."""
    shown = places[..., :1] != NOTHING
    waves = torch.tensor(WAVES, device=places.device) * (math.pi / UNIT)
    angles = (places[..., :2].float()[..., None] * waves).flatten(2)
    bits = places[..., 2:].int().bitwise_right_shift(torch.arange(BITS, device=places.device)) % 2 * 2 - 1
    return torch.cat([shown, angles.cos() * shown, angles.sin() * shown, bits * shown], -1)


def matches(painted: Tensor, shown: Tensor) -> Tensor:
    """Gives where a token of the painted picture finds its own piece in the references: [B, P, R], from places [B, P, 3] and [B, R, 3].

    Rows sum to one over the tokens that show the same thing at nearly the same place (a normal distribution of `NEARLY` hundredths, cut at
    three times that), and are zero where a token shows nothing, or what no reference shows. Things without a name that share a number
    are taken for one.
    """
    same = (painted[:, :, None, 2] == shown[:, None, :, 2]) & (painted[:, :, None, 2] != NOTHING)
    apart = (painted[:, :, None, :2].float() - shown[:, None, :, :2].float()).square().sum(-1)
    near = torch.exp(-apart / (2 * NEARLY**2)) * (same & (apart < (3 * NEARLY) ** 2))
    return near / near.sum(-1, keepdim=True).clamp(min=1e-9)


def looking_error(looks: Tensor, wanted: Tensor) -> Tensor:
    """Gives the cross-entropy of attention's logits [B, P, R] against `matches`, in nats, over tokens that have one; zero if none has."""
    found = -(wanted * looks.float().log_softmax(-1)).sum()
    return found / (wanted.sum(-1) > 0).sum().clamp(min=1)
