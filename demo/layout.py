"""Lays a template's groups out anew, so that all of it is seen at once in a size that can be read.

    python -m demo.layout 9 "new background" --change 1 3 5 --fold 7 8

Groups keep their nodes and their order, each is cut into columns, and groups stand beside or above each other: whatever opens at the
largest scale. `--change` takes nodes, by their ids, out of their groups and into the first one, *Change these*; `--fold` collapses
plumbing to its title. What belongs to no group, as a rule the notes, stands at the end. A node's size is what the file says: give it
the height that it needs in Nodes 2.0, where a node is taller than on the classic canvas.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .run import WORKFLOWS, matching

Node = dict[str, Any]
TITLE = 30
GAP = 24
PADDING = 20
HEADING = 44
BETWEEN = 40
WIDEST = 2500
HIGHEST = 1390
"""What opens at 57 % on a screen of 1920 x 1080, which the frontend fills to three quarters."""
CHANGE = "Change these"
CHANGE_COLOUR = "#a1309b"
COLOUR = "#3f789e"
MOST_COLUMNS = 4


@dataclass(frozen=True)
class Block:
    """A group cut into columns: its outer size in pixels and its nodes, column by column. Without a title it has no frame."""

    title: str | None
    width: float
    height: float
    columns: tuple[tuple[Node, ...], ...]


def folded(node: Node) -> bool:
    return bool(node.get("flags", {}).get("collapsed"))


def height(node: Node) -> float:
    """Of a node with its title."""
    return TITLE + (0 if folded(node) else node["size"][1])


def blocks(title: str | None, nodes: Sequence[Node]) -> list[Block]:
    """The group in one column, in two, and so on, each as low as it can be with its nodes in order."""
    found = []
    sides, above = (2 * PADDING, PADDING + HEADING) if title else (0, 0)
    for count in range(1, min(MOST_COLUMNS, len(nodes)) + 1):
        cut = [
            tuple(tuple(nodes[start:end]) for start, end in itertools.pairwise((0, *at, len(nodes))))
            for at in itertools.combinations(range(1, len(nodes)), count - 1)
        ]
        sized = [(max(map(column_height, columns)), sum(map(column_width, columns)) + GAP * (count - 1), columns) for columns in cut]
        low, wide, columns = min(sized, key=lambda one: one[:2])
        found.append(Block(title, wide + sides, low + above, columns))
    return found


def column_height(nodes: Sequence[Node]) -> float:
    return sum(map(height, nodes)) + GAP * (len(nodes) - 1)


def column_width(nodes: Sequence[Node]) -> float:
    return max(node["size"][0] for node in nodes)


def stacked(choices: Sequence[Sequence[Block]]) -> list[tuple[float, float, tuple[Block, ...]]]:
    """Width, height and blocks of these groups above each other: the ways of which none is both wider and higher than another."""
    every = [
        (max(block.width for block in pick), sum(block.height for block in pick) + BETWEEN * (len(pick) - 1), pick)
        for pick in itertools.product(*choices)
    ]
    best: list[tuple[float, float, tuple[Block, ...]]] = []
    for one in sorted(every, key=lambda one: one[:2]):
        if not best or one[1] < best[-1][1]:
            best.append(one)
    return best


def arranged(groups: Sequence[tuple[str | None, Sequence[Node]]]) -> list[tuple[float, float, tuple[Block, ...]]]:
    """The groups as stacks from left to right, in their order, in the shape that opens at the largest scale."""
    choices = [blocks(title, nodes) for title, nodes in groups]
    count = len(choices)
    best: list[tuple[float, float, tuple[Block, ...]]] = []
    least = float("inf")
    for at in itertools.chain.from_iterable(itertools.combinations(range(1, count), number) for number in range(count)):
        stacks = [stacked(choices[start:end]) for start, end in itertools.pairwise((0, *at, count))]
        for limit in sorted({one[1] for stack in stacks for one in stack}):
            fitting = [[one for one in stack if one[1] <= limit] for stack in stacks]
            if not all(fitting):
                continue
            pick = [ways[0] for ways in fitting]
            width = sum(one[0] for one in pick) + BETWEEN * (len(pick) - 1)
            if (cost := max(width / WIDEST, limit / HIGHEST)) < least:
                best, least = pick, cost
    return best


def place(stacks: Sequence[tuple[float, float, tuple[Block, ...]]]) -> list[dict[str, Any]]:
    """Moves the nodes to their places; the frames of their groups."""
    frames: list[dict[str, Any]] = []
    left = 0.0
    for width, _, stack in stacks:
        top = 0.0
        for block in stack:
            x, first = (left + PADDING, top + HEADING) if block.title else (left, top)
            for column in block.columns:
                y = first
                for node in sorted(column, key=folded, reverse=True) if folded(column[-1]) else column:
                    node["pos"] = [x, y + TITLE]
                    y += height(node) + GAP
                x += column_width(column) + GAP
            if block.title:
                colour = CHANGE_COLOUR if block.title == CHANGE else COLOUR
                bounds = [left, top, block.width, block.height]
                frames.append({"id": len(frames) + 1, "title": block.title, "bounding": bounds, "color": colour, "flags": {}})
            top += block.height + BETWEEN
        left += width + BETWEEN
    return frames


def lay_out(graph: dict[str, Any], change: Iterable[int] = (), fold: Iterable[int] = ()) -> None:
    """Lays a workflow out in place; see the module."""
    nodes: dict[int, Node] = {node["id"]: node for node in graph["nodes"]}
    for number in fold:
        nodes[number].setdefault("flags", {})["collapsed"] = True
    members = {group["title"]: [node for node in graph["nodes"] if _inside(node, group["bounding"])] for group in graph["groups"]}
    first = [*members.pop(CHANGE, []), *(nodes[number] for number in change)]
    taken = {node["id"] for node in first}
    groups: list[tuple[str | None, list[Node]]] = [(CHANGE, first)] if first else []
    for title, inside in members.items():
        own = sorted((node for node in inside if node["id"] not in taken), key=lambda node: (node["pos"][0], node["pos"][1]))
        taken |= {node["id"] for node in own}
        groups += [(title, own)] if own else []
    rest = [node for node in graph["nodes"] if node["id"] not in taken]
    graph["groups"] = place(arranged([*groups, *([(None, rest)] if rest else [])]))


def _inside(node: Node, bounding: Sequence[float]) -> bool:
    left, top, width, tall = bounding
    return left <= node["pos"][0] < left + width and top <= node["pos"][1] < top + tall


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.layout", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workflows", nargs="+", help="numbers, or words of the titles, of bundled workflows")
    parser.add_argument("--change", nargs="*", type=int, default=[], help="ids of the nodes to change, which stand first")
    parser.add_argument("--fold", nargs="*", type=int, default=[], help="ids of the nodes to collapse")
    options = parser.parse_args(arguments)
    titles = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    for title in (title for name in options.workflows for title in matching(name, titles)):
        path = WORKFLOWS / f"{title}.json"
        graph = json.loads(path.read_text("utf-8"))
        lay_out(graph, options.change, options.fold)
        path.write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
