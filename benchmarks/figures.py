"""Figures with their confidence intervals, and the files they are kept in."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

FOLDER = Path(__file__).resolve().parent / "results"
SizeT = TypeVar("SizeT")
"""A dataclass of numbers that say how large a table's run is."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % confidence interval, how many cases it is of, and the bar it is held against ("" for none)."""

    name: str
    value: float
    low: float
    high: float
    cases: int
    bar: str = ""
    met: bool | None = None

    @property
    def unbarred(self) -> Figure:
        """The same, held against nothing."""
        return replace(self, bar="", met=None)


def rate(name: str, right: Sequence[bool], at_least: float | None = None) -> Figure:
    """The part of cases that are right, with Wilson's interval."""
    count = len(right)
    hits = sum(right)
    z = 1.96
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    low = max(0.0, middle - half)
    high = min(1.0, middle + half)
    if at_least is None:
        return Figure(name, share, low, high, count)
    return Figure(name, share, low, high, count, f"\u2265 {at_least:g}", share >= at_least)


def mean(name: str, values: Sequence[float], seed: int = 0) -> Figure:
    """The mean, with a bootstrapped interval."""
    found = np.asarray(values, np.float64)
    if len(found) == 0:
        return Figure(name, math.nan, math.nan, math.nan, 0)
    draws = np.random.default_rng(seed).choice(found, (2000, len(found))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Figure(name, float(found.mean()), float(low), float(high), len(found))


def apart(name: str, one: Figure, other: Figure, more: bool, differences: Sequence[float] = ()) -> Figure:
    """How much more `one` has than `other`, of these differences case by case where cases belong together. The bar: it has more (or less),
    and the two intervals do not touch."""
    bar = f"{'more' if more else 'less'}, intervals apart ({one.low:.2f} to {one.high:.2f} and {other.low:.2f} to {other.high:.2f})"
    met = one.low > other.high if more else one.high < other.low
    if len(differences):
        return replace(mean(name, differences), bar=bar, met=met)
    return Figure(name, one.value - other.value, one.low - other.high, one.high - other.low, min(one.cases, other.cases), bar, met)


def ratio(name: str, tops: Sequence[float], bottoms: Sequence[float], at_most: float | None = None) -> Figure:
    """The median of paired ratios, with the quartiles as its interval."""
    found = np.asarray(tops) / np.asarray(bottoms)
    low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
    bar = "" if at_most is None else f"\u2264 {at_most:g}"
    return Figure(name, float(middle), float(low), float(high), len(found), bar, None if at_most is None else bool(middle <= at_most))


def machine() -> str:
    """The kind of machine, in words that name no particular one."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{device}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


def markdown(title: str, figures: Sequence[Figure]) -> str:
    lines = [f"### {title}", "", "| what | value | 95 % interval | cases | bar |", "|---|---|---|---|---|"]
    for figure in figures:
        met = "" if figure.met is None else (" met" if figure.met else " MISSED")
        lines.append(f"| {figure.name} | {figure.value:.3f} | {figure.low:.3f} to {figure.high:.3f} | {figure.cases} | {figure.bar}{met} |")
    return "\n".join(lines)


def size_of(usual: SizeT, command: str, description: str | None, arguments: Sequence[str]) -> SizeT:
    """How large a run a table's own arguments ask for: each number of `usual` can be given."""
    parser = argparse.ArgumentParser(prog=command, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known: Any = usual
    for name, most in asdict(known).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=most, help=f"{most} unless told; only the whole table is kept")
    return type(usual)(**vars(parser.parse_args(arguments)))


def write(name: str, command: str, figures: Sequence[Figure], notes: dict[str, str] | None = None, whole: bool = True) -> None:
    """Prints the figures as Markdown and keeps them in `results/<name>.json`; those of a part are only printed."""
    print(markdown(name if whole else f"{name} (a part)", figures), flush=True)
    if not whole:
        return
    FOLDER.mkdir(exist_ok=True)
    content = {
        "name": name, "command": command, "date": datetime.date.today().isoformat(), "machine": machine(), **(notes or {}),
        "figures": [asdict(figure) for figure in figures],
    }  # fmt: skip
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
