"""A template laid out anew: every node once, none on another, groups in order, and as large as a trial of all ways finds."""

from __future__ import annotations

import random
from typing import Any

import pytest

from demo import layout


def graph_of(sizes: list[list[tuple[int, int]]], notes: int = 2) -> dict[str, Any]:
    """Groups of nodes of these sizes, far apart, and some notes beside them."""
    nodes: list[dict[str, Any]] = []
    groups = []
    for number, group in enumerate(sizes):
        groups.append(
            {"id": number + 1, "title": f"Group {number}", "bounding": [5000 * number, 0, 4000, 9000], "color": "#000", "flags": {}}
        )
        for place, (width, height) in enumerate(group):
            nodes.append({"id": len(nodes) + 1, "pos": [5000 * number + 10, 100 + 900 * place], "size": [width, height], "flags": {}})
    nodes += [{"id": 1000 + number, "pos": [-900, 400 * number], "size": [300, 200], "flags": {}} for number in range(notes)]
    return {"nodes": nodes, "groups": groups}


def boxes(graph: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    return [
        (
            node["pos"][0],
            node["pos"][1] - layout.TITLE,
            node["pos"][0] + node["size"][0],
            node["pos"][1] - layout.TITLE + layout.height(node),
        )
        for node in graph["nodes"]
    ]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_lies_on_anything_and_groups_hold_their_nodes(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [[(draw.randint(200, 400), draw.randint(60, 600)) for _ in range(draw.randint(1, 6))] for _ in range(draw.randint(1, 4))]
    graph = graph_of(sizes)
    groups = {number: range(sum(map(len, sizes[:number])) + 1, sum(map(len, sizes[: number + 1])) + 1) for number in range(len(sizes))}
    layout.lay_out(graph, fold=[1])
    found = boxes(graph)
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    by_id = dict(zip((node["id"] for node in graph["nodes"]), found, strict=True))
    assert [group["title"] for group in graph["groups"]] == [f"Group {number}" for number in range(len(sizes))]
    for number, group in enumerate(graph["groups"]):
        left, top, width, height = group["bounding"]
        for node in groups[number]:
            box = by_id[node]
            assert left <= box[0]
            assert top <= box[1]
            assert box[2] <= left + width
            assert box[3] <= top + height


def test_what_to_change_stands_first() -> None:
    graph = graph_of([[(300, 200)] * 3, [(300, 200)] * 2])
    layout.lay_out(graph, change=[2, 5])
    first = graph["groups"][0]
    assert (first["title"], first["bounding"][:2]) == (layout.CHANGE, [0.0, 0.0])
    assert [len(layout.blocks("x", [node for node in graph["nodes"] if node["id"] in (2, 5)]))] == [2]
    again = [dict(node) for node in graph["nodes"]]
    layout.lay_out(graph)
    assert [node["pos"] for node in graph["nodes"]] == [node["pos"] for node in again]


def test_columns_are_as_low_as_can_be() -> None:
    nodes = [{"id": number, "pos": [0, 0], "size": [100, tall], "flags": {}} for number, tall in enumerate((100, 300, 100, 100, 200))]
    one, two, three, four = layout.blocks(None, nodes)
    assert one.height == 800 + 5 * layout.TITLE + 4 * layout.GAP
    assert two.height == 400 + 3 * layout.TITLE + 2 * layout.GAP
    assert [len(column) for column in two.columns] == [2, 3]
    assert three.height == 400 + 2 * layout.TITLE + layout.GAP
    assert four.height == 300 + layout.TITLE
    assert four.width == 400 + 3 * layout.GAP
