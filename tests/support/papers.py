"""Whole runs of a paper's experiment on the tiny model, uninterrupted and killed, at a few steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.papers import __main__ as papers
from demo import setup, tiny_model

SMALL = ("--set", "size=64", "--set", "checkpointing=off", "--paint-steps", "2", "--pictures", "1")
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


def half_done(out: Path, to: Path, pictures: int) -> Path:
    """A copy of a finished run without its table, without what was trained last and without so many of the last pictures."""
    shutil.copytree(out, to)
    for file in (*to.glob("table.*"), to / "cases.json", *_newest(to.rglob("*.png"))[:pictures]):
        file.unlink(missing_ok=True)
    last = _newest((to / "trained").iterdir())[0]
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    return to


def _newest(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True)


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
