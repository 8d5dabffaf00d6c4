"""Scores as a table to read: one line for each score, with its mean, its range, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

BETTER = {
    "CLIP-T": "higher", "CLIP-I": "higher", "DINO": "higher", "FID": "lower", "IS": "higher", "LPIPS": "lower", "SSIM": "higher",
    "PSNR": "higher",
}  # fmt: skip


def mean(values: Sequence[float]) -> float:
    """The mean; nan of no values, inf if one is."""
    return sum(values) / len(values) if values else math.nan


def table(scores: Mapping[str, Sequence[float]], notes: Sequence[str] = ()) -> str:
    """Write the scores, a list of values for each name, as Markdown: mean, range, number of values; then the notes, a line each."""
    lines = ["| score | mean | lowest | highest | of | better is |", "|---|---|---|---|---|---|"]
    for name, values in scores.items():
        numbers = [f"{value:.4f}" for value in (mean(values), min(values), max(values))]
        lines.append(f"| {name} | {' | '.join(numbers)} | {len(values)} | {BETTER[name]} |")
    return "\n".join([*lines, *([""] if notes else []), *notes])
