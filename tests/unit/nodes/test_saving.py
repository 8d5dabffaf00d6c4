"""Names under which nodes save weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import pytest
from maskprompt.nodes.saving import free_path


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def test_names_count_up_and_nothing_is_overwritten(output: Path) -> None:
    first = free_path("controlnet/fox", "controlnet/mine")
    assert first.parent == output / "controlnet"
    assert first.suffix == ".safetensors"
    first.touch()
    assert free_path("controlnet/fox", "controlnet/mine") != first


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [
        ("", "names no file"), ("  ", "names no file"), ("controlnet/", "names no file"), ("a\0b", "NUL"), ("x" * 201, "longer than"),
        ("\u00e9" * 150, "longer than"), ("y" * 300 + "/z", "longer than"), (None, "must be a text, got NoneType"), (3, "got int"),
        ("../../out", "leads out"), ("/tmp/out", "leads out"),
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_in_words(output: Path, prefix: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"{problem}(.|\n)*such as controlnet/mine"):
        free_path(prefix, "controlnet/mine")
    assert not list(output.iterdir())


def test_a_long_name_is_written(output: Path) -> None:
    free_path("x" * 200, "controlnet/mine").touch()
    assert len(list(output.iterdir())) == 1
