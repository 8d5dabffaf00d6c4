"""Masks and models that nodes of masked attention are sampled with."""

from __future__ import annotations

from typing import Any

import torch
from maskprompt.nodes.dreamcom import MaskedAttention

from .unets import SDXL


def corner(height: int = 128, width: int = 128) -> torch.Tensor:
    """A mask [1, H, W] of the upper left quarter."""
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2, : width // 2] = 1
    return mask


def confined(model: Any, mask: torch.Tensor, cross: bool = True, self_attention: str = "paper", which: str = "paper", **more: Any) -> Any:
    """The MODEL that Masked Attention gives."""
    (result,) = MaskedAttention.execute(model, mask, cross, self_attention, which, **more).args
    return result


def small_sdxl() -> Any:
    """A MODEL with SDXL's blocks at 32 channels and two transformers where it has ten; random weights."""
    import comfy.model_patcher
    import comfy.supported_models

    widths = {"model_channels": 32, "context_dim": 128, "adm_in_channels": 6 * 256 + 16, "transformer_depth": [0, 0, 2, 2, 2, 2]}
    depths = {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 2, 2, 2], "transformer_depth_middle": 2}
    config = comfy.supported_models.SDXL({**SDXL, **widths, **depths})
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device=torch.device("cpu"))
    torch.manual_seed(0)
    for parameter in base.diffusion_model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.05
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
