"""Clicking where the graph is not plain: subgraphs, Ctrl+Z in the large picture, a second finger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from ..support.pointing_page import CROP, OPEN_SUBGRAPH, PRESS, SAM, TO_SUBGRAPH, VALUES, answer, drag, mask_of, near, place

SAYS = "(word) => document.querySelector('.maskprompt-picture [role=status]')?.textContent.startsWith(word)"
FINGERS = """([one, other]) => {
    const canvas = document.querySelector('.maskprompt-picture canvas')
    const send = (type, id, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
        pointerId: id, isPrimary: id === 1, pointerType: 'touch', clientX: x, clientY: y, button: 0, bubbles: true, cancelable: true
    }))
    canvas.setPointerCapture = () => {}
    send('pointerdown', 1, one)
    send('pointerdown', 2, other)
    send('pointermove', 1, other)
    send('pointermove', 2, one)
    send('pointerup', 2, one)
    send('pointerup', 1, other)
}"""


@pytest.fixture
def at_the_root(fresh: Page) -> Iterator[Page]:
    """The page, which shows its whole graph again after the test. The classic canvas keeps, unseen, what stood in a subgraph."""
    yield fresh
    fresh.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph ?? window.app.graph)")
    fresh.evaluate(
        "() => { if (!LiteGraph.vueNodesMode) for (const left of document.querySelectorAll('.maskprompt-picture')) left.remove() }"
    )


def test_in_a_subgraph_the_picture_and_sam_outside_are_found(at_the_root: Page) -> None:
    page = at_the_root
    page.evaluate(OPEN_SUBGRAPH, page.evaluate(TO_SUBGRAPH, SAM))
    page.wait_for_function(SAYS, arg="Click")
    assert mask_of(answer(page, lambda: page.mouse.click(*place(page, 300, 350)))).any()


@pytest.mark.parametrize("inside", ["MaskPromptLoadSAM", "LoadImage"])
def test_what_comes_out_of_a_subgraph_is_found(at_the_root: Page, inside: str) -> None:
    page = at_the_root
    page.evaluate(TO_SUBGRAPH, inside)
    page.wait_for_timeout(1000)
    page.wait_for_function(SAYS, arg="Click")
    assert mask_of(answer(page, lambda: page.mouse.click(*place(page, 300, 350)))).any()


def test_in_the_large_picture_control_z_takes_the_box_back_and_nothing_else(fresh: Page) -> None:
    fresh.evaluate(PRESS, CROP)
    within = ".maskprompt-dialog"
    fresh.wait_for_function(f"() => /Box|Drag/.test(document.querySelector('{within} [role=status]').textContent)")
    nodes = fresh.evaluate("() => window.app.graph.nodes.length")
    drag(fresh, place(fresh, 100, 50, within), place(fresh, 300, 200, within))
    assert near(fresh.evaluate(VALUES, CROP)["box"], 100, 50, 200, 150)
    fresh.keyboard.press("Control+z")
    fresh.wait_for_timeout(1000)
    assert fresh.evaluate(VALUES, CROP)["box"] == ""
    assert fresh.locator(within).count() == 1
    assert fresh.evaluate("() => window.app.graph.nodes.length") == nodes
    drag(fresh, place(fresh, 200, 100, within), place(fresh, 400, 300, within))
    assert near(fresh.evaluate(VALUES, CROP)["box"], 200, 100, 200, 200)
    fresh.get_by_role("button", name="Done").click()
    fresh.locator(within).wait_for(state="detached")
    assert near(fresh.evaluate(VALUES, CROP)["box"], 200, 100, 200, 200)


def test_two_fingers_mark_nothing(fresh: Page) -> None:
    fresh.evaluate(FINGERS, [list(place(fresh, 200, 100)), list(place(fresh, 400, 300))])
    fresh.wait_for_timeout(500)
    values = fresh.evaluate(VALUES, SAM)
    assert (values["box"], values["positive_coords"], values["negative_coords"]) == ("", "", "")
