"""Puts plumbing of a template into a subgraph, one node with a plain title, in both of its forms.

    python -m demo.subgraphs 4 "The model" --nodes 5 6 7 --widgets 5.unet_name 6.clip_name 7.vae_name

`--widgets` are the inner nodes' widgets that the subgraph's node shows. Inner nodes keep their ids; in API form they are then called
`25:5`, after the subgraph's node. `python -m demo.layout` finds the new node its place.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from .run import WORKFLOWS, matching

Graph = dict[str, Any]
Node = dict[str, Any]
INPUTS, OUTPUTS = -10, -20
"""What a subgraph's own ends are called in its links."""
ROW = 20
WIDGET = 34
FOOT = 40
WIDTH = 290
"""In pixels: a socket, a widget, the way into the subgraph, and a node, as Nodes 2.0 draws them."""
TYPES = {str: "COMBO", int: "INT", float: "FLOAT"}
FRACTIONS = ("cfg",)
"""Widgets that take fractions, also where a file has a whole number."""


def subgraphs(graph: Graph) -> dict[str, Graph]:
    """The subgraphs of a workflow by their ids."""
    return {one["id"]: one for one in graph.get("definitions", {}).get("subgraphs", [])}


def every_node(graph: Graph) -> list[Node]:
    """All nodes that run or say something: those of subgraphs in place of the nodes that stand for these."""
    inner = subgraphs(graph)
    outside = [node for node in graph["nodes"] if node["type"] not in inner]
    return [*outside, *(node for one in inner.values() for node in every_node(one))]


class Making:
    """A subgraph that is being made of nodes of a workflow: what is inside, and the node that stands for it outside."""

    def __init__(self, graph: Graph, title: str, ids: Sequence[int]) -> None:
        self.title = title
        self.nodes: dict[int, Node] = {node["id"]: node for node in graph["nodes"]}
        self.inside = [self.nodes[number] for number in ids]
        self.own: int = graph["last_node_id"] + 1
        self.last_link: int = graph["last_link_id"]
        self.id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"maskprompt {title} {sorted(ids)} {self.own}"))
        self.links: list[dict[str, Any]] = []
        self.outer_links: list[list[Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.outer_inputs: list[dict[str, Any]] = []
        self.outer_outputs: list[dict[str, Any]] = []
        self.values: list[Any] = []
        self.places: dict[tuple[int, int], int] = {}
        """Which end of the subgraph stands for a node's output, by that node and its slot."""

    def link(self, origin: tuple[int, int], target: tuple[int, int], kind: str, number: int | None = None) -> int:
        """Wire a slot to another inside, each by its node and place, with a new number or the one it had."""
        if number is None:
            self.last_link += 1
            number = self.last_link
        ends = {"origin_id": origin[0], "origin_slot": origin[1], "target_id": target[0], "target_slot": target[1]}
        self.links.append({"id": number, **ends, "type": kind})
        return number

    def end(self, ends: list[dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
        """A new input or output of the subgraph, the last of `ends`, with a name that none of them has."""
        taken = [slot["name"] for slot in ends]
        unique = name if name not in taken else f"{name}_{len(taken)}"
        key = f"{self.id} {ends is self.inputs} {len(ends)}"
        ends.append(
            {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, key)), "name": unique, "type": kind, "linkIds": [], "pos": [0, ROW * len(ends)]}
        )
        return ends[-1]

    def enter(self, number: int, origin: int, slot: int, target: int, target_slot: int, kind: str) -> None:
        """Lead a link from outside in; an output outside that is wired to several nodes inside comes in once."""
        inner = self.nodes[target]["inputs"][target_slot]
        if (origin, slot) in self.places:
            self.nodes[origin]["outputs"][slot]["links"].remove(number)
        else:
            self.places[origin, slot] = len(self.inputs)
            named = self.end(self.inputs, inner["name"], kind)
            self.outer_inputs.append({"name": named["name"], "type": kind, "link": number})
            self.outer_links.append([number, origin, slot, self.own, len(self.inputs) - 1, kind])
        place = self.places[origin, slot]
        inner["link"] = self.link((INPUTS, place), (target, target_slot), kind)
        self.inputs[place]["linkIds"].append(inner["link"])

    def leave(self, number: int, origin: int, slot: int, target: int, target_slot: int, kind: str) -> None:
        """Lead a link from inside out; an output inside that is wired to several nodes outside goes out once."""
        inner = self.nodes[origin]["outputs"][slot]
        if (origin, slot) not in self.places:
            self.places[origin, slot] = len(self.outputs)
            named = self.end(self.outputs, inner["name"], kind)
            self.outer_outputs.append({"name": named["name"], "type": kind, "links": []})
            named["linkIds"].append(self.link((origin, slot), (OUTPUTS, len(self.outputs) - 1), kind))
            inner["links"] = [*inner["links"], *named["linkIds"]]
        place = self.places[origin, slot]
        inner["links"].remove(number)
        self.outer_outputs[place]["links"].append(number)
        self.outer_links.append([number, self.own, place, target, target_slot, kind])

    def show(self, number: int, name: str, value: Any) -> None:
        """Show a widget of a node inside on the node that stands for the subgraph."""
        node = self.nodes[number]
        slot = self.end(self.inputs, name, TYPES[float if name in FRACTIONS else type(value)])
        link = self.link((INPUTS, len(self.inputs) - 1), (number, len(node["inputs"])), slot["type"])
        slot["linkIds"].append(link)
        node["inputs"].append({"name": name, "type": slot["type"], "widget": {"name": name}, "link": link})
        self.outer_inputs.append({"name": slot["name"], "type": slot["type"], "widget": {"name": slot["name"]}, "link": None})
        self.values.append(value)

    def definition(self) -> Graph:
        """What stands below `definitions` in the workflow."""
        left = min(node["pos"][0] for node in self.inside)
        top = min(node["pos"][1] for node in self.inside)
        right = max(node["pos"][0] + node["size"][0] for node in self.inside)
        return {
            "id": self.id, "version": 1, "revision": 0, "config": {}, "name": self.title,
            "state": {"lastGroupId": 0, "lastNodeId": self.own, "lastLinkId": self.last_link, "lastRerouteId": 0},
            "inputNode": {"id": INPUTS, "bounding": [left - 200, top, 120, 2 * ROW + ROW * len(self.inputs)]},
            "outputNode": {"id": OUTPUTS, "bounding": [right + 80, top, 120, 2 * ROW + ROW * len(self.outputs)]},
            "inputs": self.inputs, "outputs": self.outputs, "widgets": [], "nodes": self.inside, "groups": [], "links": self.links,
            "extra": {},
        }  # fmt: skip

    def stand_in(self) -> Node:
        """The node that stands for the subgraph, where the first of its nodes was."""
        sockets = max(len(self.outer_inputs) - len(self.values), len(self.outer_outputs))
        return {
            "id": self.own, "type": self.id, "pos": list(self.inside[0]["pos"]),
            "size": [WIDTH, FOOT + ROW * sockets + WIDGET * len(self.values)], "flags": {},
            "order": min(node["order"] for node in self.inside), "mode": 0, "inputs": self.outer_inputs, "outputs": self.outer_outputs,
            "title": self.title, "properties": {}, "widgets_values": self.values,
        }  # fmt: skip


def gather(graph: Graph, title: str, ids: Sequence[int], widgets: Iterable[tuple[int, str, Any]] = ()) -> int:
    """Move nodes into a subgraph in place, and return the id of the node that stands for it.

    Its outputs are in the order of `ids`. widgets: inner node, name and value of each widget that this node shows.
    """
    made = Making(graph, title, ids)
    rank = {number: place for place, number in enumerate(ids)}
    for number, origin, slot, target, target_slot, kind in sorted(graph["links"], key=lambda link: (rank.get(link[1], 0), link[2])):
        if origin in rank and target in rank:
            made.link((origin, slot), (target, target_slot), kind, number)
        elif target in rank:
            made.enter(number, origin, slot, target, target_slot, kind)
        elif origin in rank:
            made.leave(number, origin, slot, target, target_slot, kind)
        else:
            made.outer_links.append([number, origin, slot, target, target_slot, kind])
    for number, name, value in widgets:
        made.show(number, name, value)
    first = min(place for place, node in enumerate(graph["nodes"]) if node["id"] in rank)
    nodes = [node for node in graph["nodes"] if node["id"] not in rank]
    nodes.insert(first, made.stand_in())
    graph |= {"nodes": nodes, "links": sorted(made.outer_links), "last_node_id": made.own, "last_link_id": made.last_link}
    graph.setdefault("definitions", {}).setdefault("subgraphs", []).append(made.definition())
    return made.own


def renamed(prompt: dict[str, Any], ids: Iterable[int], own: int) -> dict[str, Any]:
    """An API form in which the nodes of a subgraph are called after the node that stands for it."""
    names = {str(number): f"{own}:{number}" for number in ids}
    found: dict[str, Any] = {}
    for name, entry in prompt.items():
        given = {
            key: [names.get(value[0], value[0]), *value[1:]] if isinstance(value, list) and isinstance(value[0], str) else value
            for key, value in entry["inputs"].items()
        }
        found[names.get(name, name)] = {**entry, "inputs": given}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.subgraphs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workflow", help="number, or words of the title, of a bundled workflow")
    parser.add_argument("title", help="what the node is called")
    parser.add_argument("--nodes", nargs="+", type=int, required=True, help="ids of the nodes that go inside")
    parser.add_argument("--widgets", nargs="*", default=[], help="what the node shows of them, such as 5.unet_name")
    options = parser.parse_args(arguments)
    (name,) = matching(options.workflow, sorted(path.stem for path in WORKFLOWS.glob("*.json")))
    path, api = WORKFLOWS / f"{name}.json", WORKFLOWS / "api" / f"{name}.json"
    graph = json.loads(path.read_text("utf-8"))
    prompt = json.loads(api.read_text("utf-8"))
    shown = [(int(number), field, prompt[number]["inputs"][field]) for number, field in (one.split(".") for one in options.widgets)]
    own = gather(graph, options.title, options.nodes, shown)
    for file, content in ((path, graph), (api, renamed(prompt, options.nodes, own))):
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
