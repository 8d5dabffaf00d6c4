"""Writes the kept figures into the README, so that no number there is typed by hand: `python -m benchmarks.report`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import figures

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- figures -->"
END = "<!-- end of figures -->"
ORDER: tuple[str, ...] = (
    "bench-attention", "bench-step", "bench-sam", "bench-visibility", "bench-meca", "bench-training", "bench-probe",
    "tiny-model", "dreamcom", "meca", "mcgm", "mask-controlnet", "paste-back",
)  # fmt: skip
SIMILAR = ("an object in the box", "of the asked shape", "colour error")
PARTS = ("appears in the box", "foreground fidelity", "colour error")
TOLD: dict[str, tuple[str, ...]] = {
    "similar object": SIMILAR, "parts": PARTS, "self-attention, all layers": PARTS, "self-attention, the decoder": PARTS,
}  # fmt: skip
"""Comparisons that have no bar are shown too: of the figures whose names begin so, those that tell one of these."""


def table() -> str:
    """All figures that have a bar, and the comparisons of masked attention, as Markdown: below each result's name its own."""
    lines = ["| what | measured | bar |", "|---|---|---|"]
    notes = {}
    for name in ORDER:
        kept = json.loads((figures.FOLDER / f"{name}.json").read_text("utf-8"))
        notes[f"`{kept['command']}`"] = f"{kept['date']}, {kept['machine']}"
        lines.append(f"| **`{kept['name']}`** | | |")
        for figure in kept["figures"]:
            if not (figure["bar"] or _compared(figure["name"])):
                continue
            missed = " **missed**" if figure["met"] is False else ""
            interval = f" ({figure['low']:.3f} to {figure['high']:.3f})" if figure["cases"] > 1 else ""
            lines.append(f"| {figure['name']} | {figure['value']:.3f}{interval} | {figure['bar']}{missed} |")
    made = "\n".join(f"- {command}: {where}" for command, where in notes.items())
    return "\n".join(lines) + "\n\nIn brackets: 95 % intervals of rates and means, quartiles of time ratios. Made by:\n\n" + made


def _compared(name: str) -> bool:
    return any(name.startswith(start) and any(what in name for what in said) for start, said in TOLD.items())


def main() -> None:
    text = README.read_text("utf-8")
    found = re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", text, re.S)
    if found is None:
        raise SystemExit(f"README.md has no {BEGIN} ... {END}")
    README.write_text(text[: found.start()] + f"{BEGIN}\n{table()}\n{END}" + text[found.end() :], "utf-8")


if __name__ == "__main__":
    main()
