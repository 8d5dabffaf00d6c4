"""Mask-ControlNet's loss (equation 1): adapter and control network learn, everything else is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...conditioning.texts import Texts, together
from ..engine.noise import Schedule
from .branch import Branch
from .examples import Batch, Source


class Loss:
    """Computes equation 1 on batches of `source`, whose texts are known."""

    def __init__(self, branch: Branch, source: Source, texts: Texts) -> None:
        self.branch = branch
        self.source = source
        self.texts = texts
        self.learner = branch.learner
        self.schedule = Schedule(self.learner.patcher.get_model_object("model_sampling"))

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Of the batch that is drawn with `generator`, and noise drawn after it."""
        batch = self.source.load(self.source.plan(generator))
        latents = self.latents(batch)
        noise = torch.randn(latents.shape, generator=generator)
        return self.of(batch, latents, noise, self.schedule.draw(len(latents), generator))

    def latents(self, batch: Batch) -> Tensor:
        """Encodes what is to be painted: [B, 4, h, w] as the UNet sees it."""
        with torch.no_grad():
            encoded = self.branch.encoder(batch.image.to(self.learner.device))
            return self.learner.network.process_latent_in(encoded)

    def of(self, batch: Batch, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Of these pictures under this noise [B, 4, h, w] of these levels [B]."""
        device = self.learner.device
        on_device = Batch(batch.reference.to(device), batch.mask.to(device), batch.image, batch.texts)
        noise = noise.to(device)
        sigmas = sigmas.to(device)
        control = self.branch.acting(self.branch.hint(on_device))
        values: dict[str, Any] = {"latent_image": latents, "control": control}
        conditions = self.learner.conditions(together([self.texts[text] for text in batch.texts]), latents, values)
        denoised = self.learner.denoised(self.schedule.noisy(latents, noise, sigmas), sigmas, conditions)
        return (self.schedule.error(denoised.float(), latents, sigmas) ** 2).mean()
