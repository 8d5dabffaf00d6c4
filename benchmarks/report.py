"""Writes every kept figure into docs/measurements.md, so that no number there is typed by hand: `python -m benchmarks.report`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.pack import ROOT

from .figures import FOLDER, Figure
from .tables import stock_painter

PAGE = ROOT / "docs" / "measurements.md"
BEGIN = "<!-- figures -->"
END = "<!-- end of figures -->"
ORDER = ("bench-attention", "bench-step", "bench-sam", "bench-pointing", "bench-visibility", "bench-meca", "bench-training", "bench-probe",
         "tiny-model", "dreamcom", "meca", "mcgm", "mcgm-presets", "mask-controlnet", "paste-back", "tiny-edit",
         "tiny-things", "transformer-regions", "transformer-masks", "references", "references-words", "references-two")  # fmt: skip
"""The results that come first; others follow by their names."""
OWN_PLACE = ("name", "command", "date", "machine", "figures", "checks", "small", "minutes", "weights")
"""What of a result's file is shown elsewhere than among its notes."""

OLDER = "measured with earlier weights of tiny-edit: those that are here have been trained on since"
"""What is said beside the figures of a result whose `weights` are not those of the files in `demo`."""


def results(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Every kept result, in the page's order."""
    found = {file.stem: json.loads(file.read_text("utf-8")) for file in folder.glob("*.json")}
    return [found[name] for name in sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))]


def page(kept: Sequence[dict[str, Any]]) -> str:
    """All figures of all results as Markdown, none left out: first those that miss their bars, then each result whole."""
    every = {content["name"]: [Figure(**figure) for figure in content["figures"]] for content in kept}
    missed = [figure for figures in every.values() for figure in figures if figure.met is False]
    barred = sum(figure.met is not None for figures in every.values() for figure in figures)
    parts = [
        f"{sum(map(len, every.values()))} figures, {barred} of them with a bar, {len(missed)} of those missed. In brackets: 95 % "
        "intervals of rates and means, quartiles of time ratios.",
        f"### Missed\n\n{table(missed)}",
        *(section(content, every[content["name"]]) for content in kept),
    ]
    return "\n\n".join(parts)


def section(content: dict[str, Any], figures: Sequence[Figure]) -> str:
    """One result: its command, when and where it was measured, how, which checks failed or were left out, and all of its figures."""
    notes = [f"- {name}: {text}" for name, text in content.items() if name not in OWN_PLACE]
    if "weights" in content and content["weights"] != stock_painter.weights():
        notes.append(f"- {OLDER}")
    made = f"`{content['command']}`: {content['date']}, {content['machine']}"
    undone = [f"- {one['name']}: {one['state']}: `{brief(one['said'])}`" for one in content.get("checks", ()) if one["state"] != "done"]
    lists = ["\n".join(lines) for lines in (notes, undone) if lines]
    return "\n\n".join([f"### {content['name']}", made, *lists, table(figures)])


def brief(said: str, most: int = 240) -> str:
    """Makes one line of an error's text: its beginning and its end, which says what went wrong."""
    line = " ".join(said.replace("`", "'").split())
    return line if len(line) <= most else f"{line[: most // 4]} ... {line[-3 * most // 4 :]}"


def table(figures: Sequence[Figure]) -> str:
    """Figures as a table; a figure of a single case, or of a set as a whole, has no interval."""
    lines = ["| what | measured | cases | bar |", "|---|---|---|---|"]
    for figure in figures:
        interval = f" ({number(figure.low)} to {number(figure.high)})" if figure.low != figure.high else ""
        missed = " **missed**" if figure.met is False else ""
        lines.append(f"| {figure.name} | {number(figure.value)}{interval} | {figure.cases} | {figure.bar}{missed} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three decimals, without the sign of a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def main() -> None:
    text = PAGE.read_text("utf-8")
    found = re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", text, re.S)
    if found is None:
        raise SystemExit(f"{PAGE.name} has no {BEGIN} ... {END}")
    PAGE.write_text(text[: found.start()] + f"{BEGIN}\n{page(results())}\n{END}" + text[found.end() :], "utf-8", newline="\n")


if __name__ == "__main__":
    main()
