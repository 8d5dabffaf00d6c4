"""A point of the sampling, and whether it lies in the part of the sampling in which a patch works."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Schedule = Callable[[float], float]
"""Turns a share of the sampling, 0..1, into the noise level that a model has then: `percent_to_sigma` of ComfyUI's models."""


def schedule_of(sampling: Any) -> Schedule | None:
    """Gives the schedule of a model's `model_sampling`, None for one that turns no shares into noise levels."""
    return getattr(sampling, "percent_to_sigma", None)


@dataclass(frozen=True)
class Moment:
    """A noise level, infinite where none is told, and the schedule of the model that runs.

    The schedule is asked while the model runs, not when a node is: nodes that change it (Model Sampling) may stand before ours or after.
    """

    sigma: float
    schedule: Schedule | None = None
    _levels: dict[float, float] = field(default_factory=dict[float, float], compare=False, repr=False)

    def within(self, start: float, end: float) -> bool:
        """Says whether it lies between two shares of the sampling, both included."""
        return self._level(end) <= self.sigma <= self._level(start)

    def before(self, share: float) -> bool:
        """Says whether this share of the sampling is not over yet."""
        return share > 0 and self.sigma > self._level(share)

    def _level(self, share: float) -> float:
        """Gives the noise level of a share: infinite at the beginning and 0 at the end, whatever the schedule says of them."""
        if share <= 0:
            return math.inf
        if share >= 1:
            return 0.0
        if self.schedule is None:
            raise RuntimeError(
                "nothing tells how far the sampling is, so a start_percent or an end_percent has no meaning here. Set them to 0 and 1."
            )
        # Layer after layer asks, and some schedules answer from the device.
        if share not in self._levels:
            self._levels[share] = float(self.schedule(share))
        return self._levels[share]
