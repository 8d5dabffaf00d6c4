"""The noise that a model learns to take away, from the model's own sampling object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Schedule:
    """Noise levels of a ComfyUI model. `sampling` is its `model_sampling`, with a table of `sigmas`."""

    def __init__(self, sampling: Any) -> None:
        self.sampling = sampling
        self.sigmas = torch.as_tensor(sampling.sigmas).detach().float().cpu().clone()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels [count], every step of the schedule as likely as the others."""
        return self.sigmas[torch.randint(len(self.sigmas), (count,), generator=generator)]

    def noisy(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Latents [B, C, h, w] under noise of the levels [B], as the sampler would hand them to the model."""
        return self.sampling.noise_scaling(sigmas[:, None, None, None], noise, latents, False)

    def error(self, denoised: Tensor, latents: Tensor, sigmas: Tensor) -> Tensor:
        """What the model's output was too much, [B, C, h, w], in whatever it predicts: noise, or velocity.

        ComfyUI's models answer with the denoised latents, which are linear in that output: x - sigma * eps for noise,
        x / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1) for velocity. So the denoised latents' error over the output's factor in
        them is the output's error. The factor is what the model's own formula gives for an output of one where x is zero.
        """
        one = torch.ones(len(sigmas), 1, 1, 1, dtype=sigmas.dtype, device=sigmas.device)
        return (denoised - latents) / self.sampling.calculate_denoised(sigmas, one, torch.zeros_like(one))
