"""The shape of a Mask-ControlNet in a file."""

from __future__ import annotations

import torch
from maskprompt.models.mask_controlnet import diffusers_layout
from maskprompt.models.mask_controlnet.adapter import MaskConcat
from maskprompt.models.mask_controlnet.file import About, Content

from .control_networks import SMALL, random_network

SHAPE = SMALL["like SD 1.5"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def content(shape: diffusers_layout.Shape = SHAPE, dtype: torch.dtype = torch.float32, about: About | None = None) -> Content:
    """Of random weights; the adapter too is none of the untrained ones."""
    control = {name: value.to(dtype) for name, value in random_network(shape).state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    adapter = {name: torch.randn(value.shape, generator=generator) for name, value in MaskConcat().state_dict().items()}
    return Content(shape, control, adapter, about or About(0.25, "a base, in words", masked=False))
