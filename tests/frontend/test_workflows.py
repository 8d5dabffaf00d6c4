"""Every bundled workflow in the real frontend: it loads whole, says what its API form says, and offers what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page

from demo import run, stand_ins
from demo.subgraphs import every_node

from ..support.frontend import ERRORS, LOAD, NAMES, at_rest, graph_of, load, nodes_2, screenshot

TITLE_HEIGHT = 30
NODES = """() => window.app.graph.nodes.map(n => ({
    id: n.id, type: n.type, known: n.type in LiteGraph.registered_node_types, errors: !!n.has_errors,
    box: [n.pos[0], n.pos[1], ...(n.flags?.collapsed ? [n._collapsed_width || 80, 0] : n.size)]}))"""

SET = """([title, name, value]) => {
    const widget = window.app.graph.nodes.find(n => n.title === title).widgets.find(w => w.name === name)
    widget.value = value
    widget.callback?.(value)
}"""
OPEN = "async ([graph, name]) => { await window.app.loadGraphData(graph, true, true, name, {openSource: 'template'}) }"


def test_every_workflow_has_both_forms() -> None:
    assert len(NAMES) >= 2
    assert sorted(run.workflows()) == NAMES


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest, page: Page) -> str:
    """The workflow that is open in the page; loaded once for all tests that look at it."""
    load(page, request.param)
    return request.param


def test_a_workflow_loads_whole(page: Page, name: str) -> None:
    screenshot(page, f"{name}-loaded")
    nodes = page.evaluate(NODES)
    assert len(nodes) == len(graph_of(name)["nodes"])
    assert [node for node in nodes if not node["known"] or node["errors"]] == []
    assert page.evaluate(ERRORS) == []


def test_the_graph_is_its_api_form(page: Page, name: str) -> None:
    assert page.evaluate("async () => (await window.app.graphToPrompt()).output") == run.workflow(name)


def test_no_node_covers_another(page: Page, name: str) -> None:
    boxes = {node["id"]: node["box"] for node in page.evaluate(NODES)}
    covered = [
        (first, second)
        for first, (x, y, width, height) in boxes.items()
        for second, (left, top, _, _) in boxes.items()
        if first != second and x <= left < x + width and y - TITLE_HEIGHT <= top - TITLE_HEIGHT < y + height
    ]
    assert covered == []


@pytest.mark.thorough
@pytest.mark.parametrize("vue", [False, True])
def test_every_template_opens_at_a_size_that_can_be_read(page: Page, vue: bool) -> None:
    """As Browse Templates opens it, on a screen of 1920 x 1080, in either renderer."""
    assert page.viewport_size == {"width": 1920, "height": 1080}
    nodes_2(page, vue)
    page.wait_for_timeout(1500)
    try:
        scales = {}
        for opened in NAMES:
            page.evaluate(OPEN, [graph_of(opened), opened])
            scales[opened] = at_rest(page, "() => window.app.canvas.ds.scale")
        assert {opened: scale for opened, scale in scales.items() if scale < 0.57} == {}
    finally:
        nodes_2(page, False)


def test_what_a_subgraphs_node_shows_is_what_runs(page: Page) -> None:
    load(page, "04 Replace what is in the mask, FLUX 2 klein")
    page.evaluate(SET, ["Sampler", "steps", 7])
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    (own,) = (node["inputs"]["steps"] for node in prompt.values() if node["class_type"] == "Flux2Scheduler")
    assert own == 7


@pytest.mark.thorough
@pytest.mark.parametrize("opened", NAMES)
def test_missing_models_are_offered(page: Page, model_inputs: dict[str, tuple[str, Path]], opened: str) -> None:
    graph = graph_of(opened)
    loaders = [node for node in every_node(graph) if node.get("properties", {}).get("models")]
    prompt = run.workflow(opened)
    needed = sorted(
        node["inputs"][field]
        for node in prompt.values()
        for field in stand_ins.PUBLISHED.get(node["class_type"], model_inputs)
        if field in node["inputs"]
    )
    folders = {kind for kind, _ in model_inputs.values()} | {kind for fields in stand_ins.PUBLISHED.values() for kind in fields.values()}
    offered = [model for node in loaders for model in node["properties"]["models"]]
    assert sorted(model["name"] for model in offered) == needed
    for model in offered:
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith(f"/{model['name']}")
        assert model["directory"] in folders
    text = json.dumps(graph)
    for model in needed:
        text = text.replace(model, f"absent-{model}")
    page.evaluate(LOAD, [json.loads(text), opened])
    page.get_by_test_id("error-overlay-see-errors").click()
    absent = [f"absent-{model}" for model in needed]
    page.wait_for_function("names => names.every(name => document.body.innerText.includes(name))", arg=absent)
    screenshot(page, f"{opened}-models-missing")
    panel = page.locator("body").inner_text()
    assert all(f"absent-{model}" in panel for model in needed)
    assert "Download" in panel
