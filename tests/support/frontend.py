"""Workflows in the real frontend: loaded, and looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from demo.server import ROOT

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SCREENSHOTS = ROOT / "demo" / "output" / "screenshots"
LOAD = "async ([graph, name]) => { await window.app.loadGraphData(graph, true, true, name) }"
ERRORS = """() => [...document.querySelectorAll('[data-testid=error-overlay], [role=dialog], .p-toast-message-error')]
    .map(e => e.innerText)"""


def graph_of(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))


def nodes_2(page: Page, on: bool) -> None:
    """Switch the page to Nodes 2.0, or to the classic canvas."""
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", on)


def load(page: Page, name: str, graph: dict[str, Any] | None = None) -> None:
    page.evaluate(LOAD, [graph or graph_of(name), name])
    page.wait_for_timeout(1500)  # missing models and media are looked for after the graph is shown


def at_rest(page: Page, expression: str, pause: int = 120, patience: int = 40) -> Any:
    """What the expression gives once it gives the same three times in a row, `pause` milliseconds apart."""
    readings: list[Any] = []
    for _ in range(patience):
        page.wait_for_timeout(pause)
        readings.append(page.evaluate(expression))
        if len(readings) >= 3 and readings[-1] == readings[-2] == readings[-3]:
            break
    return readings[-1]


def screenshot(page: Page, name: str) -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    return SCREENSHOTS / f"{name}.png"
