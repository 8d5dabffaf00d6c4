"""Whole runs of a paper's experiment on the tiny model, uninterrupted and killed, at a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.papers import __main__ as papers
from demo import setup, tiny_model

SMALL = ("--set", "size=64", "--paint-steps", "2", "--pictures", "1")
LORA = ("--set", "method=lora", "--set", "rank=2")
NETWORK = ("--set", "steps=2", "--set", "batch=1")


def whole(paper: str, data: Path, out: Path, *more: object) -> int:
    """The exit status of a run that trains, paints and scores with the tiny model."""
    given = (paper, "--comfyui", setup.comfyui_path(), "--register", tiny_model.ROOT / "demo" / "registration")
    given += ("--checkpoint", tiny_model.CHECKPOINT, "--data", data, "--out", out, *more)
    return papers.main([str(one) for one in given])


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """What stands in a table, by row."""
    return json.loads((out / "table.json").read_text("utf-8"))["here"]


def calls_of(target: Any, name: str, patch: pytest.MonkeyPatch, ends_at: int = 0) -> list[int]:
    """Counts the calls of a function from now on, in the list's only entry; call number `ends_at` is as a Ctrl-C."""
    plain: Callable[..., Any] = getattr(target, name)
    count = [0]

    def call(*inputs: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == ends_at:
            raise KeyboardInterrupt
        return plain(*inputs, **named)

    patch.setattr(target, name, call)
    return count
