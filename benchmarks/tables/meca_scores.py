"""What the judge says of a picture of MECA's table, and figures of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo import judge, subjects

from ..figures import Figure, apart, mean, rate
from .meca_cases import Case, grounds_of, regions_of, shown
from .tiny_model import in_box


@dataclass(frozen=True)
class Score:
    """What the judge says of one picture. `ground` and `other`: outside the box, the ground is the reference's, the text's. `found`,
    `shape`, `colour`: of the object in the box. `anywhere`: the object of the text is there, in the box or not. `same_shape` and
    `same_colour`: some object has those of the reference's. `off`: how far (CIEDE2000) the mean colour outside the box is from that
    of the reference's ground."""

    ground: bool
    other: bool
    found: bool
    shape: bool
    colour: bool
    anywhere: bool
    same_shape: bool
    same_colour: bool
    off: float

    @property
    def asked(self) -> bool:
        return self.shape and self.colour

    @property
    def pure(self) -> bool:
        return self.ground and self.asked

    @property
    def leak(self) -> bool:
        return self.same_shape or self.same_colour


Scores = list[list[Score]]
"""By case, then by seed."""


def judged(eye: judge.Judge, pictures: Tensor, page: Sequence[Case]) -> list[Score]:
    """The judge looks at whole pictures for objects, and for grounds at what lies outside the boxes."""
    regions = regions_of(page)
    return [
        _score(verdict, ground, picture, region, case)
        for verdict, ground, picture, region, case in zip(
            judge.look(eye, pictures), grounds_of(eye, pictures, regions), pictures, regions, page, strict=True
        )
    ]


def _score(verdict: judge.Verdict, ground: str, picture: Tensor, region: Tensor, case: Case) -> Score:
    shape = case.thing.shape
    colour = case.thing.paint.colour
    found = in_box(verdict, None, 1 - region)
    reference, mask = shown(case.reference)
    seen, wanted = (
        [float(value) * 255 for value in image[where > 0.5].mean(0)] for image, where in ((picture, region), (reference, 1 - mask))
    )
    return Score(
        ground == case.reference.ground, ground == case.ground,
        found is not None, found is not None and found.shape == shape, found is not None and found.colour == colour,
        any(one.shape == shape and one.colour == colour for one in verdict.objects),
        any(one.shape == case.unwanted.shape for one in verdict.objects),
        any(one.colour == case.unwanted.paint.colour for one in verdict.objects),
        subjects.distance(seen, wanted),
    )  # fmt: skip


@torch.no_grad()
def features(eye: judge.Judge, pictures: Tensor) -> np.ndarray:
    """What a picture is like, [B, C]: the means of the judge's deepest level, which grounds are named by, and of its last, which objects
    and colours are."""
    found = []
    for batch in pictures.split(32):
        levels = eye.levels(batch.movedim(-1, 1))
        found.append(torch.cat([levels[len(eye.down) - 1].mean((2, 3)), levels[-1].mean((2, 3))], 1))
    return torch.cat(found).double().numpy()


def fid(found: np.ndarray, wanted: np.ndarray) -> float:
    """Fréchet's distance between features [N, C] and [M, C] taken for normal distributions; the unit is about each feature's deviation in
    `wanted`.

    The covariances' mixed term is the nuclear norm of the product of their factors: exact for fewer pictures than features, where the
    square root of a singular matrix is not.
    """
    # One that hardly differs among renders would count for more than all others.
    unit = wanted.std(0) + 0.1 * wanted.std(0).mean()
    means = []
    factors = []
    for part in (found / unit, wanted / unit):
        means.append(part.mean(0))
        factors.append(np.linalg.qr((part - means[-1]) / math.sqrt(len(part) - 1), mode="r"))
    mixed = np.linalg.norm(factors[0] @ factors[1].T, "nuc")
    return float(((means[0] - means[1]) ** 2).sum() + sum((factor**2).sum() for factor in factors) - 2 * mixed)


def fid_figure(name: str, found: np.ndarray, wanted: np.ndarray) -> Figure:
    """The distance of [cases, seeds, C], its interval by leaving out one case at a time (a bootstrap's doubles would add to it)."""
    count = len(found)
    value = fid(found.reshape(-1, found.shape[-1]), wanted)
    left = [fid(np.delete(found, case, 0).reshape(-1, found.shape[-1]), wanted) for case in range(count)] if count > 2 else [value] * 2
    half = 1.96 * math.sqrt((count - 1) / count * float(((np.array(left) - np.mean(left)) ** 2).sum()))
    return Figure(name, value, value - half, value + half, found.shape[0] * found.shape[1])


def clustered_rate(name: str, right: Sequence[Sequence[bool]]) -> Figure:
    """The part of pictures that are right, by case and seed. Seeds of one case are no cases of their own: Wilson's interval is wider
    by the root of the design effect, which is what pictures of one case have in common."""
    figure = rate(name, [one for of_case in right for one in of_case])
    wider = math.sqrt(design_effect(right))
    low, high = (figure.value + wider * (end - figure.value) for end in (figure.low, figure.high))
    return replace(figure, low=max(0.0, low), high=min(1.0, high))


def design_effect(values: Sequence[Sequence[float]]) -> float:
    """How much more the mean of clusters of one size varies than that of as many single values: 1 if they have nothing in common, the
    clusters' size if they are of one mind."""
    found = np.asarray(values, np.float64)
    if len(found) < 2 or found.var() == 0:
        return 1.0
    return float(np.clip(found.shape[1] * found.mean(1).var(ddof=1) / found.var(ddof=1), 1.0, found.shape[1]))


PURE = "region purity"
GROUND = "ground outside the box is the reference's"
LEAK = "leak of the reference's object"
OTHER = "ground outside the box is the text's"
MEASURES = {
    PURE: "pure", GROUND: "ground", OTHER: "other",
    "the text's object in the box": "asked", "an object in the box": "found", "the text's object anywhere": "anywhere",
    LEAK: "leak", "leak of its shape": "same_shape", "leak of its colour": "same_colour",
}  # fmt: skip
"""What is measured, and `Score`'s name for it."""
UNWANTED = (OTHER, LEAK, "leak of its shape", "leak of its colour")
"""Of which less is better."""


def each(measure: str, scores: Scores) -> list[list[bool]]:
    return [[bool(getattr(score, MEASURES[measure])) for score in of_case] for of_case in scores]


def figures_of(name: str, scores: Scores, photographs: Sequence[bool]) -> list[Figure]:
    """All but the FID. `photographs` says of which cases the reference is one."""
    figures = [clustered_rate(f"{name}: {what}", each(what, scores)) for what in MEASURES]
    figures.append(mean(f"{name}: colour of the ground off (CIEDE2000)", [_mean(score.off for score in row) for row in scores]))
    for kind, wanted in (("drawn grounds", False), ("photographs", True)):
        part = [of_case for of_case, photo in zip(scores, photographs, strict=True) if photo == wanted]
        if part:
            figures.append(clustered_rate(f"{name}: {GROUND}, {kind}", each(GROUND, part)))
    return figures


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def against(name: str, measure: str, one: Scores, two: Scores, more: bool) -> Figure:
    """The mean difference of two methods over the cases. The bar: `one` has more (or less) of it, and the two rates' intervals do not
    touch."""
    first, second = (each(measure, scores) for scores in (one, two))
    left, right = clustered_rate(name, first), clustered_rate(name, second)
    return apart(name, left, right, more, [_mean(a) - _mean(b) for a, b in zip(first, second, strict=True)])
