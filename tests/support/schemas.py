"""What every node owes its user."""

from __future__ import annotations

import re
from typing import Any

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
    for part in schema.inputs:
        choices: list[str] = [] if part.id.endswith("_name") else getattr(part, "options", None) or []
        untold = [choice for choice in choices if not re.search(rf"\b{re.escape(choice)}\b", part.tooltip, re.IGNORECASE)]
        assert untold == [], f"the tooltip of {part.id} does not say what these values do"
