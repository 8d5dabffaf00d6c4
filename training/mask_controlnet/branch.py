"""What learns in Mask-ControlNet's training (section 3.1): the adapter and the control network, beside a frozen model.

The control network acts as ComfyUI's CONTROL_NET, through the sampler's own code, so what learns is what paints.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...models.mask_controlnet import control as mask_controlnet
from ...models.mask_controlnet import diffusers_layout
from ...models.mask_controlnet.adapter import MaskConcat
from ...models.mask_controlnet.control import MaskControl
from ...models.mask_controlnet.file import About, Content
from ...models.mask_controlnet.network import started
from ..engine.learner import Learner, with_gradients
from ..engine.model_copy import checkpoint_blocks
from ..engine.vae_encoder import VAEEncoder
from .examples import Batch
from .options import Options


class Encoder(Protocol):
    """Encodes pixels [B, 3, H, W] in 0..1 to latents [B, 4, h, w], with gradients, by its `network`."""

    network: Any

    def to(self, device: torch.device, /) -> Any: ...

    def __call__(self, pixels: Tensor, /) -> Tensor: ...


class Branch:
    """Holds adapter and control network, which begins with the encoder of the learner's UNet; made and loaded while the learner is loaded.

    `encoder` encodes the hint, by default the VAE's own.
    """

    def __init__(self, learner: Learner, vae: Any, options: Options, encoder: Encoder | None = None) -> None:
        from comfy.model_patcher import ModelPatcher

        self.learner = learner
        self.options = options
        model = learner.network
        shape = diffusers_layout.shape_of(model.model_config.unet_config)
        self.about = About(float(model.latent_format.scale_factor), mask_controlnet.in_words(shape), options.masked)
        with torch.inference_mode(False):
            unet = {name: value.detach() for name, value in model.diffusion_model.state_dict().items()}
            self.network = started(shape, unet, _further_channels(model), options.seed)
            self.adapter = MaskConcat()
            self.encoder: Encoder = encoder or VAEEncoder(vae, options.checkpointing)
            with_gradients(self.network)
            if options.checkpointing:
                checkpoint_blocks(self.network)
        self.control = MaskControl(self.network, self.about, learner.device, None)
        # A plain patcher: the one that streams weights puts others in the place of those that learn.
        self.control.control_model_wrapped = ModelPatcher(self.network, learner.device, learner.patcher.offload_device)

    def load(self) -> None:
        """Puts all of it on the device, after the learner."""
        for part in (self.network, self.adapter, self.encoder):
            part.to(self.learner.device)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        parts = (("control_net.", self.network), ("adapter.", self.adapter))
        return {prefix + name: value for prefix, part in parts for name, value in part.named_parameters()}

    def hint(self, batch: Batch) -> Tensor:
        """Makes each reference's hint, as the adapter sees it: [B, 3, H, W]. Without the mask prompt the reference is its own object."""
        mask = batch.mask if self.options.masked else torch.ones_like(batch.mask)
        return self.adapter(batch.reference, mask)

    def acting(self, hint: Tensor) -> MaskControl:
        """Makes a CONTROL_NET with this hint [B, 3, H, W], encoded by the VAE."""
        control = self.control.copy()
        control.cond_hint = self.encoder(hint) * self.about.scale
        control.model_sampling_current = self.learner.network.model_sampling
        return control

    def content(self) -> Content:
        """Copies what is written to a file: the control network in half precision, the adapter, which is small, in full."""
        control = {name: _copy(value, torch.float16) for name, value in self.network.state_dict().items()}
        adapter = {name: _copy(value, torch.float32) for name, value in self.adapter.state_dict().items()}
        return Content(self.network.shape, control, adapter, self.about)


def _further_channels(model: Any) -> Tensor | None:
    """What an inpainting UNet finds in its further channels in text to image, one number each; None where it has none."""
    if model.diffusion_model.in_channels <= diffusers_layout.LATENT:
        return None
    noise = torch.zeros(1, diffusers_layout.LATENT, 8, 8)
    found = model.concat_cond(noise=noise, device=noise.device, latent_image=noise)
    return found.float().mean((0, 2, 3))


def _copy(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to("cpu", dtype, copy=True)
