"""The settings of a table's trainings beside the node's defaults and the paper's, for the notes that are kept with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def beside_defaults(measured: Mapping[str, Any], node: Any, paper: Mapping[str, Any]) -> str:
    """Say every input of a Train node that was measured with another value than its default or the paper's.

    `measured` and `paper` are by the names of the node's inputs. Raises KeyError for a name that is no input of the node.
    """
    defaults = {one.id: getattr(one, "default", None) for one in node.define_schema().inputs}
    told = []
    for name, value in measured.items():
        others = [f"node {said(defaults[name])}"] + ([f"paper {said(paper[name])}"] if name in paper else [])
        if value != defaults[name] or value != paper.get(name, value):
            told.append(f"{name} {said(value)} ({', '.join(others)})")
    return "; ".join(told)


def said(value: Any) -> str:
    """A setting as a reader of the node sees it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
