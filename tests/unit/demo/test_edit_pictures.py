"""What tiny-edit is given in place of the workflows' photographs: of their sizes, a thing at each click, and room for what is inserted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from demo import edit_pictures, photos, run, stand_ins, subject_pictures
from demo.server import Prompt, Server
from demo.tiny_edit import grounds, scenes, things, world

from ...support import tiny_edit_world

PAINTED = {name: prompt for name, prompt in run.workflows().items() if stand_ins.for_tiny_edit(prompt)}
LOADED = sorted({name for prompt in PAINTED.values() for name in run.photographs(prompt)})
SHOWN = [(name, node) for name, prompt in PAINTED.items() for node, entry in prompt.items() if entry["class_type"] == "MaskPromptSAMMask"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return tiny_edit_world.make(tmp_path_factory.mktemp("world"))


def masks_of(place: world.World, stem: str) -> np.ndarray:
    """Where the things of a picture are, bool [N, H, W], with the test's cut-outs, which are as high as they are wide."""
    (width, height), scene = edit_pictures.SCENES[stem]
    side = max(width, height)
    found = scenes.render(place, scene, side).masks > 0.5
    top, left = (side - height) // 2, (side - width) // 2
    return found[:, top : top + height, left : left + width]


def picture_of(prompt: Prompt, node: str) -> str:
    """The stem of the picture that a node's image comes from."""
    while prompt[node]["class_type"] != "LoadImage":
        node = prompt[node]["inputs"]["image"][0]
    return Path(prompt[node]["inputs"]["image"]).stem


def test_each_picture_of_the_workflows_has_one_of_its_size(place: world.World) -> None:
    assert sorted(Path(name).stem for name in LOADED) == sorted(edit_pictures.SCENES)
    for name in edit_pictures.SCENES:
        real = subject_pictures.load(name) if name in subject_pictures.names() else photos.load(name)
        assert edit_pictures.picture(place, name).shape == real.shape


def test_they_are_drawn_from_what_no_wallpaper_has() -> None:
    for _, scene in edit_pictures.SCENES.values():
        assert {thing.code for thing in scene.things} <= set(things.NAMED)
        assert scene.ground.name in grounds.TRAINING
        assert scene.ground.name not in grounds.BY_NAME


@pytest.mark.parametrize(("name", "node"), SHOWN)
def test_every_click_meets_the_first_thing(place: world.World, name: str, node: str) -> None:
    mask = masks_of(place, picture_of(PAINTED[name], node))[0]
    for point in PAINTED[name][node]["inputs"]["positive_coords"].split(";"):
        x, y = (int(part) for part in point.split(","))
        assert mask[y, x]


def test_the_box_of_the_inserted_product_is_free(place: world.World) -> None:
    name = next(name for name in PAINTED if "Insert my product" in name)
    box = next(entry["inputs"] for entry in PAINTED[name].values() if entry["class_type"] == "MaskPromptBoxMask")
    across, down = (slice(box[at], box[at] + box[size]) for at, size in (("x", "width"), ("y", "height")))
    piece = masks_of(place, picture_of(PAINTED[name], "2"))[:, down, across]
    assert piece.shape[1:] == (box["height"], box["width"])
    assert not piece.any()


def test_they_are_put_where_the_server_looks(place: world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_pictures.world, "prepare", lambda photographs: tmp_path)
    monkeypatch.setattr(edit_pictures.world, "load", lambda folder: place)
    edit_pictures.add(tmp_path, LOADED)
    for name in LOADED:
        with Image.open(tmp_path / name) as picture:
            assert (np.asarray(picture) == edit_pictures.picture(place, Path(name).stem)).all()


def test_a_workflow_without_pictures_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_pictures.world, "prepare", lambda photographs: pytest.fail("nothing is needed"))
    edit_pictures.add(tmp_path, [])


def test_only_the_transformers_get_them(place: world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow of a checkpoint has the photograph of that name, one of a transformer the thing of tiny-edit's world."""
    monkeypatch.setattr(edit_pictures.world, "prepare", lambda photographs: tmp_path)
    monkeypatch.setattr(edit_pictures.world, "load", lambda folder: place)
    server = SimpleNamespace(input=tmp_path)
    for number, expected in (("1", photos.load("coffee")), ("4", edit_pictures.picture(place, "coffee"))):
        run.add_pictures(cast("Server", server), run.workflow(number))
        with Image.open(tmp_path / "coffee.png") as picture:
            assert (np.asarray(picture.convert("RGB")) == expected).all()
