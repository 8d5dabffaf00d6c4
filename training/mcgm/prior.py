"""Ordinary pictures of the untrained model, which a training looks at so as not to forget them (prior preservation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STEPS = 20
CFG = 7.0
AT_ONCE = 4


def painted(
    model: Any, clip: Any, prompt: str, shape: tuple[int, int, int, int], seed: int, on_picture: Callable[[int, int], None] | None = None
) -> Tensor:
    """Latents of `shape` [B, C, h, w] as a VAE gives them, painted by the given MODEL from a prompt, as KSampler does.

    `on_picture` is told how many are done, and of how many; what it raises interrupts.
    """
    import comfy.sample

    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
    latents = torch.zeros(shape)
    noise = comfy.sample.prepare_noise(latents, seed)
    found = []
    for first in range(0, len(latents), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        found.append(
            comfy.sample.sample(
                model, noise[part], STEPS, CFG, "euler", "normal", positive, negative, latents[part], seed=seed, disable_pbar=True
            ).float().cpu()
        )  # fmt: skip
        if on_picture is not None:
            on_picture(min(first + AT_ONCE, len(latents)), len(latents))
    with torch.inference_mode(False):
        return torch.cat(found).clone()
