"""Every bundled workflow in the real frontend paints when Run is pressed, in the classic canvas and in Nodes 2.0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from demo import run, stand_ins
from demo.server import Server

from ..support.frontend import ERRORS, load, nodes_2, screenshot

TRAININGS = {
    "MaskPromptTrainDreamCom": ("steps",),
    "MaskPromptTrainMECA": ("steps",),
    "MaskPromptTrainMCGM": ("steps", "weight_steps"),
    "MaskPromptTrainMaskControlNet": ("steps",),
}
SHORT = {(node, field): 2 for node, fields in TRAININGS.items() for field in fields}
SMALL = {("MaskPromptTrainMCGM", "variations"): 8, ("MaskPromptTrainMCGM", "batch_size"): 2}
CHANGES = {**stand_ins.CHANGES, **SHORT, **SMALL, ("KSampler", "steps"): 6}
CHANGE = """(changes) => {
    for (const node of window.app.graph.nodes)
        for (const [type, field, value] of changes)
            if (node.type === type) node.widgets.find(w => w.name === field).value = value
}"""
PICTURES = {
    "classic": "() => window.app.graph.nodes.filter(n => n.type === 'SaveImage').map(n => n.imgs?.length ?? 0)",
    "nodes-2": """() => window.app.graph.nodes.filter(n => n.type === 'SaveImage').map(n =>
        [...document.querySelectorAll(`[data-node-id="${n.id}"] img`)].filter(image => image.naturalWidth > 0).length)""",
}
"""How many pictures each Save Image shows, in each renderer."""
COVERED = """(most) => {
    const scale = window.app.canvas.ds.scale
    const boxes = [...document.querySelectorAll('.lg-node[data-node-id]')].map(element => [element, element.getBoundingClientRect()])
    const title = element => window.app.graph.getNodeById(element.dataset.nodeId)?.title
    const common = (from, to, other, end) => (Math.min(to, end) - Math.max(from, other)) / scale
    const found = []
    for (const [i, [one, a]] of boxes.entries())
        for (const [other, b] of boxes.slice(i + 1))
            if (common(a.left, a.right, b.left, b.right) > most && common(a.top, a.bottom, b.top, b.bottom) > most)
                found.push([title(one), title(other), Math.round(common(a.top, a.bottom, b.top, b.bottom))])
    return {unseen: window.app.graph.nodes.length - boxes.length, found}
}"""
"""Nodes of Nodes 2.0 that cover each other by more than so many pixels, and by how many from top to bottom; how many are not drawn."""


QUICK = ("02 Paint an object into a box",)
"""What `nox -s tests` paints. All others are painted by `nox -s thorough`."""
CHECKPOINTS = [name for name, prompt in run.workflows().items() if not stand_ins.of_transformer(prompt)]
TEMPLATES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.thorough) for name in CHECKPOINTS]


QUICK_EDIT = "07 Two texts, each in its region, FLUX 2 klein"
EDITS = [
    pytest.param(name, marks=() if name == QUICK_EDIT else pytest.mark.thorough)
    for name, prompt in run.workflows().items()
    if stand_ins.for_tiny_edit(prompt)
]
LOAD_API = """async ([prompt, name]) => {
    await window.app.loadApiJson(prompt, name)
    const nodes = window.app.graph.nodes
    const [left, top] = [0, 1].map(axis => Math.min(...nodes.map(node => node.pos[axis])))
    const [right, bottom] = [0, 1].map(axis => Math.max(...nodes.map(node => node.pos[axis] + node.size[axis])))
    window.app.canvas.ds.fitToBounds([left, top - 40, right - left, bottom - top + 40])
    window.app.canvas.setDirty(true, true)
}"""
"""All nodes in view, as the classic canvas fetches pictures for what it draws."""


def test_the_quick_templates_are_there() -> None:
    assert set(QUICK) <= set(CHECKPOINTS)
    assert QUICK_EDIT in [edit.values[0] for edit in EDITS]


@pytest.fixture
def renderer(page: Page, request: pytest.FixtureRequest) -> Iterator[str]:
    """The renderer that the page is in."""
    nodes_2(page, request.param == "nodes-2")
    yield request.param
    nodes_2(page, False)


def pressed(page: Page, server: Server) -> list[Path]:
    """Presses Run and waits for the pictures; the files that the workflow gave, none of which is of one colour."""
    before = set(server.get_json("/history"))
    page.get_by_test_id("queue-button").click()
    deadline = time.monotonic() + 300
    while not (new := set(server.get_json("/history")) - before):
        assert time.monotonic() < deadline, f"nothing was painted; on the page: {page.evaluate(ERRORS)}\n{server.log_tail()}"
        page.wait_for_timeout(500)
    history = server.get_json(f"/history/{new.pop()}").popitem()[1]
    assert history["status"]["status_str"] == "success", history["status"]["messages"]
    saved = [server.file_of(image) for output in history["outputs"].values() for image in output.get("images", [])]
    assert saved
    assert all(np.asarray(Image.open(path).convert("L")).std() > 5 for path in saved)
    return saved


def shows(page: Page, name: str, renderer: str) -> None:
    """Every Save Image shows its pictures, and nothing on the page is an error."""
    page.wait_for_timeout(1500)
    screenshot(page, f"{name}-painted-{renderer}")
    shown = page.evaluate(PICTURES[renderer])
    assert shown
    assert all(shown)
    assert page.evaluate(ERRORS) == []


@pytest.mark.parametrize("renderer", list(PICTURES), indirect=True)
@pytest.mark.parametrize("name", TEMPLATES)
def test_run_paints(page: Page, server: Server, name: str, renderer: str) -> None:
    """In Nodes 2.0 right after the classic canvas and with another seed, so that only what the seed changes is computed again."""
    load(page, name)
    changes = CHANGES | {("KSampler", field): value for field, value in stand_ins.of_sampler(run.workflow(name)).items()}
    changes["KSampler", "seed"] = list(PICTURES).index(renderer)
    page.evaluate(CHANGE, [[node, field, value] for (node, field), value in changes.items()])
    pressed(page, server)
    shows(page, name, renderer)
    assert renderer == "classic" or page.evaluate(COVERED, 4) == {"unseen": 0, "found": []}


@pytest.mark.parametrize("renderer", list(PICTURES), indirect=True)
@pytest.mark.parametrize("name", EDITS)
def test_run_paints_with_a_transformer(page: Page, server: Server, name: str, renderer: str) -> None:
    """Its API file as the demo changes it, which the frontend opens like any file that is dropped on it."""
    prompt = stand_ins.changed(run.workflow(name))
    for node in prompt.values():
        for field in ("seed", "noise_seed"):
            if field in node["inputs"]:
                node["inputs"][field] = list(PICTURES).index(renderer)
    page.evaluate(LOAD_API, [prompt, name])
    page.wait_for_timeout(1500)
    pressed(page, server)
    shows(page, f"{name}-tiny-edit", renderer)
