"""A Mask-ControlNet of random weights, its references and hints."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import comfy.sd
import pytest
import torch
import torch.nn.functional as F
from maskprompt.models.mask_controlnet import control as mask_controlnet
from maskprompt.models.mask_controlnet import diffusers_layout
from maskprompt.models.mask_controlnet.control import MaskControl
from maskprompt.models.mask_controlnet.file import About, Content
from maskprompt.models.mask_controlnet.network import LatentControlNet, started
from torch import Tensor

from demo import tiny_model, train_control

from .control_networks import TINY, random_network

PADDING = torch.tensor([1.0, *tiny_model.BLANK])
"""What an inpainting UNet finds in its further channels in text to image."""


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.get_model_object("diffusion_model").state_dict().items()}


def control_of(network: LatentControlNet, about: About | None = None) -> MaskControl:
    return mask_controlnet.of_weights(Content(network.shape, network.state_dict(), None, about or About()), "this one")


def untrained(model: Any) -> MaskControl:
    """Of the control network that a training begins with."""
    shape = diffusers_layout.shape_of(model.model.model_config.unet_config)
    return control_of(started(shape, weights(model), PADDING))


def reference(batch: int = 1, height: int = 128, width: int = 128, seed: int = 7) -> Tensor:
    """IMAGE [B, H, W, 3] of random blobs."""
    coarse = torch.rand(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


def features(control: Any, model: Any, x: Tensor, sigma: float, context: Tensor) -> list[Tensor] | None:
    """What the sampler gets from a CONTROL_NET for pictures [B, 4, h, w] at this noise level: every level of it, then the middle."""
    base = model.model
    control.pre_run(base, base.model_sampling.percent_to_sigma)
    with torch.no_grad():
        found = control.get_control(x, torch.full((len(x),), sigma), {"c_crossattn": context}, 1, {})
    control.cleanup()
    return None if found is None else [*found["output"], *found["middle"]]


@pytest.fixture(scope="module")
def vae() -> Any:
    """The VAE of demo/."""
    return comfy.sd.VAE(sd=tiny_model.load_checkpoint(tiny_model.CHECKPOINT)[2])


@pytest.fixture(scope="module")
def control() -> MaskControl:
    """Of random weights, for the small model."""
    return control_of(random_network(TINY))


@pytest.fixture(scope="module")
def depth() -> Any:
    """The stock ControlNet for pictures of demo/."""
    return comfy.controlnet.load_controlnet(str(train_control.FILE))


def fed(seed: int = 3, batch: int = 1, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy latents and texts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, height, width, generator=generator) * 4, torch.randn(batch, 77, 128, generator=generator)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
