"""Tiny transformers of random weights as files that ComfyUI's stock loader takes for what they are.

The loader reads a model's sizes from its weights, and what it does not read it takes from the published models. So a family can be small
here only if nothing large is taken for granted. Not so small as to be loaded in a test: Chroma (layers of 3,072, and a network of 5,120
that makes their modulation), Qwen-Image (24 heads of 128), Z-Image and Lumina 2 (known by their widths, 3,840 and 2,304), Anima and
Cosmos Predict 2 (known by 2,048 and 5,120).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tiny_transformers import TINIES, filled

T5: tuple[str, str, str] = ("pixart_t5", "PixArtTokenizer", "t5xxl")
"""For families whose own vocabulary comes with a text encoder's file."""


@dataclass(frozen=True)
class Loadable:
    """A family's file, and what a text for it is made by (`text_pack`): tokenizer, width, tokens cut in front, pooled width."""

    name: str
    config: Callable[[], Any]
    width: int
    tokenizer: tuple[str, str, str] = T5
    cut: int = 0
    pooled: int = 0
    latent: str = "EmptySD3LatentImage"

    def weights(self) -> dict[str, Tensor]:
        """The file's tensors."""
        torch.manual_seed(0)
        model = self.config().get_model({}, "", device=torch.device("cpu"))
        return {name: filled(value).contiguous() for name, value in model.diffusion_model.state_dict().items()}


def _of(name: str, **config: Any) -> Any:
    import comfy.supported_models

    made = getattr(comfy.supported_models, name)(config)
    made.set_inference_dtype(torch.float32, None)
    return made


def _flux(**more: Any) -> Any:
    given: dict[str, Any] = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 40, "hidden_size": 128,
        "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], **more,
    }  # fmt: skip
    return _of("FluxInpaint" if given["in_channels"] == 96 else "Flux", **given)


def _flux2() -> Any:
    return _of(
        "Flux2", image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=40, hidden_size=128, mlp_ratio=3.0,
        num_heads=1, depth=1, depth_single_blocks=1, axes_dim=[32, 32, 32, 32], theta=2000, patch_size=1, qkv_bias=False,
        guidance_embed=True, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index",
        ref_index_scale=10.0,
    )  # fmt: skip


def _krea() -> Any:
    return _of("Krea2", image_model="krea2", features=128, channels=16, patch=2, layers=2, heads=1, kvheads=1, txtlayers=2, txtdim=160)


def _wan(kind: str) -> Any:
    return _of(
        "WAN21_T2V" if kind == "t2v" else "WAN21_I2V", image_model="wan2.1", model_type=kind, dim=128, out_dim=16, num_heads=1, ffn_dim=96,
        num_layers=2, patch_size=(1, 2, 2), freq_dim=256, in_dim=16 if kind == "t2v" else 36, text_dim=4096, text_len=512,
    )  # fmt: skip


def _lens() -> Any:
    return _of(
        "Lens", image_model="lens", in_channels=128, out_channels=32, num_layers=2, attention_head_dim=64, num_attention_heads=1,
        enc_hidden_dim=20, selected_layer_index=(0, 1), multi_layer_encoder_feature=True,
    )  # fmt: skip


def _as_in(name: str) -> Callable[[], Any]:
    return next(tiny.config for tiny in TINIES if tiny.name == name)


SD3 = ("sd3_clip", "SD3Tokenizer", "g,t5xxl")
VIDEO = "EmptyHunyuanLatentVideo"

LOADABLE: tuple[Loadable, ...] = (
    Loadable("Flux.1", _flux, 40, ("flux", "FluxTokenizer", "t5xxl"), pooled=24),
    Loadable("Flux.1 Fill", lambda: _flux(in_channels=96), 40, ("flux", "FluxTokenizer", "t5xxl"), pooled=24),
    Loadable("Flux.2", _flux2, 40, ("flux", "KleinTokenizer", "qwen3_4b"), latent="EmptyFlux2LatentImage"),
    Loadable("Krea 2", _krea, 320, ("krea2", "Krea2Tokenizer", "qwen3vl_4b"), cut=34),
    Loadable("SD 3", _as_in("SD 3"), 40, SD3, pooled=24),
    Loadable("SD 3.5 medium", _as_in("SD 3.5 medium"), 40, SD3, pooled=24),
    Loadable("Wan text to video", lambda: _wan("t2v"), 4096, latent=VIDEO),
    Loadable("Wan image to video", lambda: _wan("i2v"), 4096, latent=VIDEO),
    Loadable("Lens", _lens, 40, latent="EmptyFlux2LatentImage"),
)
