"""Load Image Prompt Adapter, Image Prompt Region and Depth Hint through a real server, with stock CLIP vision nodes and the tiny model."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from demo import run, tiny_model
from demo.server import Prompt, Server, WorkflowError

from ..support import adapters
from ..support.graphs import CHECKPOINT, node, solid
from ..support.live_models import VIDEO_MODEL, Evil, video_model

PHOTO = node("LoadImage", image="coffee.png")
SAMPLER: dict[str, Any] = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 1}
POOLED = 768
PATCHES = 1024
"""ViT-L's widths: the smallest CLIP vision model that ComfyUI's loader knows."""


def painted(file: str = "base.bin", region: dict[str, Any] | None = None, batch: int = 1, **inputs: Any) -> Prompt:
    """Three steps of the tiny model at 128 px with an image prompt."""
    choices: dict[str, Any] = {"weight": 1.0, "mode": "auto", **inputs}
    prompt: Prompt = {
        "model": CHECKPOINT,
        "photo": PHOTO,
        "vision": node("CLIPVisionLoader", clip_name="vit-l.safetensors"),
        "encoded": node("CLIPVisionEncode", clip_vision=["vision", 0], image=["photo", 0], crop="center"),
        "adapter": node("MaskPromptLoadMECA", adapter_name=file),
        "applied": node("MaskPromptApplyMECA", model=["model", 0], adapter=["adapter", 0], clip_vision_output=["encoded", 0], **choices),
        "text": node("CLIPTextEncode", clip=["model", 1], text="a red ball on grass"),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=batch),
        "sampler": node(
            "KSampler", model=["applied", 0], positive=["text", 0], negative=["text", 0], latent_image=["latent", 0], **SAMPLER
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
        "save": node("SaveImage", images=["decoded", 0], filename_prefix="meca"),
    }
    if region is not None:
        prompt["region"] = region
        prompt["applied"]["inputs"]["region"] = ["region", 0]
    return prompt


def half() -> dict[str, Any]:
    """The left half of 128 x 128 pixels."""
    return node("MaskPromptBoxMask", image=["square", 0], x=0, y=0, width=64, height=128)


def with_half(prompt: Prompt) -> Prompt:
    prompt["square"] = node("EmptyImage", width=128, height=128, batch_size=1, color=0)
    prompt["region"] = half()
    prompt["applied"]["inputs"]["region"] = ["region", 0]
    return prompt


def without(prompt: Prompt) -> Prompt:
    """The same with the node bypassed."""
    plain: Prompt = json.loads(json.dumps(prompt))
    plain["sampler"]["inputs"]["model"] = ["model", 0]
    return plain


def saved(server: Server, prompt: Prompt) -> list[np.ndarray]:
    return [np.asarray(Image.open(server.file_of(image))) for image in server.run(prompt).outputs["save"]["images"]]


def vit_l() -> dict[str, torch.Tensor]:
    """ViT-L's weights in half precision: small random numbers, the same few over and over."""
    import comfy.clip_vision
    from comfy.clip_model import CLIPVisionModelProjection

    config = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_vitl.json").read_text("utf-8"))
    with torch.device("meta"):
        model = CLIPVisionModelProjection(config, torch.float16, None, torch.nn)
    numbers = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.03).half()
    found = {}
    for name, weight in model.state_dict().items():
        repeated = numbers.repeat(-(-weight.numel() // len(numbers)))[: weight.numel()]
        found[name] = repeated.view(weight.shape).clone() + ("norm" in name and name.endswith("weight"))
    return found


@pytest.fixture(scope="module", autouse=True)
def model_files(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters for the tiny model and ViT-L, broken files, and ViT-L itself; returns the folder that the pickle would make."""
    from maskprompt.attention import ip_adapter_layers

    folder = tmp_path_factory.mktemp("adapters")
    marker = tmp_path_factory.mktemp("marker") / "made-by-evil"
    tiny_model.comfyui_on_path()
    widths, context = ip_adapter_layers.widths(tiny_model.build_unet())
    torch.save(adapters.nested(adapters.base(widths, context, POOLED)), folder / "base.bin")
    save_file(adapters.plus(widths, context, PATCHES), folder / "plus.safetensors")
    save_file(adapters.base({number: 320 for number in range(1, 33, 2)}, 768, POOLED), folder / "sd15.safetensors")
    save_file(adapters.base(widths, context, 1024), folder / "vit-h.safetensors")
    face = {"image_proj.proj.0.weight": torch.zeros(8, 512), "image_proj.norm.weight": torch.zeros(8)}
    lora = {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(2, 2)}
    save_file({**face, **lora, **adapters.layer_weights(widths, context)}, folder / "faceid.safetensors")
    (folder / "cut-off.bin").write_bytes((folder / "base.bin").read_bytes()[:-3000])
    (folder / "evil.bin").write_bytes(pickle.dumps({"image_proj": Evil(marker)}, protocol=2))
    for file in folder.iterdir():
        server.add_model("ipadapter", file)
    save_file(vit_l(), folder / "vit-l.safetensors")
    server.add_model("clip_vision", folder / "vit-l.safetensors")
    save_file(video_model(), folder / "video.safetensors")
    server.add_model("diffusion_models", folder / "video.safetensors")
    run.add_photographs(server, ["coffee.png"])
    return marker


@pytest.mark.thorough
@pytest.mark.parametrize("file", ["base.bin", "plus.safetensors"])
def test_it_paints_and_five_runs_are_one(server: Server, file: str) -> None:
    prompt = with_half(painted(file))
    if file.startswith("plus"):
        prompt["applied"]["inputs"]["clip_vision"] = ["vision", 0]
    (plain,) = saved(server, without(prompt))
    pictures = []
    for _ in range(5):
        server.post("/free", {"unload_models": True, "free_memory": True})
        pictures += saved(server, prompt)
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])
    assert not np.array_equal(pictures[0], plain)
    assert np.array_equal(saved(server, without(prompt))[0], plain)


def test_no_weight_and_an_empty_region_are_no_adapter(server: Server) -> None:
    (plain,) = saved(server, without(painted()))
    assert np.array_equal(saved(server, painted(weight=0.0))[0], plain)
    assert np.array_equal(saved(server, painted(region=solid(0.0, 128, 128)))[0], plain)
    assert "regions are empty" in server.log_tail(60)


def test_each_mode_paints_its_own_and_batches_are_served(server: Server) -> None:
    pictures = [saved(server, with_half(painted(mode=mode, batch=2))) for mode in ("region", "query", "global")]
    assert all(len(batch) == 2 for batch in pictures)
    assert not any(np.array_equal(one[0], other[0]) for one, other in zip(pictures, pictures[1:] + pictures[:1], strict=True))


def test_two_regions_in_a_row(server: Server) -> None:
    prompt = with_half(painted())
    second = json.loads(json.dumps(prompt["applied"]))
    prompt["right"] = node("MaskPromptBoxMask", image=["square", 0], x=64, y=0, width=64, height=128)
    second["inputs"] |= {"model": ["applied", 0], "region": ["right", 0]}
    (one,) = saved(server, prompt)
    prompt["second"] = second
    prompt["sampler"]["inputs"]["model"] = ["second", 0]
    assert not np.array_equal(saved(server, prompt)[0], one)


def changed(prompt: Prompt, name: str, **inputs: Any) -> Prompt:
    prompt[name]["inputs"] |= inputs
    return prompt


def on_video_model() -> Prompt:
    prompt = painted()
    prompt["clip"] = CHECKPOINT
    prompt["model"] = VIDEO_MODEL
    changed(prompt, "text", clip=["clip", 1])
    return changed(prompt, "decoded", vae=["clip", 2])


REFUSED: dict[str, tuple[Prompt, str]] = {
    "no such file": (painted("nonesuch.bin"), "nonesuch.bin.*ip-adapter_sd15.safetensors"),
    "FaceID": (painted("faceid.safetensors"), "faceid.safetensors.*FaceID file, which needs a face recogniser"),
    "a cut-off file": (painted("cut-off.bin"), "cut-off.bin.*damaged or not complete"),
    "a pickle with code": (painted("evil.bin"), "evil.bin.*can run any program"),
    "another model's adapter": (painted("sd15.safetensors"), r"text of width 768 \(SD 1.5\); this model has 16 .* width 128"),
    "another vision model's adapter": (painted("vit-h.safetensors"), r"of width 1024 \(ViT-H\); this one's is 768 \(ViT-L\)"),
    "plus without its vision model": (painted("plus.safetensors"), "needs the CLIP vision model too"),
    "a region of another shape": (painted(region=solid(1.0, 300, 100)), "the mask is 300x100.*their shapes differ"),
    "a start after the end": (painted(start_percent=0.9, end_percent=0.1), "is after end_percent"),
    "a model that is no UNet": (on_video_model(), r"\(MaskPromptApplyMECA\).*UNet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_plain_words(server: Server, model_files: Path, case: str) -> None:
    prompt, message = REFUSED[case]
    with pytest.raises(WorkflowError, match=f"(?s){message}") as refused:
        server.run(prompt)
    assert not any(word in str(refused.value) for word in ("Traceback", "torch.", "size mismatch", "Tensor"))
    assert not model_files.exists()


def depth(**inputs: Any) -> Prompt:
    return {
        "photo": PHOTO,
        "mask": node("MaskPromptBoxMask", image=["photo", 0], x=100, y=100, width=200, height=150),
        "hint": node(
            "MaskPromptDepthHint",
            **{"reference_depth": ["photo", 0], "foreground_depth": ["photo", 0], "foreground_mask": ["mask", 0], "feather": 0, **inputs},
        ),
        "save": node("SaveImage", images=["hint", 0], filename_prefix="depth"),
    }


def test_a_depth_hint_is_grey_and_has_the_product_before_the_rest(server: Server) -> None:
    (result,) = saved(server, depth())
    assert result.shape == (400, 600, 3)
    assert (result[..., 0] == result[..., 1]).all()
    assert result[100:250, 100:300].min() >= 127
    assert result.min() == 0


def test_a_depth_map_of_another_shape_is_refused(server: Server) -> None:
    prompt = depth(reference_depth=["square", 0])
    prompt["square"] = node("EmptyImage", width=128, height=128, batch_size=1, color=0)
    with pytest.raises(WorkflowError, match="reference_depth is 128x128 but foreground_depth is 600x400: their shapes differ"):
        server.run(prompt)
