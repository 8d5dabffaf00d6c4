"""Refines shift, zoom and tint together: least squares that lets go of what was painted anew. Pure tensor work, no ComfyUI."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .warp import inside, moved

NOISE = 0.004
"""The smallest difference of two pixels that counts: one step of 8 bits."""
TUKEY = 4.685
"""Tukey's biweight lets go of what lies further off than so many standard deviations."""
PRIOR = 0.02
"""The contrast below which a gain cannot be told from an offset, and is held at 1."""
UNCERTAINTIES = (1.5, 0.7, 0.4, 0.2, 0.1)
"""How far off the place may still be, in pixels, from the first round on: a difference that this explains is none of the picture's."""
GREY = 0.5
MOST_ROUNDS = 12
SETTLED = 0.003
"""Rounds end where the border moves by less, in pixels."""


@dataclass(frozen=True)
class Fit:
    """What was found: `move` float64 [3], the shift to the right and down in pixels and zoom - 1; `gain` and `offset` [3], one a colour.

    `error`: the standard error of what moves the border, in pixels. `likeness`: correlation of both pictures' edges, -1 to 1. `noise`: what
    is left of the differences. `share`: the part of all edges that agrees.
    """

    move: Tensor
    gain: Tensor
    offset: Tensor
    error: float = math.inf
    likeness: float = 0.0
    noise: float = math.inf
    share: float = 0.0

    @property
    def trust(self) -> float:
        """How well all that could agree does, 0 to 1."""
        return max(0.0, self.likeness) * self.share


def gradients(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of [C, H, W] to the right and down, of the same shape, 0 at the border."""
    right = torch.zeros_like(planes)
    down = torch.zeros_like(planes)
    right[..., 1:-1] = (planes[..., 2:] - planes[..., :-2]) / 2
    down[..., 1:-1, :] = (planes[..., 2:, :] - planes[..., :-2, :]) / 2
    return right, down


def refined(original: Tensor, piece: Tensor, outside: Tensor, move: Tensor, uncertainties: tuple[float, ...] = UNCERTAINTIES) -> Fit:
    """The fit of `piece` to `original` (both [3, H, W]) where `outside` (bool [H, W]), from a first `move` on."""
    height, width = outside.shape
    radius = max(height, width) / 2
    columns = ((torch.arange(width) + 0.5 - width / 2) / radius).expand(height, width)
    rows = ((torch.arange(height) + 0.5 - height / 2) / radius)[:, None].expand(height, width)
    gain, offset = _tint(original, moved(piece, *_numbers(move)), outside.float())
    for turn in range(MOST_ROUNDS):
        seen = moved(piece, *_numbers(move))
        there = outside & inside(height, width, *_numbers(move))
        if int(there.sum()) < 50:
            break
        right, down = gradients(seen)
        differences = seen - gain[:, None, None] * original - offset[:, None, None]
        weight, _ = _weights(differences, right, down, there, uncertainties[min(turn, len(uncertainties) - 1)])
        change, gain, offset, _ = _solved(original, seen, (right, down, right * columns + down * rows), weight)
        change = change.clamp(-4, 4)
        move = move + change * torch.tensor([1.0, 1.0, 1 / radius], dtype=torch.float64)
        if turn >= len(uncertainties) and float(change.abs().sum()) < SETTLED:
            break
    return _valued(original, piece, outside, move, gain, offset, (columns, rows, radius))


def tinted(original: Tensor, piece: Tensor, outside: Tensor) -> Fit:
    """Gains and offsets alone, for a piece that lies where it was."""
    gain = torch.ones(3)
    offset = torch.zeros(3)
    weight = outside.float()
    noise = math.inf
    for _ in range(MOST_ROUNDS):
        gain, offset = _tint(original, piece, weight)
        differences = piece - gain[:, None, None] * original - offset[:, None, None]
        flat = torch.zeros_like(piece)
        weight, noise = _weights(differences, flat, flat, outside, 0.0)
    return Fit(torch.zeros(3, dtype=torch.float64), gain, offset, noise=noise)


def _numbers(move: Tensor) -> tuple[float, float, float]:
    right, down, zoom = (float(number) for number in move)
    return right, down, 1 + zoom


def _weights(differences: Tensor, right: Tensor, down: Tensor, there: Tensor, uncertainty: float) -> tuple[Tensor, float]:
    """Tukey's weights [H, W] of differences [3, H, W], and the differences' deviation.

    A difference counts by what noise and a place that is off by `uncertainty` pixels would make of it, so that edges are not let go of
    before they have been brought together.
    """
    size = differences.square().mean(0)
    slope = (right.square() + down.square()).mean(0) * uncertainty**2
    noise = max(NOISE, 1.4826 * float(size[there].sqrt().median()))
    distance = size / (noise**2 + slope) / TUKEY**2
    return (1 - distance).clamp(min=0) ** 2 * there, noise


def _solved(original: Tensor, seen: Tensor, slopes: tuple[Tensor, ...], weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted least squares of seen + slopes * change = gain * original + offset: change [3], gain [3], offset [3], and the inverse [3, 3]
    of the normal matrix's part for the change when all others are free."""
    matrix = torch.zeros(9, 9, dtype=torch.float64)
    target = torch.zeros(9, dtype=torch.float64)
    counted = weight.flatten()
    held = float(counted.sum()) * PRIOR**2
    for colour in range(3):
        # Around mid grey, so that sums in single precision are exact enough.
        known = original[colour].flatten() - GREY
        columns = torch.stack([*(-slope[colour].flatten() for slope in slopes), known, torch.ones_like(known)])
        weighted = columns * counted
        places = torch.tensor([0, 1, 2, 3 + 2 * colour, 4 + 2 * colour])
        matrix[places[:, None], places[None]] += (weighted @ columns.T).double()
        target[places] += (weighted @ (seen[colour].flatten() - GREY)).double()
        matrix[3 + 2 * colour, 3 + 2 * colour] += held
        target[3 + 2 * colour] += held
    matrix += 1e-9 * torch.eye(9, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix)
    found = inverse @ target
    gain = found[3::2]
    offset = found[4::2] + GREY * (1 - gain)
    return found[:3], gain.float(), offset.float(), inverse[:3, :3]


def _tint(original: Tensor, seen: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gains and offsets [3] by weighted least squares, gains held at 1 where there is no contrast."""
    total = weight.sum().clamp(min=1e-6)
    first, second = ((planes * weight).sum((1, 2)) / total for planes in (original, seen))
    apart = original - first[:, None, None]
    variance = (apart.square() * weight).sum((1, 2)) / total
    together = (apart * (seen - second[:, None, None]) * weight).sum((1, 2)) / total
    # Held against an offset at the mean: gain (x - mean) + mean + offset, so that 1 is no tint.
    gain = (together + PRIOR**2) / (variance + PRIOR**2)
    return gain, second - gain * first


def _valued(
    original: Tensor, piece: Tensor, outside: Tensor, move: Tensor, gain: Tensor, offset: Tensor, place: tuple[Tensor, Tensor, float]
) -> Fit:
    """The fit with what tells how far it can be trusted."""
    height, width = outside.shape
    columns, rows, _ = place
    seen = moved(piece, *_numbers(move))
    there = outside & inside(height, width, *_numbers(move))
    if int(there.sum()) < 50:
        return Fit(move, gain, offset)
    right, down = gradients(seen)
    differences = seen - gain[:, None, None] * original - offset[:, None, None]
    weight, noise = _weights(differences, right, down, there, UNCERTAINTIES[-1])
    *_, inverse = _solved(original, seen, (right, down, right * columns + down * rows), weight)
    # Neighbouring differences are not independent: of nine in a square one counts.
    left = float((differences.square() * weight).sum() / (3 * weight.sum().clamp(min=1e-6)))
    error = math.sqrt(max(left, NOISE**2) * 9 * float(inverse.diagonal().max()))
    first, second = (torch.stack(gradients(planes)) for planes in (original, seen))
    edges = first.square().sum((0, 1))
    share = float((edges * weight).sum() / (edges * there).sum().clamp(min=1e-9))
    both = float((first * second * weight).sum())
    likeness = both / math.sqrt(max(1e-12, float((first.square() * weight).sum() * (second.square() * weight).sum())))
    return Fit(move, gain, offset, error, likeness, noise, share)
