"""Chinese and Japanese: every node, all of it, by the names that the node has today."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from maskprompt.nodes import NODES

from demo.pack import ROOT

LANGUAGES = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]"}
"""The languages, and what a text in each has at least one sign of."""


def translated(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_translated_whole(language: str) -> None:
    found = translated(language)
    schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}
    assert found.keys() == schemas.keys()
    for name, words in found.items():
        schema = schemas[name]
        assert set(words["inputs"]) == {part.id for part in schema.inputs}, name
        assert set(words["outputs"]) == {str(index) for index in range(len(schema.outputs))}, name
        texts = [words["display_name"], words["description"]]
        texts += [part["tooltip"] for part in (*words["inputs"].values(), *words["outputs"].values())]
        assert all(re.search(LANGUAGES[language], text) for text in texts), name
        assert all(part["name"] for part in (*words["inputs"].values(), *words["outputs"].values())), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_choices_are_named_as_the_node_names_them(language: str) -> None:
    """The values of widgets stay English, since graphs save them: a tooltip that explains them must not translate their names."""
    found = translated(language)
    for node in NODES:
        schema = node.GET_SCHEMA()
        for part in schema.inputs if schema.node_id in found else ():
            options: list[str] = getattr(part, "options", None) or []
            mentioned = [value for value in options if re.search(rf"\b{re.escape(value)}\b", part.tooltip or "", re.IGNORECASE)]
            text = found[schema.node_id]["inputs"][part.id]["tooltip"].lower()
            assert len(mentioned) < 2 or all(value.lower() in text for value in mentioned), (schema.node_id, part.id)
