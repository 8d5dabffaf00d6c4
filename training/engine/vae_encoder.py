"""A VAE's encoder that gradients pass through: what learns before it is reached."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from .model_copy import network_of

DECODERS = ("decoder", "post_quant_conv", "taesd_decoder")
KEPT = 3046
"""So many numbers for each pixel does Stable Diffusion's VAE keep for the gradient."""


class VAEEncoder:
    """A copy of a ComfyUI VAE's encoder. It does not learn, and the VAE itself is only read.

    In float32 where the VAE is in float16, whose gradients would overflow. With `checkpointing` it keeps no activations but computes
    each picture anew for the gradient.
    """

    def __init__(self, vae: Any, checkpointing: bool = True) -> None:
        self.process_input = vae.process_input
        self.checkpointing = checkpointing
        # Outside of inference mode, in which nodes load their models: what is made there has no gradient.
        with torch.inference_mode(False):
            self.network = network_of(vae.patcher).requires_grad_(False)
            for name in DECODERS:
                if hasattr(self.network, name):
                    setattr(self.network, name, None)
            self.dtype = training_dtype(vae)
            self.network.to(self.dtype)

    def to(self, device: torch.device) -> VAEEncoder:
        self.network.to(device)
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        """Latents float32 [B, C, h, w] as the VAE's encode gives them, of pictures [B, 3, H, W] in 0..1."""
        if not self.checkpointing or not torch.is_grad_enabled():
            return self._encode(pixels)
        parts = [torch.utils.checkpoint.checkpoint(self._encode, one, use_reentrant=False) for one in pixels.split(1)]
        return torch.cat([part for part in parts if isinstance(part, Tensor)])

    def _encode(self, pixels: Tensor) -> Tensor:
        latents: Any = self.network.encode(self.process_input(pixels).to(self.dtype))
        return latents.float()


def training_dtype(vae: Any) -> torch.dtype:
    """What a VAE's encoder has gradients in: its own precision, but for float16."""
    return torch.float32 if vae.vae_dtype == torch.float16 else vae.vae_dtype
