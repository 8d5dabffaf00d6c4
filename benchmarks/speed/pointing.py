"""From a click on the photograph to the mask drawn over it, in seconds, as an artist waits for it.

ComfyUI's own server and frontend in Chromium, the template *01 Cut out an object*, its coffee cup, MobileSAM. The browser's own clock is
read: from the pointer's event to the frame after the one in which the new mask was drawn.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from demo import browser, run, setup

from ..figures import Figure

if TYPE_CHECKING:
    from playwright.sync_api import Page

TEMPLATE = "01 Cut out an object"
FIRST = (300, 350)
"""A pixel of the cup."""
SECONDS = ((200, 200), (420, 250), (330, 120), (250, 330), (360, 370), (180, 260))
"""Other pixels of cup and saucer, each clicked as the second one."""
AT_MOST = 1.0
WATCH = """async () => {
    const { PictureView } = await import('/extensions/ComfyUI-MaskPrompt/pointing/view.js')
    if (PictureView.prototype.maskprompt_watched) return
    PictureView.prototype.maskprompt_watched = true
    const times = window.maskprompt_times = { clicked: 0, drawn: [] }
    window.addEventListener('pointerup', event => { times.clicked = event.timeStamp }, true)
    const lay = PictureView.prototype.setMask
    PictureView.prototype.setMask = function (mask) {
        lay.call(this, mask)
        if (!mask || !this.element.isConnected) return
        const clicked = times.clicked
        requestAnimationFrame(() => setTimeout(() => times.drawn.push((performance.now() - clicked) / 1000)))
    }
}"""
"""Note for every mask that is laid over a picture how long after the pointer went up it was on the screen."""
COUNT = "() => window.maskprompt_times.drawn.length"
LAST = "() => window.maskprompt_times.drawn.at(-1)"
STATUS = ".maskprompt-picture [role=status]"
WAITING = f"() => document.querySelector('{STATUS}')?.textContent.startsWith('Click')"


def drawn_after(page: Page, x: float, y: float) -> float:
    """Click on a place of the page that WATCH watches, and return the seconds until the mask is on the screen."""
    before = page.evaluate(COUNT)
    page.mouse.click(x, y)
    page.wait_for_function(f"() => window.maskprompt_times.drawn.length > {before}", timeout=120_000)
    return page.evaluate(LAST)


def place(page: Page, pixel: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Where on the page a pixel of the whole picture lies that SAM Mask shows; `size` is the picture's width and height."""
    frame = page.locator(".maskprompt-picture canvas").first.bounding_box()
    if frame is None:
        raise RuntimeError("SAM Mask shows no picture to click on")
    scale = min(frame["width"] / size[0], frame["height"] / size[1])
    left = frame["x"] + (frame["width"] - size[0] * scale) / 2
    top = frame["y"] + (frame["height"] - size[1] * scale) / 2
    return left + (pixel[0] + 0.5) * scale, top + (pixel[1] + 0.5) * scale


def clicks(page: Page, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of first clicks and of second ones after them, on the template's photograph."""
    size = (600, 400)
    graph = json.loads((run.WORKFLOWS / f"{TEMPLATE}.json").read_text("utf-8"))
    page.evaluate("async ([graph, name]) => { await window.app.loadGraphData(graph, true, true, name) }", [graph, TEMPLATE])
    page.wait_for_selector(".maskprompt-picture canvas")
    page.evaluate(WATCH)
    firsts = []
    seconds = []
    for index in range(rounds):
        page.locator(".maskprompt-picture").get_by_role("button", name="Clear", exact=True).click()
        page.wait_for_function(WAITING, timeout=60_000)
        firsts.append(drawn_after(page, *place(page, FIRST, size)))
        page.wait_for_function(f"() => document.querySelector('{STATUS}').textContent.startsWith('Found')")
        seconds.append(drawn_after(page, *place(page, SECONDS[index % len(SECONDS)], size)))
        page.wait_for_function(f"() => document.querySelector('{STATUS}').textContent.startsWith('Found')")
    return firsts, seconds


def timed(name: str, values: list[float], at_most: float | None = None) -> Figure:
    """The median of seconds, with the quartiles as its interval."""
    low, middle, high = (float(part) for part in np.quantile(values, (0.25, 0.5, 0.75)))
    bar = "" if at_most is None else f"\u2264 {at_most:g}"
    return Figure(name, middle, low, high, len(values), bar, None if at_most is None else middle <= at_most)


def pointing(rounds: int = 12) -> list[Figure]:
    """The first click on a photograph, which SAM must look at, and a second one; in the classic canvas and in Nodes 2.0."""
    from playwright.sync_api import sync_playwright

    found = browser.chromium()
    if found is None:
        raise SystemExit("no Chromium found: install one, or name it in CHROMIUM")
    setup.get_comfyui()
    setup.get_mobile_sam()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="maskprompt-", ignore_cleanup_errors=True) as folder:
        server = run.stage(Path(folder))
        server.add_model("sams", setup.mobile_sam_path(), "sam_vit_b_01ec64.pth")  # the kind is told from the file, not from its name
        with server, sync_playwright() as playwright:
            started = playwright.chromium.launch(executable_path=found, args=browser.FLAGS)
            server.post("/settings", {"Comfy.TutorialCompleted": True})
            for renderer, vue in (("classic canvas", False), ("Nodes 2.0", True)):
                server.post("/settings", {"Comfy.VueNodes.Enabled": vue})
                page = started.new_page(viewport={"width": 1920, "height": 1080})
                browser.open_frontend(page, server.url)
                page.wait_for_timeout(2000)
                firsts, seconds = clicks(page, rounds)
                if not figures:
                    figures.append(timed("the very first click, SAM and the photograph not yet read: seconds to the mask", firsts[:1]))
                figures.append(timed(f"a second click on the coffee cup, {renderer}: seconds to the mask", seconds, AT_MOST))
                page.close()
            started.close()
    return figures
