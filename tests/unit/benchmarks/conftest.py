"""tiny-edit of random weights, as the tables that paint with it find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tables import stock_painter
from demo.tiny_edit import files, world

from ...support import tiny_edit_world


@pytest.fixture(scope="session")
def tiny_edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a made-up world and weights, and tiny-edit's files of them."""
    made = tmp_path_factory.mktemp("tiny-edit")
    tiny_edit_world.random_weights(made)
    files.write(made, made)
    return made


@pytest.fixture
def place(tiny_edit: Path) -> world.World:
    """Its world."""
    return world.load(tiny_edit / "world")


@pytest.fixture
def kept_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Painters keep their pictures in the test's own folder."""
    monkeypatch.setattr(stock_painter, "WORK", tmp_path / "kept")
