"""A small SD-inpainting-shaped model of random weights, and how to sample from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Sample = Callable[..., torch.Tensor]


def random_model(seed: int = 0, dtype: torch.dtype = torch.float32, in_channels: int = 9) -> Any:
    """A MODEL with SD 1.5's blocks at 32 channels; no layer is zero."""
    import comfy.sd

    from demo import registration, tiny_model

    registration.register()
    torch.manual_seed(seed)
    unet = tiny_model.build_unet(in_channels)
    state = {f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()}
    for key, value in state.items():
        if value.abs().max() == 0 and key.endswith("weight"):
            state[key] = torch.randn_like(value) * 0.05
    return comfy.sd.load_diffusion_model_state_dict({key: value.to(dtype) for key, value in state.items()})
