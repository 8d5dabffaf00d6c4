"""A picture of what a model has learned so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...attention import chain
from .learner import Learner, with_values

STEPS = 12
CFG = 5.0


@torch.no_grad()
def paint(
    learner: Learner,
    positive: Any,
    negative: Any,
    latents: Tensor,
    values: dict[str, Any],
    mask: Tensor | None = None,
    patches: tuple[chain.Patch, ...] = (),
    seed: int = 0,
) -> Tensor:
    """Latents [B, C, h, w] painted by the loaded learner, as KSampler would; `values` are set on both conditionings.

    `mask` [B, 1, H, W] keeps the rest of `latents`. The learner must be loaded again before it goes on learning (`Learner.load`).
    """
    import comfy.sample

    noise = comfy.sample.prepare_noise(latents, seed)
    prompts = [with_values(conditioning, values) for conditioning in (positive, negative)]
    with learner.patched(*patches) as model:
        return comfy.sample.sample(
            model, noise, STEPS, CFG, "euler", "normal", prompts[0], prompts[1], latents, noise_mask=mask, seed=seed, disable_pbar=True
        )  # fmt: skip
