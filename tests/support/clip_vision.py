"""Vision models of random weights, and patches that are hidden."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import comfy.clip_vision
import torch
from comfy.clip_model import clip_preprocess
from comfy.clip_vision import ClipVisionModel
from maskprompt.models.clip_vision import patch_grid
from torch import Tensor

FOLDER = Path(comfy.clip_vision.__file__).parent
SMALL: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4,
    "num_channels": 3, "patch_size": 14, "image_size": 84, "projection_dim": 32, "hidden_act": "quick_gelu",
}  # fmt: skip
SIGLIP: dict[str, Any] = {**SMALL, "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "image_size": 87}
del SIGLIP["projection_dim"]
GRID = 6


def random_model(config: dict[str, Any], seed: int = 0) -> ClipVisionModel:
    """A CLIP_VISION of random weights: every layer matters, no activation grows."""
    model = ClipVisionModel(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in model.get_sd().items():
        scale = 0.1 if value.ndim == 1 else value[0].numel() ** -0.5
        weights[name] = torch.randn(value.shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
        weights[name] = weights[name].to(value.dtype)
    model.load_sd(weights)
    return model


@cache
def clip() -> ClipVisionModel:
    return random_model(SMALL)


@cache
def siglip() -> ClipVisionModel:
    return random_model(SIGLIP)


@cache
def witness(kind: str) -> Any:
    """transformers' model with the same weights, in float32, attention written out."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

    ours, options = (clip(), SMALL) if kind == "clip" else (siglip(), SIGLIP)
    options = {**options, "attn_implementation": "eager", "layer_norm_eps": 1e-5}
    weights = {name: value.float() for name, value in ours.get_sd().items()}
    if kind == "clip":
        model: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**options))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**options, vision_use_head=False))
        weights = {name.removeprefix("vision_model."): value for name, value in weights.items()}
    model.load_state_dict(weights)
    return model.eval()


def pictures(count: int = 1, height: int = 84, width: int = 84, seed: int = 0) -> Tensor:
    """Noise of whole 255ths: at the encoder's size it passes preprocessing unchanged."""
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(seed)) / 255


def random_patches(count: int, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(count, GRID, GRID, generator=torch.Generator().manual_seed(seed)) < share


def as_mask(patches: Tensor, size: int = 84) -> Tensor:
    """A MASK of exactly these patches."""
    return patch_grid.enlarged(patches, size, 14).float()


def pixels_of(model: ClipVisionModel, image: Tensor) -> Tensor:
    return clip_preprocess(image, size=model.image_size, mean=model.image_mean, std=model.image_std)


def stock(model: ClipVisionModel, image: Tensor) -> Any:
    with torch.no_grad():
        return model.encode_image(image)


def token_mask(patches: Tensor, has_class: bool) -> Tensor:
    """[B, tokens] bool: the class token and the visible patches."""
    return torch.cat((torch.ones(len(patches), int(has_class), dtype=torch.bool), patches.flatten(1)), dim=1)


def assert_same(found: Any, expected: Any) -> None:
    """Every attribute of a stock output, bit by bit."""
    for name, value in vars(expected).items():
        given = getattr(found, name)
        assert torch.equal(given, value) if isinstance(value, Tensor) else given == value, name
