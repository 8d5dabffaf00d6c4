"""What every node owes its user: an id that is ours, words for every input and output, a help page that has them all, a workflow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from maskprompt.nodes import NODES

from demo.pack import ROOT

from ...support.schemas import explains_itself

TASKS = {"Regions", "Cut out", "Subjects", "Reference pictures", "Keep a product", "See and measure"}
"""What an artist wants to do: the folders of the node menu."""
PAPERS = ("dreamcom", "mcgm", "meca", "break-a-scene")
"""Names that tell an artist nothing: a node is found by them, and called otherwise."""
SEARCHED = {
    "sam": "MaskPromptSAMMask",
    "inpaint": "MaskPromptMaskedAttention",
    "regional": "MaskPromptPromptRegion",
    "mask": "MaskPromptSAMMask",
    "product": "MaskPromptLoadMaskControlNet",
    "dreamcom": "MaskPromptTrainDreamCom",
    "train mcgm": "MaskPromptTrainMCGM",
    "load mcgm": "MaskPromptLoadMCGM",
    "encode masks": "MaskPromptEncodeMasks",
    "apply meca": "MaskPromptApplyMECA",
    "load meca": "MaskPromptLoadMECA",
    "train meca": "MaskPromptTrainMECA",
    "save meca": "MaskPromptSaveMECA",
    "mask concat": "MaskPromptMaskConcat",
    "patch visibility": "MaskPromptPatchVisibility",
}
"""What is typed into the search: the node that has it among its aliases, word by word."""


@pytest.mark.parametrize("node", NODES)
def test_it_explains_itself(node: Any) -> None:
    explains_itself(node)


def test_every_node_stands_in_a_bundled_workflow() -> None:
    graphs = [json.loads(file.read_text("utf-8")) for file in (ROOT / "workflows" / "api").glob("*.json")]
    used = {entry["class_type"] for graph in graphs for entry in graph.values()}
    assert {node.GET_SCHEMA().node_id for node in NODES} <= used


def test_the_menu_is_ordered_by_task() -> None:
    assert {node.GET_SCHEMA().category for node in NODES} == {f"MaskPrompt/{task}" for task in TASKS}


@pytest.mark.parametrize("node", NODES)
def test_no_node_is_called_by_a_paper(node: Any) -> None:
    assert not [paper for paper in PAPERS if paper in node.GET_SCHEMA().display_name.lower()]


@pytest.mark.parametrize(("typed", "node_id"), SEARCHED.items())
def test_what_is_typed_is_an_alias(typed: str, node_id: str) -> None:
    (schema,) = (node.GET_SCHEMA() for node in NODES if node.GET_SCHEMA().node_id == node_id)
    assert typed in [alias.lower() for alias in schema.search_aliases]
