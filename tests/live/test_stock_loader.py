"""A file of random weights of each family through ComfyUI's stock loader: two steps through each node, by stock nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from demo import run
from demo.server import Prompt, Server

from ..support.graphs import node
from ..support.loadable_transformers import LOADABLE, Loadable

pytestmark = pytest.mark.thorough

PACK = Path(__file__).resolve().parent / "text_pack"
WIDTH, HEIGHT = 192, 128


def file_of(family: Loadable) -> str:
    return f"{family.name.lower().replace(' ', '-')}.safetensors"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run.stage(tmp_path_factory.mktemp("comfyui"), more={"text-pack": PACK}) as started:
        yield started


def text(family: Loadable, words: str) -> dict[str, Any]:
    module, tokenizer, encoders = family.tokenizer
    return node(
        "RandomText", module=module, tokenizer=tokenizer, encoders=encoders, text=words, width=family.width, cut=family.cut,
        pooled=family.pooled, ids=family.ids,
    )  # fmt: skip


def sampled(model: str, name: str, cfg: float) -> dict[str, Any]:
    """Two steps of a MODEL, the latent saved."""
    sampler = {"steps": 2, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "seed": 3}
    return {
        f"sample {name}": node(
            "KSampler", model=[model, 0], positive=["prompt", 1], negative=["negative", 1], latent_image=["empty", 0], **sampler
        ),
        f"latent {name}": node("SaveLatent", samples=[f"sample {name}", 0], filename_prefix=name),
    }  # fmt: skip


def graph(family: Loadable) -> Prompt:
    """The model plain, with a region, with its attention masked, its grid and the map of a word; the wide ones without CFG, for time."""
    cfg = 1.0 if family.wide else 2.0
    length = {"length": 9} if "Video" in family.latent else {}
    box = {"x": 0, "y": 0, "width": WIDTH // 2, "height": HEIGHT, "image_width": WIDTH, "image_height": HEIGHT, "feather": 0}
    return {
        "model": node("UNETLoader", unet_name=file_of(family), weight_dtype="default"),
        "prompt": text(family, "a red ball on grass"),
        "negative": text(family, "rain"),
        "star": text(family, "a blue star"),
        "empty": node(family.latent, width=WIDTH, height=HEIGHT, batch_size=1, **length),
        "left": node("MaskPromptBoxMask", **box),
        "region": node("MaskPromptPromptRegion", model=["model", 0], text=["star", 1], mask=["left", 0], strength=1.0, base="everywhere",
                       apart=0.5),
        "masked": node("MaskPromptMaskedAttention", model=["model", 0], mask=["left", 0], cross_attention=True, self_attention="paper",
                       layers="paper"),
        **sampled("model", "plain", cfg), **sampled("region", "region", cfg), **sampled("masked", "masked", cfg),
        "grid": node("MaskPromptMaskGrid", model=["model", 0], mask=["left", 0]),
        "map": node("MaskPromptAttentionMap", model=["region", 0], clip=["prompt", 0], text="a red ball on grass", words="red ball, grass",
                    at_percent=0.3, seed=1, scale="each word", latent=["sample region", 0]),
        "masks": node("MaskToImage", mask=["map", 2]),
        "saved": node("SaveImage", images=["masks", 0], filename_prefix="masks"),
    }  # fmt: skip


@pytest.mark.parametrize("family", LOADABLE, ids=lambda family: family.name)
def test_two_steps_through_each_node(server: Server, tmp_path: Path, family: Loadable) -> None:
    file = tmp_path / file_of(family)
    save_file(family.weights(), file)
    server.add_model("diffusion_models", file)
    outputs = server.run(graph(family)).outputs
    latents: dict[str, np.ndarray] = {}
    for name in ("plain", "region", "masked"):
        with safe_open(server.file_of(outputs[f"latent {name}"]["latents"][0]), "np") as saved:
            latents[name] = saved.get_tensor("latent_tensor")
    assert all(np.isfinite(latent).all() for latent in latents.values())
    for name in ("region", "masked"):
        assert not np.allclose(latents[name], latents["plain"], rtol=1e-3, atol=1e-4), name
    frames = latents["plain"].shape[2] if latents["plain"].ndim == 5 else 1
    assert len(outputs["map"]["images"]) == len(outputs["saved"]["images"]) == 2 * frames
    for image in outputs["saved"]["images"]:
        mask = np.asarray(Image.open(server.file_of(image)).convert("L"))
        assert mask.shape == (HEIGHT, WIDTH)
        assert set(np.unique(mask)) == {0, 255}
    assert len(outputs["grid"]["images"]) == 1
