"""What every node owes its user: an id that is ours, words for every input and output, a help page that has them all, a workflow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from maskprompt.nodes import NODES

from demo.pack import ROOT

DOCS = ROOT / "web" / "docs"


def explains_itself(node: Any) -> None:
    """Asserts that a node has an id of ours and words for every input and output, also on its help page."""
    schema = node.GET_SCHEMA()
    assert schema.node_id.startswith("MaskPrompt")
    assert schema.category.startswith("MaskPrompt/")
    assert schema.description
    assert schema.search_aliases
    text = (DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")
    for part, name in [(part, part.id) for part in schema.inputs] + [(part, part.display_name) for part in schema.outputs]:
        assert part.tooltip, name
        assert f"`{name}`" in text, f"{name} is not explained in {schema.node_id}.md"


@pytest.mark.parametrize("node", NODES)
def test_it_explains_itself(node: Any) -> None:
    explains_itself(node)


def test_every_node_stands_in_a_bundled_workflow() -> None:
    graphs = [json.loads(file.read_text("utf-8")) for file in (ROOT / "workflows" / "api").glob("*.json")]
    used = {entry["class_type"] for graph in graphs for entry in graph.values()}
    assert {node.GET_SCHEMA().node_id for node in NODES} <= used
