"""What the judge says of a picture of DreamCom's table, and figures of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from demo import judge
from demo.subjects import Subject

from ..figures import Figure, mean, rate
from .dreamcom_methods import BESIDE, WHOLE, Method

MARGIN = 4
"""Pixels around the box that do not count as background: SSIM's window reaches so far."""


@dataclass(frozen=True)
class Score:
    """What the judge says of one picture. `colour_error` is None where no object was found."""

    found: bool
    shape: bool
    colours: bool
    fidelity: float
    colour_error: float | None
    ssim: float
    similar: bool

    @property
    def success(self) -> bool:
        return self.found and self.shape and self.colours


def colour_error(picture: Tensor, found: judge.Found, subject: Subject) -> float:
    """CIEDE2000 between the object's pixels and the nearer of the subject's two colours, on average."""
    small = F.avg_pool2d(picture.movedim(-1, 0), 2).movedim(0, -1).numpy() * 255
    pixels = small[judge.core(found.mask)]
    return float(np.min([judge.colour_errors(pixels, name) for name in subject.colours], 0).mean())


def ssim(picture: Tensor, background: Tensor, mask: Tensor) -> float:
    """Structural similarity of what lies outside the box."""
    from skimage.metrics import structural_similarity

    found: Any = structural_similarity(picture.numpy(), background.numpy(), channel_axis=-1, data_range=1.0, full=True)
    near = F.max_pool2d(mask[None], 2 * MARGIN + 1, 1, MARGIN)[0].numpy() > 0.5
    return float(found[1].mean(-1)[~near].mean())


def at_most(figure: Figure, limit: float) -> Figure:
    return replace(figure, bar=f"\u2264 {limit:g}", met=figure.value <= limit)


def figures_of(name: str, scores: Sequence[Score]) -> list[Figure]:
    errors = [score.colour_error for score in scores if score.colour_error is not None]
    return [
        rate(f"{name}: appears in the box", [score.success for score in scores]),
        rate(f"{name}: the same, a similar object beside it", [score.success for score in scores if score.similar]),
        rate(f"{name}: an object in the box", [score.found for score in scores]),
        rate(f"{name}: of its shape", [score.shape for score in scores]),
        rate(f"{name}: in both of its colours", [score.colours for score in scores]),
        mean(f"{name}: foreground fidelity", [score.fidelity for score in scores]),
        mean(f"{name}: colour error (CIEDE2000)", errors),
        mean(f"{name}: background SSIM", [score.ssim for score in scores]),
    ]


def said(score: Score) -> str:
    if score.success or not score.found:
        return "right" if score.success else "no object"
    return f"other {'object' if not (score.shape or score.colours) else 'colours' if score.shape else 'shape'}"


def beside_by_subject(chosen: Sequence[Subject], scores: Callable[[Method, Subject], Sequence[Score]]) -> list[Figure]:
    """Counts pictures with a similar object beside the box by subject, and once without the subject that most often fails."""

    def right(method: Method, subject: Subject) -> list[bool]:
        return [score.success for score in scores(method, subject) if score.similar]

    hardest = min(chosen, key=lambda subject: sum(right(WHOLE, subject)))
    others = [subject for subject in chosen if subject != hardest]
    figures = []
    for method in BESIDE:
        name = f"a similar object beside the box, {method.name}"
        figures += [rate(f"{name}, {one.name}: appears in the box", right(method, one)) for one in chosen]
        if others:
            figures.append(rate(f"{name}, all but the {hardest.name}", [each for one in others for each in right(method, one)]))
    return figures
