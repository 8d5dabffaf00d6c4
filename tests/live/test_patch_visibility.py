"""Hide in Reference in a real server, with a CLIP vision file that the stock loader takes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from demo import photos, run, stand_ins
from demo.server import Prompt, Server, WorkflowError

FILE = "vit-l-random.safetensors"


def node(name: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": name, "inputs": inputs}


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> Iterator[None]:
    """A ViT-L/14 (the smallest that the stock loader knows): all 24 layers, the first and the last two with random weights, others zero."""
    import comfy.clip_vision

    generator = torch.Generator().manual_seed(0)
    config = Path(comfy.clip_vision.__file__).parent / "clip_vision_config_vitl.json"
    weights = {}
    for name, value in comfy.clip_vision.ClipVisionModel(json.loads(config.read_text("utf-8"))).get_sd().items():
        weights[name] = torch.full(value.shape, float("norm" in name and name.endswith("weight")), dtype=torch.float16)
        if "layers." not in name or any(f"layers.{layer}." in name for layer in (0, 22, 23)):
            weights[name] += torch.randn(value.shape, generator=generator).half() * 0.02
    run.add_photographs(server, ["coffee.png"])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        save_file(weights, Path(folder) / FILE)
        server.add_model("clip_vision", Path(folder) / FILE)
        yield


def seen(mask: dict[str, Any], **changes: Any) -> Prompt:
    """The photograph (600 x 400) through Hide in Reference; preview and visible patches are saved."""
    inputs = {"threshold": 0.5, "mode": "hide", "fit": "crop", **changes}
    return {
        "photo": node("LoadImage", image="coffee.png"),
        "clip_vision": node("CLIPVisionLoader", clip_name=FILE),
        "mask": mask,
        "seen": node("MaskPromptPatchVisibility", clip_vision=["clip_vision", 0], image=["photo", 0], mask=["mask", 0], **inputs),
        "preview": node("SaveImage", images=["seen", 1], filename_prefix="preview"),
        "patches": node("MaskToImage", mask=["seen", 2]),
        "visible": node("SaveImage", images=["patches", 0], filename_prefix="visible"),
    }


def box(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return node("MaskPromptBoxMask", image=["photo", 0], x=x, y=y, width=width, height=height)


def saved(server: Server, prompt: Prompt) -> dict[str, np.ndarray]:
    outputs = server.run(prompt).outputs
    return {name: np.asarray(Image.open(server.file_of(result["images"][0])).convert("RGB")) for name, result in outputs.items()}


def painted(conditioned: bool) -> Prompt:
    """Two steps of the tiny model, its prompt through unCLIP Conditioning or not."""
    checkpoint = node("CheckpointLoaderSimple", ckpt_name=stand_ins.TINY_MODEL.name)
    sampler = {"steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
    text = {"conditioning": ["text", 0], "clip_vision_output": ["seen", 0], "strength": 1.0, "noise_augmentation": 0.0}
    return {
        **(seen(box(100, 0, 100, 400)) if conditioned else {}),
        **({"image": node("unCLIPConditioning", **text)} if conditioned else {}),
        "model": checkpoint,
        "text": node("CLIPTextEncode", clip=["model", 1], text="a red ball on grass"),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampler": node(
            "KSampler", model=["model", 0], positive=["image" if conditioned else "text", 0], negative=["text", 0],
            latent_image=["latent", 0], **sampler,
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
        "painted": node("SaveImage", images=["decoded", 0], filename_prefix="painted"),
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["hide", "paper"])
def test_four_columns_of_patches_are_seen(server: Server, mode: str) -> None:
    """The centre crop shows columns 100 to 500 of the photograph as 16 patches of 25; the box covers the first four."""
    pictures = saved(server, seen(box(100, 0, 100, 400), mode=mode))
    visible = np.zeros((224, 224), bool)
    visible[:, :56] = True
    assert np.array_equal(pictures["visible"][..., 0] == 255, visible)
    assert (pictures["preview"][:, 56:] == 127).all()
    square = Image.fromarray(photos.load("coffee")).crop((100, 0, 500, 400)).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(pictures["preview"][:, :50].astype(int) - np.asarray(square)[:, :50]).mean() < 2


def test_letterbox_keeps_what_the_crop_cuts_off(server: Server) -> None:
    """150 pixels high in 224: bars of 37, so patches 3 to 12 hold picture in more than half of their rows; the box is its left end."""
    mask = box(0, 0, 150, 400)
    pictures = saved(server, seen(mask, fit="letterbox"))
    visible = np.zeros((224, 224), bool)
    visible[42:182, :56] = True
    assert np.array_equal(pictures["visible"][..., 0] == 255, visible)
    assert saved(server, seen(mask))["visible"][..., 0].any(0).sum() == 28


def test_an_empty_mask_is_no_error(server: Server) -> None:
    pictures = saved(server, seen(node("SolidMask", value=0.0, width=600, height=400)))
    assert not pictures["visible"].any()
    assert (pictures["preview"] == 127).all()
    assert "its mask is empty" in server.log_tail(30)


def test_a_stock_node_takes_the_output(server: Server) -> None:
    """A model that is no unCLIP one ignores the image, so the picture is the one without."""
    assert np.array_equal(saved(server, painted(True))["painted"], saved(server, painted(False))["painted"])


def test_bad_input_is_refused_in_plain_words_and_the_server_serves_on(server: Server) -> None:
    batch = seen(node("ImageToMask", image=["many", 0], channel="red"))
    batch["one"] = node("MaskToImage", mask=["box", 0])
    batch["box"] = box(100, 0, 100, 400)
    batch["many"] = node("RepeatImageBatch", image=["one", 0], amount=2)
    batch["photos"] = node("RepeatImageBatch", image=["photo", 0], amount=3)
    batch["seen"]["inputs"]["image"] = ["photos", 0]
    refused = {
        r"the mask is 100x300 but the image is 600x400: their shapes differ": seen(node("SolidMask", value=1.0, width=100, height=300)),
        r"there are 2 masks for 3 images": batch,
    }
    for message, prompt in refused.items():
        with pytest.raises(WorkflowError, match=message):
            server.run(prompt)
    assert saved(server, seen(box(100, 0, 100, 400)))["visible"].any()
