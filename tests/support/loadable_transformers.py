"""Transformers of random weights as files that ComfyUI's stock loader takes for what they are.

The loader reads a model's sizes from its weights, and what it does not read it takes from the published models. So a family can be tiny
here only if nothing large is taken for granted. The others have the published width and as few layers as their files can have, in 8 bits:
Chroma (layers of 3,072, and a network of 5,120 that makes their modulation), Qwen-Image (24 heads of 128), Z-Image and Lumina 2 (known by
their widths, 3,840 and 2,304), Anima and Cosmos Predict 2 (known by 2,048, with all 28 blocks). HiDream is known by its 17 billion
numbers alone, so no file of it is written.
"""

from __future__ import annotations

import functools
import math
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
    ids: str = ""
    """The tokenizer's row of numbers that go beside the text, as Anima's."""
    wide: bool = False
    """Has the published width: its matrices are in 8 bits, of numbers that are drawn once and repeated."""

    def weights(self) -> dict[str, Tensor]:
        """The file's tensors."""
        torch.manual_seed(0)
        model = self.config().get_model({}, "", device=torch.device("meta" if self.wide else "cpu"))
        fill = _wide if self.wide else filled
        return {name: fill(value).contiguous() for name, value in model.diffusion_model.state_dict().items()}


@functools.lru_cache(maxsize=1)
def _drawn() -> Tensor:
    """Normal numbers; how many there are is prime, so that no two rows of a matrix are alike."""
    return torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))


def _wide(value: Tensor) -> Tensor:
    """What `filled` gives, a hundred times as fast: matrices in 8 bits, the rest in bfloat16."""
    if value.ndim < 2:
        return filled(torch.empty(value.shape, dtype=torch.bfloat16))
    spread = 0.8 / math.sqrt(value[0].numel())
    numbers = (_drawn() * spread).to(torch.float8_e4m3fn)
    times = -(-value.numel() // numbers.numel())
    return numbers.repeat(times)[: value.numel()].view(value.shape)


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


def _chroma() -> Any:
    return _of(
        "Chroma", image_model="chroma", in_channels=64, out_channels=64, vec_in_dim=None, context_in_dim=40, hidden_size=3072,
        mlp_ratio=4.0, num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
        txt_ids_dims=[], in_dim=64, out_dim=3072, hidden_dim=5120, n_layers=5,
    )  # fmt: skip


def _qwen() -> Any:
    return _of("QwenImage", image_model="qwen_image", in_channels=64, num_layers=1)


def _lumina(name: str, width: int, heads: int, groups: int, axes: list[int], wider: float, **more: Any) -> Any:
    return _of(
        name, image_model="lumina2", patch_size=2, in_channels=16, dim=width, cap_feat_dim=40, n_layers=1, qk_norm=True, n_heads=heads,
        n_kv_heads=groups, axes_dims=axes, axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=wider, **more,
    )  # fmt: skip


def _cosmos(name: str, image_model: str) -> Any:
    return _of(
        name, image_model=image_model, max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2,
        patch_temporal=1, model_channels=2048, concat_padding_mask=True, crossattn_emb_channels=1024, pos_emb_cls="rope3d",
        pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30, use_adaln_lora=True, adaln_lora_dim=256,
        num_blocks=28, num_heads=16, extra_per_block_abs_pos_emb=False, rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0,
        rope_t_extrapolation_ratio=1.0,
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
    Loadable("Chroma", _chroma, 40, wide=True),
    Loadable("Qwen-Image", _qwen, 3584, ("qwen_image", "QwenImageTokenizer", "qwen25_7b"), cut=34, wide=True),
    Loadable(
        "Z-Image",
        lambda: _lumina("ZImage", 3840, 30, 30, [32, 48, 48], 8 / 3, pad_tokens_multiple=32, z_image_modulation=True),
        40,
        ("z_image", "ZImageTokenizer", "qwen3_4b"),
        wide=True,
    ),
    Loadable("Lumina 2", lambda: _lumina("Lumina2", 2304, 24, 8, [32, 32, 32], 4.0), 40, wide=True),
    Loadable("Anima", lambda: _cosmos("Anima", "anima"), 1024, ("anima", "AnimaTokenizer", "qwen3_06b"), ids="t5xxl", wide=True),
    Loadable("Cosmos Predict 2", lambda: _cosmos("CosmosT2IPredict2", "cosmos_predict2"), 1024, wide=True),
)
