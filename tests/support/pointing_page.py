"""The graph of the tests of pointing in the browser, and how they click and drag."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page

ROUTE = "/maskprompt/point"
SIZE = (600, 400)
"""Of coffee.png."""
BUILD = """async () => {
    const graph = window.app.graph
    graph.clear()
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        graph.add(node)
        return node
    }
    const wire = (from, slot, to, name) => from.connect(slot, to, to.inputs.findIndex(input => input.name === name))
    const photo = add('LoadImage', 100, 120)
    photo.widgets.find(w => w.name === 'image').value = 'coffee.png'
    const loader = add('MaskPromptLoadSAM', 100, 560)
    loader.widgets[0].value = 'mobile_sam.pt'
    const sam = add('MaskPromptSAMMask', 520, 120)
    // Nodes 2.0 keeps values by node ids, and after clear() the same ids come again.
    for (const name of ['positive_coords', 'negative_coords', 'box']) sam.widgets.find(w => w.name === name).value = ''
    const box = add('MaskPromptBoxMask', 1050, 120)
    const crop = add('MaskPromptCropAroundBox', 1050, 520)
    wire(loader, 0, sam, 'sam')
    for (const node of [sam, box, crop]) wire(photo, 0, node, 'image')
    window.app.canvas.ds.reset()
    window.app.canvas.setDirty(true, true)
}"""
AGAIN = "async () => { await window.app.loadGraphData(window.app.graph.serialize(), true, false) }"
VALUES = """(type) => Object.fromEntries(window.app.graph.nodes.find(n => n.type === type).widgets.map(w => [w.name, w.value]))"""
SET = """([type, name, value]) => {
    const widget = window.app.graph.nodes.find(n => n.type === type).widgets.find(w => w.name === name)
    widget.value = value
    widget.callback?.(value)
}"""
TO_SUBGRAPH = """(type) => {
    const { subgraph, node } = window.app.graph.convertToSubgraph(new Set([window.app.graph.nodes.find(n => n.type === type)]))
    return [subgraph.id, String(node.id)]
}"""
OPEN_SUBGRAPH = """([subgraph, node]) => {
    const root = window.app.rootGraph ?? window.app.graph
    window.app.canvas.openSubgraph(root.subgraphs.get(subgraph), root.nodes.find(n => String(n.id) === node))
}"""
LOAD_ANOTHER = "(name) => { window.app.graph.nodes.find(n => n.type === 'LoadImage').widgets.find(w => w.name === 'image').value = name }"
PRESS = "(type) => window.app.graph.nodes.find(n => n.type === type).widgets.find(w => w.type === 'button').callback()"
SAM, BOX, CROP = "MaskPromptSAMMask", "MaskPromptBoxMask", "MaskPromptCropAroundBox"


def place(page: Page, x: float, y: float, within: str = ".maskprompt-picture") -> tuple[float, float]:
    """Where on the page a pixel of the whole picture lies."""
    frame = page.locator(f"{within} canvas").first.bounding_box()
    assert frame is not None
    scale = min(frame["width"] / SIZE[0], frame["height"] / SIZE[1])
    left = frame["x"] + (frame["width"] - SIZE[0] * scale) / 2
    top = frame["y"] + (frame["height"] - SIZE[1] * scale) / 2
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def answer(page: Page, act: Callable[[], Any]) -> dict[str, Any]:
    """What the server says to the question that `act` brings about."""
    with page.expect_response(lambda response: response.url.endswith(ROUTE), timeout=120_000) as told:
        act()
    assert told.value.status == 200, told.value.text()
    return told.value.json()


def mask_of(told: dict[str, Any]) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(told["mask"].split(",")[1]))) as image:
        return np.asarray(image.getchannel("A")) > 0


def press(page: Page, label: str) -> None:
    """Press a button below the picture; the frontend has buttons of like names, such as Fit View."""
    page.locator(".maskprompt-picture").get_by_role("button", name=label, exact=True).click()


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*((one + other) / 2 for one, other in zip(start, end, strict=True)))
    page.mouse.move(*end)
    page.mouse.up()


def near(text: str, *numbers: float) -> bool:
    """Whether a widget's text says these numbers, each within two pixels: the screen has fewer pixels than the picture."""
    found = [float(word) for word in text.replace(";", ",").split(",") if word.strip()]
    return len(found) == len(numbers) and all(abs(one - other) <= 2 for one, other in zip(found, numbers, strict=True))
