"""What every node owes its user: an id that is ours, words for every input and output, a help page that has them all, a workflow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from maskprompt.nodes import NODES

from demo.pack import ROOT

from ...support.schemas import explains_itself


@pytest.mark.parametrize("node", NODES)
def test_it_explains_itself(node: Any) -> None:
    explains_itself(node)


def test_every_node_stands_in_a_bundled_workflow() -> None:
    graphs = [json.loads(file.read_text("utf-8")) for file in (ROOT / "workflows" / "api").glob("*.json")]
    used = {entry["class_type"] for graph in graphs for entry in graph.values()}
    assert {node.GET_SCHEMA().node_id for node in NODES} <= used
