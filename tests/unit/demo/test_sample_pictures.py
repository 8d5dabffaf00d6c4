"""The templates' pictures: shipped, put into an empty input folder, and never over anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
from maskprompt.nodes import sample_pictures
from PIL import Image

from demo import photos, subject_pictures
from demo.pack import ROOT


def loaded_by_templates() -> set[str]:
    graphs = [json.loads(file.read_text("utf-8")) for file in (ROOT / "workflows" / "api").glob("*.json")]
    nodes = [node for graph in graphs for node in graph.values()]
    return {node["inputs"]["image"] for node in nodes if node["class_type"] in ("LoadImage", "LoadImageMask")}


def test_an_empty_input_folder_gets_what_the_templates_load(tmp_path: Path) -> None:
    placed = sample_pictures.place(tmp_path)
    assert loaded_by_templates() == set(placed) == {file.name for file in tmp_path.iterdir()}
    for name in placed:
        stem = Path(name).stem
        expected = subject_pictures.load(stem) if stem in subject_pictures.names() else photos.load(stem)
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            found = np.asarray(image.convert("RGB")).astype(int)
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 4, name
    assert sample_pictures.place(tmp_path) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "coffee.png").write_text("mine")
    assert "coffee.png" not in sample_pictures.place(tmp_path)
    assert (tmp_path / "coffee.png").read_text() == "mine"


@pytest.mark.parametrize("kind", ["a file", "nowhere"])
def test_a_folder_that_takes_nothing_is_left_with_a_word(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "input"
    if kind == "a file":
        folder.write_text("")
    assert sample_pictures.place(folder) == []
    assert "choose your own in Load Image" in caplog.text


def test_a_write_protected_folder_is_left_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Path.open

    def protected(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if "x" in mode:
            raise PermissionError(13, "Permission denied")
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", protected)
    assert sample_pictures.place(tmp_path) == []
    assert not list(tmp_path.iterdir())
    assert "choose your own in Load Image" in caplog.text


def test_at_the_start_it_works_beside_and_only_where_something_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    thread = sample_pictures.place_at_start()
    assert thread is not None
    thread.join(60)
    assert (tmp_path / "coffee.png").is_file()
    assert sample_pictures.place_at_start() is None
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "nowhere"))
    assert sample_pictures.place_at_start() is None


def test_every_shipped_picture_has_its_source_named() -> None:
    text = (ROOT / "pictures" / "SOURCES.md").read_text("utf-8")
    for path in sample_pictures.SHIPPED.glob("*.webp"):
        numbered = path.stem.startswith("subject-")
        assert f"`{path.stem}`" in text or numbered, path.stem
    assert "`subject-1` to `subject-5`" in text
