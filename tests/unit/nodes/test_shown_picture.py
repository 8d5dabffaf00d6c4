"""When a node keeps the picture that it got for the frontend."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from maskprompt.nodes.shown_picture import KEY, received
from PIL import Image

PICTURE = torch.rand(2, 5, 7, 3)


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    return tmp_path


def kept(origin: str, kind: str, wires: list[Any], pages: bool = True) -> dict[str, Any]:
    """What node 3 hands on whose `image` comes from the node `origin` of that class, where the artist's graph has these wires."""
    prompt = {"3": {"inputs": {"image": [origin, 0]}}, origin: {"class_type": kind, "inputs": {"image": "cup.png"}}}
    workflow = {"workflow": {"links": [[number, *wire] for number, wire in enumerate(wires)]}}
    return received(PICTURE, SimpleNamespace(prompt=prompt, unique_id="3", extra_pnginfo=workflow if pages else None))


def test_a_picture_that_the_page_can_show_by_itself_is_not_kept(temp: Path) -> None:
    wire = [8, 0, 3, 1, "IMAGE"]
    assert kept("8", "LoadImage", [wire]) == {}
    assert kept("8", "LoadImage", [], pages=False) == {}, "nobody looks"
    assert not list(temp.iterdir())


@pytest.mark.parametrize(
    ("origin", "kind", "wires"),
    [
        ("8", "VAEDecode", [[8, 0, 3, 1, "IMAGE"]]),
        ("8", "LoadImage", [[8, 0, 5, 0, "IMAGE"], [6, 0, 3, 1, "IMAGE"]]),
        ("7:8", "LoadImage", [[7, 0, 3, 1, "IMAGE"]]),
        ("8", "LoadImageDataSetFromFolder", [[8, 0, 3, 1, "IMAGE"]]),
    ],
    ids=["painted", "through Get and Set", "out of a subgraph", "a loader of many"],
)
def test_every_other_is_kept(origin: str, kind: str, wires: list[Any], temp: Path) -> None:
    (told,) = kept(origin, kind, wires)[KEY]
    with Image.open(temp / told["filename"]) as picture:
        assert picture.size == (7, 5)


def test_the_picture_of_a_loader_whose_name_comes_through_a_wire_is_kept(temp: Path) -> None:
    prompt = {"3": {"inputs": {"image": ["8", 0]}}, "8": {"class_type": "LoadImage", "inputs": {"image": ["9", 0]}}}
    page = {"workflow": {"links": [[0, 8, 0, 3, 1, "IMAGE"]]}}
    assert received(PICTURE, SimpleNamespace(prompt=prompt, unique_id="3", extra_pnginfo=page))[KEY]


@pytest.mark.parametrize("workflow", ["{}", [1, 2], {"links": "none"}, None])
def test_what_a_service_sends_as_its_workflow_ends_no_run(workflow: Any, temp: Path) -> None:
    prompt = {"3": {"inputs": {"image": ["8", 0]}}, "8": {"class_type": "LoadImage", "inputs": {"image": "cup.png"}}}
    assert received(PICTURE, SimpleNamespace(prompt=prompt, unique_id="3", extra_pnginfo={"workflow": workflow}))[KEY]
