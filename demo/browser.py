"""ComfyUI's frontend in headless Chromium, for tests and measurements: where the browser is, and how a page is opened."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler"


def chromium() -> str | None:
    """Find the Chromium of this machine: $CHROMIUM, or what is on the path; None where there is none."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


def open_frontend(page: Page, url: str) -> None:
    """Open a server's frontend in a page, and wait until its nodes are there."""
    page.goto(url)
    page.wait_for_function(READY, timeout=120_000)
