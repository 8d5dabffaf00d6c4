"""The workflows for transformers, before a real server: all of them are valid, and as the demo changes them they run on tiny-edit, here of
random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo import photos, run, stand_ins
from demo.server import Prompt, Server

from ..support import tiny_edit_world

INSERT = "10 Insert my product, FLUX 2 klein"
BACKGROUND = "12 New background, product untouched, FLUX 2 klein"
TWO = "13 Two references, two places, FLUX 2 klein"
REPLACE = "04 Replace what is in the mask, FLUX 2 klein"


def has(prompt: Prompt, *classes: str) -> bool:
    return set(classes) <= {node["class_type"] for node in prompt.values()}


WORKFLOWS = {name: prompt for name, prompt in run.workflows().items() if stand_ins.of_transformer(prompt)}
KLEIN = sorted(name for name, prompt in WORKFLOWS.items() if has(prompt, "EmptyFlux2LatentImage", "MaskPromptReferenceRegion"))
PAINTED = sorted(name for name, prompt in WORKFLOWS.items() if stand_ins.for_tiny_edit(prompt))


@pytest.fixture(scope="module", autouse=True)
def models(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_edit_world.serve(server, tmp_path_factory.mktemp("tiny-edit"))
    for prompt in WORKFLOWS.values():
        run.add_photographs(server, run.photographs(prompt))


def test_there_is_one_for_each_task() -> None:
    assert KLEIN == [REPLACE, INSERT, BACKGROUND, TWO]
    assert len(WORKFLOWS) >= 6
    assert len(PAINTED) == len(WORKFLOWS) - 1


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


def quick(prompt: Prompt) -> Prompt:
    """A workflow as the demo changes it, in two steps."""
    copy = stand_ins.changed(prompt)
    for node in copy.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    return copy


@pytest.mark.parametrize("name", PAINTED)
def test_a_workflow_runs_and_keeps_what_it_must(server: Server, name: str) -> None:
    prompt = quick(WORKFLOWS[name])
    outputs = server.run(prompt).outputs
    saved = next(node for node, entry in prompt.items() if entry["class_type"] == "SaveImage")
    with Image.open(server.file_of(outputs[saved]["images"][0])) as picture:
        found = np.asarray(picture.convert("RGB"))
    if not has(prompt, "MaskPromptPasteBack"):
        assert found.shape == ((192, 256, 3) if name == TWO else (256, 256, 3))
        return
    before = photos.load("coffee")
    assert found.shape == before.shape
    kept = (found == before).all(-1)
    # The table's corner is outside of what is inserted and replaced; the cup's middle is the product that stays.
    corner, cup = kept[380:, :40], kept[80:140, 260:330]
    painted = {INSERT: kept[240:290, 520:570], BACKGROUND: corner}.get(name, cup)
    stays = cup if name == BACKGROUND else corner
    assert stays.all()
    assert painted.mean() < 0.1
