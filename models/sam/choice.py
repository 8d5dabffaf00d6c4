"""Which of SAM's three masks is meant, and what of it is the object: the whole-object rule, islands off, holes filled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

WHOLE, BEST, LARGEST, SMALLEST, ALL = CHOICES = ("whole object", "best score", "largest", "smallest", "all")

STABILITY_WEIGHT, DOUBLING_WEIGHT, BORDER_WEIGHT, FREE_BORDER = 0.3, 0.1, 1.6, 0.35
"""Weights of `whole_object_rank`. They were set on half of the objects of `nox -s tables -- sam` and judged on the other half; doubling
or halving each of them changes the outcome on few objects, so no more digits are claimed."""


def whole_object_rank(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Rank SAM's masks [N] by how much each looks like a whole object, from logits [N, h, w] of the picture without padding.

    A point lies on a part, on an object and on a scene at once, and SAM's own score prefers whichever has the sharpest outline: a button
    to its coat. The rank is score + 0.3 stability + 0.1 for every doubling of the area - 1.6 for what the mask takes of the picture's
    border beyond 0.35 of it. Stability is SAM's own: the area above a logit of 1 as a part of that above -1 (arXiv:2304.02643, 5).
    """
    inside = logits > 0
    area = inside.float().mean(dim=(1, 2))
    stability = (logits > 1).sum(dim=(1, 2)) / (logits > -1).sum(dim=(1, 2)).clamp(min=1)
    edges = (inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1])
    border = torch.stack([edge.float().mean(dim=1) for edge in edges]).mean(dim=0)
    doublings = area.clamp(min=1e-4).log2()
    return scores + STABILITY_WEIGHT * stability + DOUBLING_WEIGHT * doublings - BORDER_WEIGHT * (border - FREE_BORDER).clamp(min=0)


def chosen(logits: torch.Tensor, rank: torch.Tensor, choice: str) -> list[int]:
    """The numbers of the wanted masks among logits [N, h, w]: the one that ranks first, the largest, the smallest, or all by area."""
    if choice in (WHOLE, BEST):
        return [int(rank.argmax())]
    by_area = (logits > 0).sum(dim=(1, 2)).argsort().tolist()
    return {SMALLEST: by_area[:1], LARGEST: by_area[-1:], ALL: by_area}[choice]


def one_piece(
    mask: torch.Tensor, on: Iterable[tuple[float, float]] = (), off: Iterable[tuple[float, float]] = (), least: float = 1.0
) -> torch.Tensor:
    """bool [H, W] without islands and holes.

    Of its pieces stay those with a point (x, y) of `on` in them and those of at least `least` of the largest one's area; with `least` at
    1, the largest stays only where no point hits a piece. Every hole is filled, unless a point of `off` lies in it.
    """
    from scipy import ndimage

    inside = mask.cpu().numpy()
    pieces, count = _labels(ndimage, inside)
    if count > 1:
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        stay = np.zeros(count + 1, bool)
        stay[_hit(pieces, on)] = True
        stay[0] = False
        if least < 1 or not stay.any():
            stay |= sizes >= max(least * sizes.max(), 1)
        inside = stay[pieces]
    holes, count = _labels(ndimage, ~inside)
    if count:
        fill = np.ones(count + 1, bool)
        fill[np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])] = False
        fill[_hit(holes, off)] = False
        fill[0] = False
        inside = inside | fill[holes]
    return torch.from_numpy(inside).to(mask.device)


def _labels(ndimage: Any, inside: np.ndarray) -> tuple[np.ndarray, int]:
    found: Any = ndimage.label(inside)
    return found[0], int(found[1])


def _hit(labels: np.ndarray, points: Iterable[tuple[float, float]]) -> list[int]:
    height, width = labels.shape
    return [int(labels[min(int(y), height - 1), min(int(x), width - 1)]) for x, y in points]
