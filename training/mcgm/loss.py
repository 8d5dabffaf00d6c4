"""MCGM's training (Skaik et al., sections 3 and 4): subjects of one picture learned as handles, together with an encoder of their masks.

The first phase trains the handles' vectors and the mask encoder, the second the UNet and the text encoder as well. Without mask tokens it
is Break-A-Scene (Avrahami et al.), on which the paper builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention.chain import Scope
from ...attention.grid import to_grid
from ...attention.maps import Readings
from ...attention.probe import Probe, layers_near
from ..engine.noise import Schedule
from . import equations
from .examples import Examples
from .options import Options
from .subjects import Subjects


@dataclass(frozen=True)
class Prior:
    """Ordinary pictures that the untrained model painted, latents [E, 4, h, w] as a VAE gives them, and their prompt."""

    latents: Tensor
    prompt: str


class Loss:
    """Equation 4 on batches of examples, and prior preservation where there is a prior."""

    def __init__(self, subjects: Subjects, examples: Sequence[Examples], options: Options, prior: Prior | None = None) -> None:
        self.learner = subjects.learner
        self.subjects = subjects
        self.examples = examples
        self.options = options
        self.prior = prior
        self.schedule = Schedule(self.learner.patcher.get_model_object("model_sampling"))
        self.latent = (int(examples[0].latents.shape[2]), int(examples[0].latents.shape[3]))
        self.layers = layers_near(self.learner.network.diffusion_model, self.latent)

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Of a batch drawn with `generator`: of pictures that show equally many subjects, named in any order."""
        shown = self.examples[int(torch.randint(len(self.examples), (1,), generator=generator))]
        chosen = torch.randint(len(shown.latents), (self.options.batch,), generator=generator)
        places = torch.stack([torch.randperm(shown.subjects.shape[1], generator=generator) for _ in chosen])
        loss = self.of(shown, chosen, places, *self._noise(shown.latents, len(chosen), generator))
        return loss if self.prior is None else loss + self.options.prior_weight * self._of_prior(self.prior, generator)

    def of(self, shown: Examples, chosen: Tensor, places: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Of some examples [B] whose subjects are named in the order `places` [B, n], under noise [B, 4, h, w] of the levels [B]."""
        rows = list(zip(chosen, places, strict=True))
        cells, masks = (torch.stack([part[row][own] for row, own in rows]) for part in (shown.cells, shown.masks))
        orders = [tuple(shown.subjects[row][own].tolist()) for row, own in rows]
        prompts = self.subjects.prompts(orders, cells)
        readings = Readings()
        probe = Probe(prompts.columns, prompts.length, readings, Scope(self.layers))
        error = self._error(prompts.conditioning, shown.latents[chosen], noise, sigmas, probe)
        maps = readings.mean()
        grid = (int(maps.shape[2]), int(maps.shape[3]))
        window = (0, 0, *self.latent)
        wanted = torch.stack([torch.stack([to_grid(mask, self.latent, window, grid) for mask in row]) for row in masks])
        attention = equations.attention(maps, wanted.to(maps.device), self.options.mask_attention_weight)
        reconstruction = equations.masked(error, masks.amax(1, keepdim=True).to(error.device), self.options.background_weight)
        return equations.total(reconstruction, attention, self.options.attention_weight)

    def _of_prior(self, prior: Prior, generator: torch.Generator) -> Tensor:
        """Break-A-Scene's prior preservation: the plain error on ordinary pictures, with no mask's token."""
        chosen = torch.randint(len(prior.latents), (self.options.batch,), generator=generator)
        conditioning = self.subjects.without_subjects(prior.prompt, 1, len(chosen))
        return (self._error(conditioning, prior.latents[chosen], *self._noise(prior.latents, len(chosen), generator)) ** 2).mean()

    def _error(self, conditioning: Any, latents: Tensor, noise: Tensor, sigmas: Tensor, *patches: Any) -> Tensor:
        """What the model's output is too much, [B, 4, h, w]."""
        device = self.learner.device
        scaled = self.learner.network.process_latent_in(latents.to(device))
        noise = noise.to(device)
        sigmas = sigmas.to(device)
        conditions = self.learner.conditions(conditioning, scaled)
        denoised = self.learner.denoised(self.schedule.noisy(scaled, noise, sigmas), sigmas, conditions, patches)
        return self.schedule.error(denoised.float(), scaled, sigmas)

    def _noise(self, latents: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn((count, *latents.shape[1:]), generator=generator), self.schedule.draw(count, generator)
