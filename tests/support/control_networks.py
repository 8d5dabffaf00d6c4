"""Control networks of random weights, in diffusers' layout."""

from __future__ import annotations

import torch
from maskprompt.models.mask_controlnet import diffusers_layout
from maskprompt.models.mask_controlnet.diffusers_layout import Shape
from maskprompt.models.mask_controlnet.network import LatentControlNet

from demo import registration, tiny_model

registration.register()

TINY: Shape = diffusers_layout.shape_of(tiny_model.UNET)
SMALL: dict[str, Shape] = {
    "tiny": TINY,
    "like SD 1.5": {
        "model_channels": 32, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 3], "transformer_depth": [1, 1, 0],
        "transformer_depth_middle": 1, "context_dim": 24, "num_heads": 4, "use_linear_in_transformer": False,
    },
    "like SD 2.1": {
        "model_channels": 32, "num_res_blocks": [2, 2], "channel_mult": [1, 2], "transformer_depth": [1, 1, 0, 0],
        "transformer_depth_middle": 1, "context_dim": 40, "num_head_channels": 16, "use_linear_in_transformer": True,
        "attn_precision": torch.float32,
    },
    "like SDXL": {
        "model_channels": 32, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 3, 3],
        "transformer_depth_middle": 3, "context_dim": 24, "num_head_channels": 16, "use_linear_in_transformer": True,
        "num_classes": "sequential", "adm_in_channels": 6 * 256 + 16,
    },
}  # fmt: skip
"""Shapes that cost nothing."""


def random_network(shape: Shape, seed: int = 0) -> LatentControlNet:
    """Of random weights in float32, none of them zero."""
    import comfy.ops

    network = LatentControlNet(shape, torch.float32, "cpu", comfy.ops.disable_weight_init).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.copy_(noise / value[0].numel() ** 0.5 if value.ndim > 1 else 1 + 0.2 * noise)
    return network
