"""docs/measurements.md and what is said of figures elsewhere: every kept figure is shown, and no other number is claimed."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.figures import FOLDER, Figure, rate
from benchmarks.tables import stock_painter
from demo.pack import ROOT

TOLD = re.compile(r"\b\d+\.\d{2,}\s+\(\d+\.\d{2,}\s+to\s+\d+\.\d{2,}\)")
"""A measured value as prose writes it, with its interval: 0.857 (0.805 to 0.897)."""


def kept() -> list[Figure]:
    return [Figure(**figure) for content in report.results() for figure in content["figures"]]


def test_the_page_is_what_the_results_say() -> None:
    """`python -m benchmarks.report` was run after the last measurement."""
    text = report.PAGE.read_text("utf-8")
    shown = text[text.index(report.BEGIN) + len(report.BEGIN) : text.index(report.END)]
    assert shown == f"\n{report.page(report.results())}\n"


def test_no_figure_is_left_out() -> None:
    """Whether it has a bar or not, and whether it speaks for us or against."""
    text = report.PAGE.read_text("utf-8")
    every = kept()
    assert len(every) > 400
    assert len(report.results()) == len(list(FOLDER.glob("*.json")))
    for figure in every:
        assert f"\n| {figure.name} | {report.number(figure.value)}" in text, figure.name
    figures = {figure.name: figure for figure in every}
    for method in ("without masked cross-attention", "whole"):
        against_us = figures[f"parts, {method}: the same, a similar object beside it"]
        interval = f"{against_us.value:.3f} ({against_us.low:.3f} to {against_us.high:.3f})"
        assert f"| {against_us.name} | {interval} | {against_us.cases} |" in text


def test_what_misses_its_bar_comes_first() -> None:
    missed = [figure.name for figure in kept() if figure.met is False]
    shown = report.page(report.results()).split("### ")[1]
    assert shown.startswith("Missed")
    assert [line.split(" | ")[0].removeprefix("| ") for line in shown.splitlines() if line.endswith("**missed** |")] == missed


def test_every_number_in_prose_was_measured() -> None:
    """Wherever a page gives a value with its interval, a kept figure has just these three."""
    measured = {tuple(round(part, digits) for part in (f.value, f.low, f.high)) for f in kept() for digits in (2, 3)}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "web" / "docs").glob("*.md")]
    found = list(chain.from_iterable(TOLD.findall(_prose(page)) for page in pages))
    assert len(found) >= 10
    for told in found:
        assert tuple(float(part) for part in re.findall(r"\d+\.\d+", told)) in measured, told


def _prose(page: Path) -> str:
    """A page without the figures that the report writes."""
    text = page.read_text("utf-8")
    return re.sub(f"{re.escape(report.BEGIN)}.*{re.escape(report.END)}", "", text, flags=re.S)


def test_figures_of_earlier_weights_are_said_to_be_so() -> None:
    """Each result of tiny-edit names its weights; the page says which of them are not those of the files that everyone gets."""
    named = [content for content in report.results() if "256 pixels" in content.get("settings", "")]
    assert len(named) >= 6
    assert all("weights" in content for content in named)
    now, other = ({**named[0], "weights": weights} for weights in (stock_painter.weights(), "0" * 16))
    assert report.OLDER not in report.section(now, [])
    assert f"\n- {report.OLDER}\n" in report.section(other, [])
    assert report.OLDER not in report.section({name: value for name, value in now.items() if name != "weights"}, [])


def test_a_row_says_value_interval_cases_and_what_became_of_its_bar() -> None:
    rows = report.table([Figure("a", 0.5, 0.25, 0.75, 8, "\u2265 0.6", False), Figure("b", -0.0001, -0.0001, -0.0001, 1)]).splitlines()
    assert rows[2:] == ["| a | 0.500 (0.250 to 0.750) | 8 | \u2265 0.6 **missed** |", "| b | 0.000 | 1 |  |"]


@pytest.mark.parametrize(
    ("right", "low", "high"), [([False] * 20, 0.0, 0.1611), ([True] * 20, 0.8389, 1.0), ([True] * 5 + [False] * 5, 0.2366, 0.7634)]
)
def test_a_rate_has_wilsons_interval(right: list[bool], low: float, high: float) -> None:
    """Against the interval as published tables have it (n = 20 and 10, 95 %); it does not leave 0 to 1."""
    figure = rate("", right)
    assert (figure.low, figure.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert 0 <= figure.low <= figure.high <= 1


def test_what_a_check_said_is_one_line_with_its_end() -> None:
    said = "RuntimeError: plain: ended with 1. Traceback\n" + "  File `x`\n" * 200 + "ValueError: the end | of it"
    checks = [{"name": "one", "state": "FAILED", "said": said}, {"name": "two", "state": "done", "said": ""}]
    content = {"name": "gpu", "command": "c", "date": "d", "machine": "m", "checks": checks}
    lines = [line for line in report.section(content, []).splitlines() if line.startswith("- ")]
    assert len(lines) == 1
    assert lines[0].startswith("- one: FAILED: `RuntimeError: plain")
    assert lines[0].endswith("ValueError: the end | of it`")
    assert len(lines[0]) < 300
