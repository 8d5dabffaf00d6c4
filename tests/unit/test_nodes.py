"""What every node owes its user: an id that is ours, words for every input and output, a help page that has them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from maskprompt.nodes import NODES

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"


@pytest.mark.parametrize("node", NODES)
def test_it_explains_itself(node: Any) -> None:
    schema = node.GET_SCHEMA()
    assert schema.node_id.startswith("MaskPrompt")
    assert schema.category.startswith("MaskPrompt/")
    assert schema.description
    assert schema.search_aliases
    text = (DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")
    for part, name in [(part, part.id) for part in schema.inputs] + [(part, part.display_name) for part in schema.outputs]:
        assert part.tooltip, name
        assert f"`{name}`" in text, f"{name} is not explained in {schema.node_id}.md"
