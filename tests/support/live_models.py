"""Model files that a running ComfyUI is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .graphs import node

VIDEO_MODEL = node("UNETLoader", unet_name="video.safetensors", weight_dtype="default")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def video_model() -> dict[str, torch.Tensor]:
    """A transformer (Wan VACE's kind) of one narrow layer, which ComfyUI takes for a diffusion model and the pack does not know."""
    import comfy.ops
    from comfy.ldm.wan.model import VaceWanModel

    operations = comfy.ops.disable_weight_init
    model = VaceWanModel(
        model_type="vace", dim=128, ffn_dim=128, num_heads=1, num_layers=1, vace_layers=1, vace_in_dim=96, operations=operations,
        dtype=torch.float32, device="cpu",
    )  # fmt: skip
    return {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
