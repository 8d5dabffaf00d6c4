"""Measures how a painted piece lies on the original around its mask: shifted, zoomed, tinted. Pure tensor work, no ComfyUI.

Edit models paint the whole piece anew, and what they were to leave alone comes back a little moved, scaled or coloured. With c the centre
of the piece, the model of what happened to a pixel x of the original (both in pixels) is

    piece(c + zoom (x - c) + shift) = gain * original(x) + offset

with one gain and offset for each colour. The search is by normalised correlation at a few zooms on a small copy (Lewis, "Fast normalized
cross-correlation", 1995; masked as in Padfield, "Masked object registration in the Fourier domain", 2012); then all numbers are refined
together by least squares from coarse to fine (Lucas and Kanade, 1981), with Tukey's biweight against what was really painted anew.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .correlation import correlation
from .robust_fit import NOISE, UNCERTAINTIES, Fit, refined, tinted
from .warp import moved

FINEST = 320
"""The longer side in pixels at which the last refinement is made."""
COARSEST = 60
"""The shorter side in pixels below which no copy is made."""
ZOOMS = tuple(1 + percent / 100 for percent in range(-9, 10))
"""Zooms that the search tries; the refinement finds what lies between."""
STARTS = 3
"""How many of the best places are tried in earnest,"""
CERTAIN = 0.6
"""unless one agrees with so much of the picture."""
REACH = 0.125
"""How far the search looks, as a part of the longer side."""
LEAST_OUTSIDE = 200
"""Pixels of surroundings without which nothing is measured."""
TOLD_PIXELS = 0.12
"""A shift is told if its standard error is below so many pixels of the measured size, a zoom if it moves the border by no more."""
TOLD_TRUST = 0.4
"""And if so much of the surroundings' edges agrees."""


@dataclass(frozen=True)
class Alignment:
    """What was found. `right` and `down` (pixels of the original) say where the surroundings moved to, `zoom` how much larger they became.

    `gain` and `offset`, one for each colour, say how they were tinted. `place_told` and `tint_told`: whether the picture allowed to tell;
    what is not told is as if nothing had happened. `reason` says in words why not.
    """

    right: float = 0.0
    down: float = 0.0
    zoom: float = 1.0
    gain: tuple[float, ...] = (1.0, 1.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    place_told: bool = False
    tint_told: bool = False
    reason: str = ""


@dataclass(frozen=True)
class _Level:
    """Both pictures [3, h, w] at one size, where the surroundings are (bool [h, w]), and how many of the original's pixels one is across
    and down."""

    original: Tensor
    piece: Tensor
    outside: Tensor
    step: tuple[float, float]


def measure(original: Tensor, piece: Tensor, outside: Tensor) -> Alignment:
    """How `piece` [P, Q, 3] lies on `original` [h, w, 3], both 0..1, where `outside` (bool [h, w]) says that nothing was to be painted.

    The piece covers the whole of the original, whatever its size.
    """
    if int(outside.sum()) < LEAST_OUTSIDE:
        return Alignment(reason="there is too little outside of the mask")
    levels = _pyramid(original.float(), piece.float(), outside)
    if not levels:
        return Alignment(reason="there is too little outside of the mask")
    fit = _searched(levels[0])
    for before, level in itertools.pairwise(levels):
        grown = [coarse / fine for coarse, fine in zip(before.step, level.step, strict=True)]
        move = fit.move * torch.tensor([*grown, 1.0], dtype=torch.float64)
        fit = refined(level.original, level.piece, level.outside, move, UNCERTAINTIES[1:])
    return _judged(levels[-1], fit)


def _judged(level: _Level, fit: Fit) -> Alignment:
    """The fit as an Alignment, if it deserves trust."""
    right, down, zoom = (float(number) for number in fit.move)
    height, width = level.outside.shape
    near = max(abs(right), abs(down)) <= 1.5 * REACH * max(height, width) and abs(zoom) < 0.12
    if near and fit.error <= TOLD_PIXELS and fit.trust >= TOLD_TRUST:
        tint = (tuple(fit.gain.tolist()), tuple(fit.offset.tolist()))
        return Alignment(right * level.step[0], down * level.step[1], 1 + zoom, *tint, place_told=True, tint_told=True)
    still = tinted(level.original, level.piece, level.outside)
    if fit.trust < TOLD_TRUST and still.noise > 0.05:
        return Alignment(reason="the surroundings were painted anew")
    tint = (tuple(still.gain.tolist()), tuple(still.offset.tolist()))
    return Alignment(0.0, 0.0, 1.0, *tint, tint_told=True, reason="there is too little to hold on to outside of the mask")


def _pyramid(original: Tensor, piece: Tensor, outside: Tensor) -> list[_Level]:
    """Copies of both from coarse to fine, halved each time, lightly blurred so that neither grain nor sharpening counts."""
    longer = max(original.shape[:2])
    shorter = min(original.shape[:2])
    sizes = [min(longer, max(piece.shape[:2]), FINEST)]
    while sizes[-1] / 2 * shorter / longer >= COARSEST:
        sizes.append(sizes[-1] // 2)
    levels = []
    for size in reversed(sizes):
        scale = size / longer
        height, width = (max(8, round(side * scale)) for side in original.shape[:2])
        pictures = [_blurred(_resized(picture, height, width)) for picture in (original, piece)]
        free = F.interpolate(outside[None, None].float(), size=(height, width), mode="area")[0, 0] > 0.999
        free = ~(F.max_pool2d((~free)[None].float(), 5, 1, 2)[0] > 0)
        if int(free.sum()) >= LEAST_OUTSIDE:
            levels.append(_Level(pictures[0], pictures[1], free, (original.shape[1] / width, original.shape[0] / height)))
    return levels


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    """[h, w, 3] to [3, height, width], area-averaged where it shrinks."""
    planes = picture.movedim(-1, 0)[None]
    if planes.shape[-2:] == (height, width):
        return planes[0]
    return F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)[0]


def _blurred(planes: Tensor, deviation: float = 1.0) -> Tensor:
    """[C, H, W] under a Gaussian, in pixels."""
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / deviation) ** 2) / 2)
    weights = (weights / weights.sum()).to(planes)
    padded = F.pad(planes[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[None, None, None]), weights[None, None, :, None])[:, 0]


def _searched(level: _Level) -> Fit:
    """The fit that is best among those that start from the highest normalised correlations of any zoom."""
    original = _evened(level.original)
    reach = max(2, math.ceil(REACH * max(original.shape)))
    piece = _evened(level.piece)[None]
    zoomed = torch.cat([moved(piece, 0.0, 0.0, zoom) for zoom in ZOOMS])
    starts = []
    for zoom, scores in zip(ZOOMS, correlation(original, zoomed, level.outside, reach), strict=True):
        top = int(scores.argmax())
        down, right = divmod(top, 2 * reach + 1)
        # `moved` has taken the zoom back, so the rest of the shift is in pixels of the original: zoom times that of the piece.
        start = torch.tensor([(right - reach) * zoom, (down - reach) * zoom, zoom - 1], dtype=torch.float64)
        starts.append((float(scores.flatten()[top]), start))
    starts.sort(key=lambda start: -start[0])
    best = Fit(torch.zeros(3, dtype=torch.float64), torch.ones(3), torch.zeros(3))
    for start in [*(start for _, start in starts[:STARTS]), best.move]:
        found = refined(level.original, level.piece, level.outside, start)
        best = found if found.trust > best.trust else best
        if best.trust >= CERTAIN:
            break
    return best


def _evened(planes: Tensor) -> Tensor:
    """The brightness of [3, H, W] against its surroundings, as loud everywhere: what was painted anew must not outshout the rest."""
    grey = planes.mean(0, keepdim=True)
    apart = grey - _blurred(grey, 3.0)
    return (apart / (_blurred(apart.square(), 3.0).sqrt() + 2 * NOISE))[0].clamp(-2, 2)
