"""The workflows for edit models, before a real server: all of them are valid, and those for FLUX.2 run on tiny-edit of random weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo import photos, run
from demo.server import Prompt, Server
from demo.tiny_edit import files

from ..support import tiny_edit_world

WORKFLOWS = {name: prompt for name, prompt in run.workflows().items() if name not in run.paintable(run.workflows())}
INSERT = "10 Insert my product, FLUX 2 klein"
BACKGROUND = "12 New background, product untouched, FLUX 2 klein"
TWO = "13 Two references, two places, FLUX 2 klein"
REPLACE = "04 Replace what is in the mask, FLUX 2 klein"


def has(prompt: Prompt, *classes: str) -> bool:
    return set(classes) <= {node["class_type"] for node in prompt.values()}


KLEIN = sorted(name for name, prompt in WORKFLOWS.items() if has(prompt, "EmptyFlux2LatentImage", "MaskPromptReferenceRegion"))
SMALL = {"unet_name": files.TRANSFORMER, "clip_name": files.TEXT, "vae_name": files.AUTOENCODER, "sam_name": "mobile_sam.pt"}
SIZES = ("output_width", "output_height", "image_width", "image_height", "width", "height", "x", "y")


@pytest.fixture(scope="module", autouse=True)
def models(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_edit_world.serve(server, tmp_path_factory.mktemp("tiny-edit"))
    for prompt in WORKFLOWS.values():
        run.add_photographs(server, run.photographs(prompt))


def test_there_is_one_for_each_task() -> None:
    assert KLEIN == [REPLACE, INSERT, BACKGROUND, TWO]
    assert len(WORKFLOWS) >= 6


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_a_workflow_is_what_the_server_knows(server: Server, name: str) -> None:
    """Every class, input, choice and link, but for the files of models."""
    known: dict[str, Any] = server.get_json("/object_info")
    prompt = WORKFLOWS[name]
    for node in prompt.values():
        asked = known[node["class_type"]]["input"]
        declared = {**asked.get("required", {}), **asked.get("optional", {})}
        assert set(asked.get("required", {})) <= node["inputs"].keys() <= set(declared), node["_meta"]["title"]
        for field, value in node["inputs"].items():
            kind = declared[field][0]
            if isinstance(value, list):
                origin, output = value
                assert known[prompt[origin]["class_type"]]["output"][output] == kind, (node["_meta"]["title"], field)
            elif isinstance(kind, list) or kind == "COMBO":
                options = kind if isinstance(kind, list) else declared[field][1]["options"]
                assert value in options or field.endswith(("_name", "_name1", "_name2")) or field == "image", (field, value)


def small(prompt: Prompt) -> Prompt:
    """A workflow with tiny-edit's files, painting a quarter of its size along each side."""
    copy: Prompt = json.loads(json.dumps(prompt))
    for node in copy.values():
        inputs = node["inputs"]
        inputs |= {field: SMALL[field] for field in inputs.keys() & SMALL.keys()}
        on_a_picture = node["class_type"] == "MaskPromptBoxMask" and "image" in inputs
        if not on_a_picture:
            inputs |= {field: inputs[field] // 4 for field in SIZES if isinstance(inputs.get(field), int)}
        if "megapixels" in inputs:
            inputs["megapixels"] = 0.05
    return copy


@pytest.mark.parametrize("name", KLEIN)
def test_a_workflow_runs_and_keeps_what_it_must(server: Server, name: str) -> None:
    prompt = small(WORKFLOWS[name])
    outputs = server.run(prompt).outputs
    saved = next(node for node, entry in prompt.items() if entry["class_type"] == "SaveImage")
    with Image.open(server.file_of(outputs[saved]["images"][0])) as picture:
        found = np.asarray(picture.convert("RGB"))
    if name == TWO:
        assert found.shape == (96, 128, 3)  # of 128 x 96: FLUX.2's latents are 16 pixels wide, tiny-edit's 8
        return
    before = photos.load("coffee")
    assert found.shape == before.shape
    kept = (found == before).all(-1)
    # The table's corner is outside of what is inserted and replaced; the cup's middle is the product that stays.
    corner, cup = kept[380:, :40], kept[80:140, 260:330]
    painted = {INSERT: kept[240:290, 520:570], BACKGROUND: corner, REPLACE: cup}[name]
    stays = cup if name == BACKGROUND else corner
    assert stays.all()
    assert painted.mean() < 0.1
