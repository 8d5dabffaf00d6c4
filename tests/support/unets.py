"""UNets in the shapes of Stable Diffusion's families."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from maskprompt.attention.layers import Layer

SD15: dict[str, Any] = {
    "image_size": 32, "in_channels": 9, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "context_dim": 768, "num_heads": 8,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "legacy": False,
}  # fmt: skip
SD21: dict[str, Any] = {**SD15, "context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
SDXL: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10], "context_dim": 2048, "num_heads": -1, "num_head_channels": 64,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10, "num_classes": "sequential",
    "adm_in_channels": 2816, "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
}  # fmt: skip
SSD1B: dict[str, Any] = {
    **SDXL, "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
    "transformer_depth_middle": -1,
}  # fmt: skip
KOALA: dict[str, Any] = {
    **SDXL, "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5],
    "transformer_depth_middle": -2,
}  # fmt: skip
UNETS = {"SD 1.5": SD15, "SD 2.1": SD21, "SDXL": SDXL, "SSD-1B": SSD1B, "no middle": KOALA}


@cache
def unet(name: str) -> Any:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**UNETS[name], dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)


def keys(part: str, *blocks: int, depth: int = 1) -> set[Layer]:
    return {(part, block, index) for block in blocks for index in range(depth)}
