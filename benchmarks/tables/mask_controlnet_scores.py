"""What the judge says of a picture of Mask-ControlNet's table, and figures of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demo import judge

from ..figures import Figure, apart, mean, rate
from .mask_controlnet_cases import Case

THERE = 0.5
BESIDE = 0.2
"""An object is where its mask is from this overlap on; one that covers less than this part of another's place is not there."""
SAME = 0.7
"""From this overlap with its mask on an object has kept its outline."""


@dataclass(frozen=True)
class Score:
    """What the judge says of one picture. `fidelity` is of what is where the mask was; `overlap` of the object there with its mask;
    `nearer`: its features are nearer to the marked object's than to those of any other in the reference."""

    overlap: float
    shape: bool
    colours: bool
    nearer: bool
    fidelity: float
    ground: bool
    returned: bool
    beside: bool
    psnr: float
    ssim: float
    perceptual: float

    @property
    def kept(self) -> bool:
        """In its place, of its shape, in both of its colours, with its outline."""
        return self.shape and self.colours and self.overlap >= SAME

    @property
    def chosen(self) -> bool:
        """The marked object is there, and the other one is not, in neither place."""
        return self.overlap >= THERE and self.nearer and not self.beside


def score_of(
    case: Case,
    picture: Tensor,
    wanted: Tensor,
    verdict: judge.Verdict,
    found: judge.Found | None,
    place: np.ndarray,
    nearer: bool,
    alike: float,
    far: float,
) -> Score:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    whole: Any = structural_similarity(picture.numpy(), wanted.numpy(), channel_axis=-1, data_range=1.0, full=True)
    inside = np.repeat(np.repeat(place, 2, 0), 2, 1)
    overlap = 0.0 if found is None else float((found.mask & place).sum() / (found.mask | place).sum())
    others = [mask for number, mask in enumerate(case.rendered.masks) if number != case.number]
    painted = functools.reduce(np.logical_or, (one.mask for one in verdict.objects), np.zeros_like(place))
    beside = any(float((painted & (mask[::2, ::2] > 0.5)).sum() / max(1, (mask[::2, ::2] > 0.5).sum())) > BESIDE for mask in others)
    return Score(
        overlap, found is not None and found.shape == case.subject.shape, found is not None and found.painted(*case.subject.colours),
        nearer, alike,
        verdict.ground == case.ground, case.scene.ground != case.ground and verdict.ground == case.scene.ground, beside,
        float(peak_signal_noise_ratio(wanted.numpy()[inside], picture.numpy()[inside], data_range=1.0)),
        float(whole[1].mean(-1)[inside].mean()), far,
    )  # fmt: skip


def most_within(verdict: judge.Verdict, place: np.ndarray) -> judge.Found | None:
    """The object that covers most of a place, if any covers some of it."""
    best = max(verdict.objects, key=lambda one: int((one.mask & place).sum()), default=None)
    return best if best is not None and bool((best.mask & place).any()) else None


@torch.no_grad()
def perceptual(eye: judge.Judge, one: Tensor, other: Tensor) -> Tensor:
    """A distance [B] between pictures as LPIPS reckons it, of the judge's own network: unit features, squared difference, per level."""
    levels = (eye.levels(judge.scaled(pictures)) for pictures in (one, other))
    differences = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) for a, b in zip(*levels, strict=True)]
    return torch.stack(differences).mean(0)


@torch.no_grad()
def frechet(eye: judge.Judge, one: Tensor, other: Tensor) -> float:
    """Fréchet distance between two sets of pictures, of the judge's features of whole pictures in place of Inception's."""
    from scipy import linalg

    found = []
    for pictures in (one, other):
        levels = torch.cat([level.mean((2, 3)) for level in eye.levels(judge.scaled(pictures))[:4]], 1).double().numpy()
        found.append((levels.mean(0), np.cov(levels, rowvar=False)))
    (mean, spread), (other_mean, other_spread) = found
    root: Any = linalg.sqrtm(spread @ other_spread)
    return float(((mean - other_mean) ** 2).sum() + np.trace(spread + other_spread - 2 * np.real(root)))


def figures_of(name: str, scores: Sequence[Score]) -> list[Figure]:
    return [
        mean(f"{name}: object fidelity", [score.fidelity for score in scores]),
        rate(f"{name}: the object is distorted or missing", [not score.kept for score in scores]),
        rate(f"{name}: the prompt's ground", [score.ground for score in scores]),
        rate(f"{name}: the reference's ground comes back", [score.returned for score in scores]),
        mean(f"{name}: the object's PSNR", [score.psnr for score in scores]),
        mean(f"{name}: the object's SSIM", [score.ssim for score in scores]),
    ]


def compared(name: str, ours: Sequence[Score], others: Sequence[Score]) -> list[Figure]:
    """Hold two methods against each other in what the mask prompt is for (Table 4)."""
    measures: tuple[tuple[str, bool, Callable[[Score], float]], ...] = (
        ("object fidelity", True, lambda score: score.fidelity),
        ("the object is distorted or missing", False, lambda score: not score.kept),
        ("the reference's ground comes back", False, lambda score: score.returned),
    )
    found = []
    for what, more, of in measures:
        one, other = ([float(of(score)) for score in scores] for scores in (ours, others))
        first, second = (mean(what, values) for values in (one, other))
        differences = [a - b for a, b in zip(one, other, strict=True)]
        found.append(apart(f"{name}: {what}", first, second, more, differences))
    return found
