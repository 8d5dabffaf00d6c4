"""Adapter weights for tests, under the real files' names: small, random, of every family."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

Weights = dict[str, torch.Tensor]


def layer_weights(widths: Mapping[int, int], context: int) -> Weights:
    """The `ip_adapter` part: 1.to_k_ip.weight, 1.to_v_ip.weight, 3.…"""
    return {
        f"ip_adapter.{number}.to_{part}_ip.weight": torch.randn(width, context) / context**0.5
        for number, width in widths.items() for part in ("k", "v")
    }  # fmt: skip


def base(widths: Mapping[int, int], context: int, features: int = 64, tokens: int = 4, seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    return {
        "image_proj.proj.weight": torch.randn(tokens * context, features) / features**0.5,
        "image_proj.proj.bias": torch.randn(tokens * context) * 0.1,
        "image_proj.norm.weight": 1 + torch.randn(context) * 0.1,
        "image_proj.norm.bias": torch.randn(context) * 0.1,
        **layer_weights(widths, context),
    }


def plus(
    widths: Mapping[int, int], context: int, features: int = 48, tokens: int = 16, width: int = 64, depth: int = 4, seed: int = 0
) -> Weights:
    """A resampler of so many heads of 64 as `width` holds, feed-forward of four times the width."""
    torch.manual_seed(seed)
    shapes = {
        "latents": (1, tokens, width), "proj_in.weight": (width, features), "proj_in.bias": (width,), "proj_out.weight": (context, width),
        "proj_out.bias": (context,), "norm_out.weight": (context,), "norm_out.bias": (context,),
    }  # fmt: skip
    for layer in range(depth):
        attention = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
                     "to_q.weight": (width, width), "to_kv.weight": (2 * width, width), "to_out.weight": (width, width)}  # fmt: skip
        forward = {"0.weight": (width,), "0.bias": (width,), "1.weight": (4 * width, width), "3.weight": (width, 4 * width)}
        shapes |= {f"layers.{layer}.0.{name}": shape for name, shape in attention.items()}
        shapes |= {f"layers.{layer}.1.{name}": shape for name, shape in forward.items()}
    found = {f"image_proj.{name}": torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    return {**found, **layer_weights(widths, context)}


def nested(weights: Weights) -> dict[str, Weights]:
    """As a .bin holds them: {"image_proj": …, "ip_adapter": …}."""
    parts: dict[str, Weights] = {"image_proj": {}, "ip_adapter": {}}
    for name, weight in weights.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = weight
    return parts


def encoded(pictures: int = 1, pooled: int = 64, patches: int = 48, seed: int = 1, tokens: int = 17) -> Any:
    """A CLIP_VISION_OUTPUT of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        image_embeds=torch.randn(pictures, pooled, generator=generator),
        penultimate_hidden_states=torch.randn(pictures, tokens, patches, generator=generator),
    )


def small_clip_vision(hidden: int = 48, pooled: int = 64, size: int = 56) -> Any:
    """A CLIP_VISION with ComfyUI's own classes: three layers, 4 x 4 patches of 14 pixels, random weights."""
    import comfy.clip_vision

    config = {
        "hidden_act": "gelu", "hidden_size": hidden, "image_size": size, "intermediate_size": 2 * hidden, "model_type": "clip_vision_model",
        "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 3, "patch_size": 14, "projection_dim": pooled,
    }  # fmt: skip
    clip_vision = comfy.clip_vision.ClipVisionModel(config)
    torch.manual_seed(3)
    state = {name: torch.randn_like(weight.float()) * 0.3 for name, weight in clip_vision.model.state_dict().items()}
    clip_vision.load_sd(state)
    return clip_vision
