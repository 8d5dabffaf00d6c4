"""Templates as an artist meets them: what to change stands first, all of it is seen at once, and no note is hard to read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from demo.pack import ROOT

FILES = sorted((ROOT / "workflows").glob("*.json"))
SCREEN = (1920, 1080)
FILLED = 0.75
"""The part of the screen that ComfyUI's frontend fits an opened template to (`fitToBounds`)."""
MARGIN = 10
TITLE = 30
FOLDED = 240
"""No collapsed node is wider."""
CHANGE = "Change these"

Box = tuple[float, float, float, float]


def graph(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))


def box(node: dict[str, Any]) -> Box:
    """Left, top, right and bottom of a node with its title; of a collapsed one its title alone."""
    (x, y), (width, height) = node["pos"], node["size"]
    folded = node["flags"].get("collapsed", False)
    return x, y - TITLE, x + (min(width, FOLDED) if folded else width), y + (0 if folded else height)


def scale(nodes: list[dict[str, Any]]) -> float:
    """At what scale the frontend opens these nodes."""
    lefts, tops, rights, bottoms = zip(*map(box, nodes), strict=True)
    width = max(rights) - min(lefts) + 2 * MARGIN
    height = max(bottoms) - min(tops) + 2 * MARGIN
    return min(FILLED * SCREEN[0] / width, FILLED * SCREEN[1] / height)


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_it_opens_large_enough_to_be_read(name: str) -> None:
    assert scale(graph(name)["nodes"]) >= 0.57


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_no_node_lies_on_another(name: str) -> None:
    boxes = {node["id"]: box(node) for node in graph(name)["nodes"]}
    covered = [(one, other) for one in boxes for other in boxes if one < other and overlap(boxes[one], boxes[other])]
    assert covered == []


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_what_to_change_stands_first_in_a_colour_of_its_own(name: str) -> None:
    found = graph(name)
    (first,) = (group for group in found["groups"] if group["title"] == CHANGE)
    left, top, width, height = first["bounding"]
    others = [group for group in found["groups"] if group is not first]
    assert all(left < group["bounding"][0] or top < group["bounding"][1] for group in others)
    assert all(group["color"] != first["color"] for group in others)
    assert left <= min(node["pos"][0] for node in found["nodes"])
    inside = [node for node in found["nodes"] if left <= box(node)[0] < left + width and top <= box(node)[1] < top + height]
    assert 2 <= len(inside) <= 6
    assert not any(node["flags"].get("collapsed") for node in inside)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_prompts_are_green_and_red(name: str) -> None:
    for node in graph(name)["nodes"]:
        if node["type"] == "CLIPTextEncode":
            avoided = "avoid" in node.get("title", "")
            red, green = (int(node["bgcolor"][place], 16) for place in (1, 2))
            assert (red > green) == avoided, node


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_notes_are_bold_where_they_were_code(name: str) -> None:
    """In the new renderer code in a note cannot be read; and nobody has a README beside the template."""
    for node in graph(name)["nodes"]:
        if node["type"] == "MarkdownNote":
            text = node["widgets_values"][0]
            assert "`" not in text
            assert "README" not in text
            assert not re.search(r'"x":', text)
