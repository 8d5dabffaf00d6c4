"""What tiny-edit is given in place of the workflows' photographs: of their sizes, a thing at each click, and room for what is inserted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from maskprompt.models.sam import model as sam
from maskprompt.nodes.segment import MaskPromptSAMMask
from PIL import Image

from demo import edit_pictures, photos, run, stand_ins, subject_pictures
from demo.server import Prompt, Server
from demo.tiny_edit import sentences

from ...support.sam import mobile as mobile

PAINTED = {name: prompt for name, prompt in run.workflows().items() if stand_ins.for_tiny_edit(prompt)}
LOADED = sorted({Path(name).stem for prompt in PAINTED.values() for name in run.photographs(prompt)})
SHOWN = [(name, node) for name, prompt in PAINTED.items() for node, entry in prompt.items() if entry["class_type"] == "MaskPromptSAMMask"]


def picture_of(prompt: Prompt, node: str) -> str:
    """The stem of the picture that a node's image comes from."""
    while prompt[node]["class_type"] != "LoadImage":
        node = prompt[node]["inputs"]["image"][0]
    return Path(prompt[node]["inputs"]["image"]).stem


def clicked(mobile: sam.LoadedSam, name: str, node: str) -> np.ndarray:
    """The thing at a workflow's clicks, bool [H, W]."""
    pixels = edit_pictures.load(picture_of(PAINTED[name], node))
    asked = {field: value for field, value in PAINTED[name][node]["inputs"].items() if not isinstance(value, list)}
    found = MaskPromptSAMMask.execute(sam=mobile, image=torch.from_numpy(pixels).float()[None] / 255, **asked)
    return np.asarray(found.args[0][0]) > 0.5


def test_each_picture_of_the_workflows_has_one_of_its_size() -> None:
    assert sorted(edit_pictures.PICTURES) == LOADED
    for name, painted in edit_pictures.PICTURES.items():
        real = subject_pictures.load(name) if name in subject_pictures.names() else photos.load(name)
        assert edit_pictures.load(name).shape == real.shape
        assert painted.stands_for == real.shape[1::-1]
        assert set(painted.text.split()) <= set(sentences.vocabulary())


@pytest.mark.parametrize(("name", "node"), SHOWN)
def test_every_click_meets_a_thing(mobile: sam.LoadedSam, name: str, node: str) -> None:
    """Neither a speck nor the ground: a twentieth to two thirds of the picture, and nothing of its upper corners."""
    found = clicked(mobile, name, node)
    assert 0.05 < found.mean() < 2 / 3
    assert not found[:20, :20].any()
    assert not found[:20, -20:].any()


def test_the_box_of_the_inserted_product_is_free(mobile: sam.LoadedSam) -> None:
    name = next(name for name in PAINTED if "Insert my product" in name)
    box = next(entry["inputs"] for entry in PAINTED[name].values() if entry["class_type"] == "MaskPromptBoxMask")
    across, down = (slice(box[at], box[at] + box[size]) for at, size in (("x", "width"), ("y", "height")))
    other, node = next((other, node) for other, node in SHOWN if picture_of(PAINTED[other], node) == "coffee")
    piece = clicked(mobile, other, node)[down, across]
    assert piece.shape == (box["height"], box["width"])
    assert not piece.any()


def test_what_is_kept_of_a_painted_picture() -> None:
    """The lower right quarter, by hand; at its edges the filter sees a little of what lies beyond."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[32:, 32:] = 200
    painted = edit_pictures.Painted("a fox", 1, (64, 64), (0.5, 0.5, 1.0, 1.0), (30, 20))
    found = np.asarray(edit_pictures.fitted(Image.fromarray(pixels), painted))
    assert found.shape == (20, 30, 3)
    assert (found[6:, 6:] == 200).all()
    assert (found > 50).all()


def test_only_the_transformers_get_them(tmp_path: Path) -> None:
    """A workflow of a checkpoint has the photograph of that name, one of a transformer what tiny-edit painted."""
    server = SimpleNamespace(input=tmp_path)
    for number, expected in (("1", photos.load("coffee")), ("4", edit_pictures.load("coffee"))):
        run.add_pictures(cast("Server", server), run.workflow(number))
        with Image.open(tmp_path / "coffee.png") as picture:
            assert (np.asarray(picture.convert("RGB")) == expected).all()
