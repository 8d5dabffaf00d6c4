"""What Train Poseable Subjects leaves on disk is all that it learned: a server that never trained paints the same from the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demo import run
from demo.server import Prompt, Result, Server

from ..support.graphs import CHECKPOINT, node, solid
from ..support.live_training import latent

pytestmark = pytest.mark.thorough

NAME = "moved"
SUBJECTS = f"embedding:{NAME}-ball and embedding:{NAME}-fish"
FILES = {f"embeddings/{NAME}-ball", f"embeddings/{NAME}-fish", f"loras/{NAME}", f"mcgm/{NAME}"}
SIZE = 64
PICTURE = "ball-and-fish.png"
POSES = ("place-ball.png", "place-fish.png")
SETTINGS: dict[str, Any] = {
    "words": "ball, fish", "name": NAME, "steps": 4, "weight_steps": 2, "method": "lora", "learning_rate": 0.0002, "rank": 4,
    "batch_size": 1, "size": SIZE, "seed": 3, "preview_every": 0, "gradient_checkpointing": False, "variations": 16,
}  # fmt: skip
"""Seconds; at a rate at which a few steps change the picture and leave it one."""
SAME = 1e-3
SEEN = 1e-2
"""The largest difference of two latents that are the same picture, and the smallest that is a change of it."""
LOAD = node("MaskPromptLoadMCGM", model=["checkpoint", 0], clip=["checkpoint", 1], mcgm_name=f"{NAME}.safetensors", lora_strength=1.0)
Painted = tuple[torch.Tensor, np.ndarray]
"""The latent, and the picture as it was saved."""


def painting(learned: dict[str, Any], **others: dict[str, Any]) -> Prompt:
    """Paints both subjects, each posed by its mask, with what was trained or loaded; `others` replace nodes by their names."""
    sampler = {"steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
    graph: Prompt = {
        "checkpoint": CHECKPOINT,
        "learned": learned,
        "prompt": node("StringReplace", string="a photo of SUBJECTS on grass", find="SUBJECTS", replace=["learned", 3]),
        "words": node("PreviewAny", source=["prompt", 0]),
        "positive": node("CLIPTextEncode", clip=["learned", 1], text=["prompt", 0]),
        "negative": node("CLIPTextEncode", clip=["learned", 1], text=""),
        "first": node("LoadImageMask", image=POSES[0], channel="red"),
        "second": node("LoadImageMask", image=POSES[1], channel="red"),
        "masks": node("BatchMasksNode", **{"masks.mask0": ["first", 0], "masks.mask1": ["second", 0]}),
        "posed": node(
            "MaskPromptEncodeMasks", positive=["positive", 0], negative=["negative", 0], mask_encoder=["learned", 2], masks=["masks", 0],
            prompt=["prompt", 0], strength=1.0,
        ),
        "empty": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        "sampler": node(
            "KSampler", model=["learned", 0], positive=["posed", 0], negative=["posed", 1], latent_image=["empty", 0], **sampler
        ),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="test"),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "picture": node("SaveImage", images=["decoded", 0], filename_prefix="test"),
    }  # fmt: skip
    return {**graph, **others}


def training() -> Prompt:
    """Train Poseable Subjects for a few small steps, and the painting with what it hands on."""
    train = node(
        "MaskPromptTrainMCGM", model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2], image=["scene", 0],
        masks=["marked", 0],
    )  # fmt: skip
    train["inputs"] |= SETTINGS
    return painting(
        train,
        scene=node("LoadImage", image=PICTURE),
        ball=node("MaskPromptBoxMask", image=["scene", 0], x=15, y=60, width=245, height=245),
        fish=node("MaskPromptBoxMask", image=["scene", 0], x=235, y=240, width=265, height=175),
        marked=node("BatchMasksNode", **{"masks.mask0": ["ball", 0], "masks.mask1": ["fish", 0]}),
    )


def shown(server: Server, result: Result) -> Painted:
    (image,) = result.outputs["picture"]["images"]
    return latent(server, result), np.asarray(Image.open(server.file_of(image)).convert("RGB")).astype(int)


def paint(server: Server, prompt: Prompt) -> Painted:
    result = server.run(prompt)
    assert "sampler" in result.executed
    assert result.outputs["words"]["text"] == [f"a photo of {SUBJECTS} on grass"]
    return shown(server, result)


def apart(one: Painted, other: Painted) -> float:
    """The largest difference of the latents."""
    return float((one[0] - other[0]).abs().max())


def models(server: Server) -> dict[str, Path]:
    """The files in the folders that MCGM writes into, by folder and name without the suffix."""
    folders = [server.folder / "models" / kind for kind in ("embeddings", "loras", "mcgm")]
    return {f"{folder.name}/{file.stem}": file for folder in folders for file in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def trained(server: Server) -> tuple[Painted, dict[str, Path]]:
    """The painting with what the training handed on, and the files that it wrote."""
    run.add_photographs(server, [PICTURE, *POSES])
    before = models(server)
    painted = paint(server, training())
    return painted, {name: file for name, file in models(server).items() if name not in before}


@pytest.fixture(scope="module")
def loaded(server: Server, trained: tuple[Painted, dict[str, Path]]) -> Painted:
    """The painting from the files, in the server that trained."""
    return paint(server, painting(LOAD))


@pytest.fixture(scope="module")
def other(trained: tuple[Painted, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A new server, to which the files of the training were brought and nothing else."""
    with run.stage(tmp_path_factory.mktemp("other")) as started:
        run.add_photographs(started, POSES)
        for name, file in trained[1].items():
            started.add_model(name.partition("/")[0], file)
        yield started


@pytest.fixture(scope="module")
def again(other: Server) -> Painted:
    """The same painting in the new server."""
    return paint(other, painting(LOAD))


def test_the_files_paint_the_same_in_a_new_server(
    trained: tuple[Painted, dict[str, Path]], loaded: Painted, again: Painted, other: Server
) -> None:
    handed_on, files = trained
    assert files.keys() == FILES
    for painted in (loaded, again):
        assert apart(painted, handed_on) < SAME
        assert np.abs(painted[1] - handed_on[1]).max() <= 1  # a level of 255, where rounding falls the other way
    log = other.log_tail(1000)
    for complaint in ("lora key not loaded", "is not the one that was trained", "does not exist, ignoring"):
        assert complaint not in log


@pytest.mark.parametrize(
    "others",
    [
        {"learned": {**LOAD, "inputs": {**LOAD["inputs"], "lora_strength": 0.0}}},
        {"first": solid(0.0, 512, 512), "second": solid(0.0, 512, 512)},
        {"second": solid(0.0, 512, 512)},
        {"positive": node("CLIPTextEncode", clip=["learned", 1], text="a photo of ball and fish on grass")},
    ],
    ids=["without the LoRA", "blank masks", "one mask blank", "words for the handles"],
)
def test_each_file_is_part_of_the_picture(other: Server, again: Painted, others: Prompt) -> None:
    """Else the other test could pass without it."""
    assert apart(paint(other, {**painting(LOAD), **others}), again) > SEEN


def test_the_lora_is_an_ordinary_one(other: Server, again: Painted) -> None:
    """Through the stock loader it paints the same to the bit; Load Poseable Subjects then gives the mask encoder alone."""
    lora = node(
        "LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name=f"{NAME}.safetensors", strength_model=1.0,
        strength_clip=1.0,
    )  # fmt: skip
    prompt = painting({**LOAD, "inputs": {**LOAD["inputs"], "lora_strength": 0.0}}, lora=lora)
    prompt["sampler"]["inputs"]["model"] = ["lora", 0]
    for text in ("positive", "negative"):
        prompt[text]["inputs"]["clip"] = ["lora", 1]
    assert torch.equal(paint(other, prompt)[0], again[0])
