"""What the judge says of a picture of MCGM's table, and figures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from demo import judge, scenes
from demo.subjects import Subject

from ..figures import Figure, mean, rate


@dataclass(frozen=True)
class Score:
    """What the judge says of one picture, a value for each subject, but for `mixed`, which has one for each object that it found.

    `overlap`: of what is painted in the subject's colours (of a single subject, of all that is an object) with its mask; `present`: an
    object of its shape in both of its colours is somewhere; `mixed`: the part of an object that is not of the subject most of it is of.
    """

    overlap: tuple[float, ...]
    present: tuple[bool, ...]
    mixed: tuple[float, ...]


def score_of(picture: tuple[Subject, ...], masks: np.ndarray, seen: judge.Verdict, whose: np.ndarray) -> Score:
    """`masks` [n, 128, 128]; `whose` [64, 64], the number of the subject whose an object's cell is, -1 where no object is."""
    overlap = tuple(overlapping(whose == number, mask[::2, ::2] > 0.5) for number, mask in enumerate(masks))
    present = tuple(any(found.shape == one.shape and found.painted(*one.colours) for found in seen.objects) for one in picture)
    shares = [[float((whose[found.mask] == number).mean()) for number in range(len(picture))] for found in seen.objects]
    return Score(overlap, present, tuple(1 - max(share) for share in shares) if len(picture) > 1 else ())


def owners(eye: judge.Judge, picture: tuple[Subject, ...], pictures: Tensor) -> np.ndarray:
    """For each cell of pictures [B, 128, 128, 3] the number of the subject that has the likeliest of its colours, -1 where no object is."""
    found, colours = judge.cells(eye, pictures)
    names = list(scenes.COLOURS)
    each = torch.stack([colours[:, [names.index(name) for name in one.colours]].amax(1) for one in picture], 1)
    return torch.where(found > 0.5, each.argmax(1), -1).numpy()


def overlapping(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def figures_of(name: str, scores: Sequence[Score]) -> list[Figure]:
    found = [
        mean(f"{name}: overlap with the mask", [value for score in scores for value in score.overlap]),
        rate(f"{name}: the subject is there", [value for score in scores for value in score.present]),
    ]
    parts = mixed(f"{name}: part of an object in another's colours", scores)
    return [*found, parts] if parts.cases else found


def mixed(name: str, scores: Sequence[Score]) -> Figure:
    """How much of an object is in another subject's colours, on average."""
    return mean(name, [value for score in scores for value in score.mixed])


def no_worse(name: str, ours: Sequence[Score], others: Sequence[Score]) -> Figure:
    """The difference of how often the subjects are there; no worse by more than five points."""
    differences = [float(np.mean(one.present)) - float(np.mean(other.present)) for one, other in zip(ours, others, strict=True)]
    found = mean(name, differences)
    return replace(found, bar="\u2265 -0.05", met=found.value >= -0.05)


def wins(ours: Sequence[Score], others: Sequence[Score]) -> list[float]:
    """Of pairs of the same pose and noise: one where our picture overlaps its masks more, a half where both do as much."""
    pairs = [(float(np.mean(one.overlap)), float(np.mean(other.overlap))) for one, other in zip(ours, others, strict=True)]
    return [0.5 if one == other else float(one > other) for one, other in pairs]
