"""DreamCom's training (Lu et al., "DreamCom", sections 3, 4.1, 4.2 and 6.1): a subject tuned into an inpainting model.

Each reference's box is the inpainting mask, the picture without it the condition; the prompt holds a token for the subject;
text reaches the box only, through the same masked cross-attention that sampling uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.learner import Learner
from ..engine.noise import Schedule
from .examples import Examples
from .options import Options


class Loss:
    """Equation 1 over what is no padding. `conditioning` is the prompt's, of one row."""

    def __init__(self, learner: Learner, examples: Examples, conditioning: Any, options: Options) -> None:
        self.learner = learner
        self.examples = examples
        self.conditioning = conditioning
        self.options = options
        self.schedule = Schedule(learner.patcher.get_model_object("model_sampling"))

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Of a batch drawn with `generator`."""
        chosen = torch.randint(len(self.examples.latents), (self.options.batch,), generator=generator)
        noise = torch.randn(self.examples.shape(len(chosen)), generator=generator)
        return self.of(chosen, noise, self.schedule.draw(len(chosen), generator))

    def of(self, chosen: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Of some crops [B] under this noise [B, 4, h, w] of these levels [B]."""
        device = self.learner.device
        examples = self.examples
        latents = self.learner.network.process_latent_in(examples.latents[chosen].to(device))
        noise = noise.to(device)
        sigmas = sigmas.to(device)
        conditions = self.learner.conditions(self.conditioning, latents, examples.values(chosen))
        patches = examples.patches(chosen) if self.options.masked_attention else ()
        denoised = self.learner.denoised(self.schedule.noisy(latents, noise, sigmas), sigmas, conditions, patches)
        weight = (examples.valid[chosen] > 0.5).to(device).float().expand_as(latents)
        return (self.schedule.error(denoised.float(), latents, sigmas) ** 2 * weight).sum() / weight.sum().clamp(min=1)
