"""Score Pictures and Score Against in running ComfyUI: the bundled workflow, known values, and what is told of wrong inputs."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from demo import run, stand_ins
from demo.server import Prompt, Server, WorkflowError

from ..support.graphs import node
from ..support.score_models import alexnet_file, clip_folder, dino_folder


def mean(table: str, score: str) -> float:
    found = re.search(rf"\| {score} \| (\S+) ", table)
    assert found is not None, table
    return float(found[1])


@pytest.fixture(scope="module")
def flat(server: Server) -> tuple[str, str]:
    """Two grey pictures that differ by 51 of 255 on their left half: a PSNR of 20 log10(5) there."""
    names = ("flat-one.png", "flat-two.png")
    one = np.full((48, 64, 3), 100, np.uint8)
    other = one.copy()
    other[:, :32] += 51
    for name, pixels in zip(names, (one, other), strict=True):
        Image.fromarray(pixels).save(server.input / name)
    return names


def test_the_bundled_workflow_scores_what_it_painted(server: Server) -> None:
    prompt = stand_ins.changed(run.workflow("19 Measure which picture is better"))
    run.add_photographs(server, run.photographs(prompt))
    next(entry for entry in prompt.values() if entry["class_type"] == "KSampler")["inputs"]["steps"] = 4
    outputs = server.run(prompt).outputs
    (pictures,) = (outputs[name]["text"][0] for name, entry in prompt.items() if entry["class_type"] == "MaskPromptScorePictures")
    (against,) = (outputs[name]["text"][0] for name, entry in prompt.items() if entry["class_type"] == "MaskPromptScoreAgainst")
    assert -1 <= mean(pictures, "CLIP-I") <= 1
    assert stand_ins.TINY_CLIP_VISION.name in pictures
    assert mean(against, "SSIM") > 0.9
    assert mean(against, "PSNR") > 30


def test_known_values_inside_and_outside_a_mask(server: Server, flat: tuple[str, str]) -> None:
    graph: Prompt = {
        "one": node("LoadImage", image=flat[0]),
        "two": node("LoadImage", image=flat[1]),
        "left": node("MaskPromptBoxMask", image=["one", 0], x=0, y=0, width=32, height=48),
        "right": node("InvertMask", mask=["left", 0]),
    }
    for name, mask in (("inside", "left"), ("outside", "right")):
        graph[name] = node(
            "MaskPromptScoreAgainst", images=["two", 0], references=["one", 0], masks=[mask, 0], lpips_name="none", inception_name="none"
        )
    outputs = server.run(graph).outputs
    assert mean(outputs["inside"]["text"][0], "PSNR") == pytest.approx(20 * np.log10(5), abs=1e-3)
    assert mean(outputs["outside"]["text"][0], "PSNR") == np.inf


def test_folders_of_clip_and_dino_and_the_file_of_lpips(
    server: Server, flat: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("scores")  # the server outlives the test, and asks its folders for changes
    server.add_model("clip_vision", clip_folder(folder / "b32"))
    server.add_model("dino", dino_folder(folder / "s16"))
    server.add_model("lpips", alexnet_file(folder / "alex.pth"))
    info = server.object_info()
    assert "b32" in info["MaskPromptScorePictures"]["input"]["required"]["clip_name"][1]["options"]
    graph: Prompt = {
        "one": node("LoadImage", image=flat[0]),
        "large": node("ImageScale", image=["one", 0], width=96, height=72, upscale_method="nearest-exact", crop="disabled"),
        "score": node(
            "MaskPromptScorePictures", images=["one", 0], references=["one", 0], prompt="a grey wall", clip_name="b32", dino_name="s16"
        ),
        "against": node(
            "MaskPromptScoreAgainst", images=["large", 0], references=["large", 0], lpips_name="alex.pth", inception_name="none"
        ),
    }
    outputs = server.run(graph).outputs
    table = outputs["score"]["text"][0]
    assert mean(table, "CLIP-I") == pytest.approx(1, abs=1e-4)
    assert mean(table, "DINO") == pytest.approx(1, abs=1e-4)
    assert -1 <= mean(table, "CLIP-T") <= 1
    assert mean(outputs["against"]["text"][0], "LPIPS") == 0


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("MaskPromptScorePictures", {"images": ["one", 0], "clip_name": "none", "dino_name": "none"}, "no model is chosen"),
        (
            "MaskPromptScorePictures",
            {"images": ["one", 0], "clip_name": stand_ins.TINY_CLIP_VISION.name, "dino_name": "none", "prompt": "a wall"},
            "CLIP-T needs CLIP's folder with its words",
        ),
        (
            "MaskPromptScoreAgainst",
            {"images": ["one", 0], "references": ["small", 0], "lpips_name": "none", "inception_name": "none"},
            "64 x 48 and 20 x 20 pixels",
        ),
    ],
)
def test_wrong_inputs_are_told(server: Server, flat: tuple[str, str], name: str, inputs: dict[str, object], words: str) -> None:
    graph: Prompt = {
        "one": node("LoadImage", image=flat[0]),
        "small": node("EmptyImage", width=20, height=20, batch_size=1, color=0),
        "score": node(name, **inputs),
    }
    with pytest.raises(WorkflowError, match=words):
        server.run(graph)
