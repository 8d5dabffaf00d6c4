"""A paper's table with ours beneath it: the published figures as they stand, ours with their 95 % intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .. import figures
from ..figures import Figure
from .published import Published

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Scores case by case: of each of our settings, of each score."""
ORDER = ("DINO", "CLIP-I", "CLIP-T", "FID", "IS", "PSNR", "SSIM", "LPIPS", "IoU", "preferred, %")
LOWER = frozenset({"FID", "LPIPS"})
UP = "\u2191"
DOWN = "\u2193"
"""Which way a score is better."""


def summed(values: Values) -> dict[str, dict[str, Figure]]:
    """Each setting's mean of each score with its bootstrapped interval; a score of sets (one value) has none."""
    return {name: {score: figures.mean(score, found) for score, found in scores.items()} for name, scores in values.items()}


def markdown(published: Published, ours: Mapping[str, Mapping[str, Figure]]) -> str:
    """Write the table: a column for each score that the paper or we have, arrows for the better way."""
    known = {score for row in published.rows.values() for score in row} | {score for row in ours.values() for score in row}
    columns = [score for score in ORDER if score in known]
    lines = [f"### {published.title}", "", f"| method | {' | '.join(f'{score} {DOWN if score in LOWER else UP}' for score in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in published.rows.items():
        lines.append(f"| {name} (published) | {' | '.join(f'{row[score]:g}' if score in row else '' for score in columns)} |")
    for name, found in ours.items():
        lines.append(f"| **{name} (here)** | {' | '.join(_cell(found.get(score)) for score in columns)} |")
    return "\n".join([*lines, "", f"Published: {published.source}. Stated there: {published.settings}."])


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    interval = f" ({figure.low:.3f} to {figure.high:.3f}, {figure.cases} cases)" if figure.cases > 1 else ""
    return f"{figure.value:.3f}{interval}"


def write(published: Published, values: Values, command: str, file: Path) -> str:
    """Keep the table as Markdown and, beside it, as JSON with every figure; give the Markdown."""
    ours = summed(values)
    text = markdown(published, ours)
    content = {
        "title": published.title, "source": published.source, "command": command, "machine": figures.machine(), "published": published.rows,
        "here": {name: {score: asdict(one) for score, one in found.items()} for name, found in ours.items()},
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    file.with_suffix(".md").write_text(text + "\n", "utf-8")
    return text
