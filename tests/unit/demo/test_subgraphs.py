"""Plumbing in a subgraph: the same nodes with the same wires, and both forms of the workflow know it by the same names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo import run, subgraphs
from demo.pack import ROOT

Wire = tuple[int, int, int, str]
"""From a node's output by its place to a node's input by its name."""


def wires(graph: dict[str, Any]) -> set[Wire]:
    """What is wired to what, seen through subgraphs."""
    inner = subgraphs.subgraphs(graph)
    stand_ins = {node["id"]: inner[node["type"]] for node in graph["nodes"] if node["type"] in inner}
    names = {node["id"]: [slot["name"] for slot in node["inputs"]] for node in subgraphs.every_node(graph)}
    outer = {(link[1], link[2], link[3], link[4]) for link in graph["links"]}
    found: set[Wire] = set()

    def sources(node: int, slot: int) -> tuple[int, int]:
        if node not in stand_ins:
            return node, slot
        (link,) = (one for one in stand_ins[node]["links"] if (one["target_id"], one["target_slot"]) == (-20, slot))
        return link["origin_id"], link["origin_slot"]

    for origin, slot, target, place in outer:
        start = sources(origin, slot)
        if target not in stand_ins:
            found.add((*start, target, names[target][place]))
            continue
        ends = [one for one in stand_ins[target]["links"] if (one["origin_id"], one["origin_slot"]) == (-10, place)]
        assert ends
        found |= {(*start, one["target_id"], names[one["target_id"]][one["target_slot"]]) for one in ends}
    for one in (link for graph in stand_ins.values() for link in graph["links"]):
        if one["origin_id"] >= 0 and one["target_id"] >= 0:
            found.add((one["origin_id"], one["origin_slot"], one["target_id"], names[one["target_id"]][one["target_slot"]]))
    return found


def small() -> dict[str, Any]:
    """Four nodes in a row, 1 to 4, where 1 is wired to 2 and 3 as well, and 2 to 3 and 4."""

    def node(number: int, inputs: list[tuple[str, int]], links: list[int]) -> dict[str, Any]:
        return {
            "id": number, "type": f"Type{number}", "pos": [100 * number, 0], "size": [90, 50], "order": number, "properties": {},
            "inputs": [{"name": name, "type": "X", "link": link} for name, link in inputs],
            "outputs": [{"name": "out", "type": "X", "links": links}], "widgets_values": [number],
        }  # fmt: skip

    return {
        "last_node_id": 4, "last_link_id": 5, "groups": [],
        "nodes": [
            node(1, [], [1, 2]), node(2, [("first", 1)], [3, 4]), node(3, [("first", 2), ("second", 3)], [5]),
            node(4, [("first", 4), ("second", 5)], []),
        ],
        "links": [[1, 1, 0, 2, 0, "X"], [2, 1, 0, 3, 0, "X"], [3, 2, 0, 3, 1, "X"], [4, 2, 0, 4, 0, "X"], [5, 3, 0, 4, 1, "X"]],
    }  # fmt: skip


@pytest.mark.parametrize("inside", [[1], [2], [2, 3], [1, 2, 3], [3, 4]])
def test_a_subgraph_changes_no_wire(inside: list[int]) -> None:
    before = small()
    after = small()
    own = subgraphs.gather(after, "Plumbing", inside)
    assert own == 5
    assert wires(after) == wires(before)
    assert {node["id"] for node in subgraphs.every_node(after)} == {1, 2, 3, 4}
    assert {node["id"] for node in after["nodes"]} == {1, 2, 3, 4, 5} - set(inside)


def test_each_end_is_wired_once() -> None:
    graph = small()
    subgraphs.gather(graph, "Plumbing", [2, 3])
    (one,) = subgraphs.subgraphs(graph).values()
    assert [slot["name"] for slot in one["inputs"]] == ["first"]
    assert len(one["inputs"][0]["linkIds"]) == 2
    numbers = [link["id"] for link in one["links"]]
    assert len(numbers) == len(set(numbers))
    (stand_in,) = (node for node in graph["nodes"] if node["type"] == one["id"])
    assert all(slot["link"] in {link[0] for link in graph["links"]} for slot in stand_in["inputs"])


def test_a_widget_is_shown_outside() -> None:
    graph = small()
    subgraphs.gather(graph, "Plumbing", [2], [(2, "steps", 4)])
    (stand_in,) = (node for node in graph["nodes"] if node["id"] == 5)
    assert stand_in["widgets_values"] == [4]
    assert stand_in["inputs"][-1] == {"name": "steps", "type": "INT", "widget": {"name": "steps"}, "link": None}


def test_the_api_form_calls_inner_nodes_after_their_subgraph() -> None:
    prompt = {"1": {"class_type": "A", "inputs": {"x": 1}}, "2": {"class_type": "B", "inputs": {"a": ["1", 0], "n": [1, 2, 3]}}}
    found = subgraphs.renamed(prompt, [1], 7)
    assert found == {"7:1": prompt["1"], "2": {"class_type": "B", "inputs": {"a": ["7:1", 0], "n": [1, 2, 3]}}}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "workflows").glob("*.json")))
def test_a_template_has_the_nodes_and_wires_of_its_api_form(name: str) -> None:
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    prompt = run.workflow(name)
    wired = {
        (int(str(value[0]).rpartition(":")[2]), value[1], int(key.rpartition(":")[2]), field)
        for key, entry in prompt.items()
        for field, value in entry["inputs"].items()
        if isinstance(value, list)
    }
    assert wires(graph) == wired
