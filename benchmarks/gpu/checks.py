"""Checks that run one after the other: each by itself, so that one failure is recorded and the rest goes on, all within a time budget."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..figures import Figure

PASSED, FAILED, LEFT_OUT = "done", "FAILED", "left out"


@dataclass(frozen=True)
class Setting:
    """Where and how large the checks run: `small` is toy shapes, for a CPU; `folder` is for files that checks write."""

    small: bool
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    folder: Path

    @property
    def decides(self) -> bool:
        """Whether bars on time and memory count: on a GPU at real shapes."""
        return self.device.type == "cuda" and not self.small

    @property
    def rounds(self) -> int:
        """How often a time is taken."""
        return 2 if self.small else 9


@dataclass(frozen=True)
class Check:
    """One check. `seconds` is what it takes on an H100 at most, with which the budget reckons before it starts it."""

    name: str
    run: Callable[[Setting], Sequence[Figure]]
    seconds: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a check ended, in which time, with which figures; `said` is the error's text, or why it was left out."""

    name: str
    state: str
    seconds: float
    figures: tuple[Figure, ...] = ()
    said: str = ""

    @property
    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "state": self.state, "seconds": round(self.seconds, 1), "said": self.said}


def run_all(checks: Sequence[Check], setting: Setting, minutes: float) -> Iterator[Outcome]:
    """Run the checks in turn and give each outcome at once. A check for which the time left is too short is left out, and said so."""
    ends = time.monotonic() + 60 * minutes
    for check in checks:
        left = ends - time.monotonic()
        needed = min(check.seconds, 2.0) if setting.small else check.seconds
        if left < needed:
            yield Outcome(check.name, LEFT_OUT, 0.0, said=f"it takes about {needed:.0f} s, and {max(0.0, left):.0f} s were left")
            continue
        started = time.monotonic()
        try:
            figures = tuple(check.run(setting))
            yield Outcome(check.name, PASSED, time.monotonic() - started, figures)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
            yield Outcome(check.name, FAILED, time.monotonic() - started, said=said[:2000])
        release()


def release() -> None:
    """Give back what a check left behind on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def figure(name: str, value: float, at_most: float | None = None) -> Figure:
    """One measured value, with its bar."""
    bar = "" if at_most is None else f"\u2264 {at_most:g}"
    return Figure(name, value, value, value, 1, bar, None if at_most is None else value <= at_most)
