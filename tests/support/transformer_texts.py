"""The words that regions on transformers are tested with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.attention import chain, prompt_regions
from maskprompt.attention.grid import RegionMask

from .tiny_transformers import TINIES, Tiny

TEXTS = (7, 5, 4)
"""How many words the prompt and two regions have."""
families = pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)


def masks(size: tuple[int, int]) -> list[torch.Tensor]:
    """Two masks [1, H, W] of a picture with this latent: a left part, and a lower part that overlaps it."""
    height, width = size[0] * 8, size[1] * 8
    left, lower = torch.zeros(1, height, width), torch.zeros(1, height, width)
    left[:, :, : width // 2] = 1
    lower[:, height * 5 // 9 :, width // 3 :] = 1
    return [left, lower]


def sample(
    model: Any, tiny: Tiny, size: tuple[int, int], text: torch.Tensor, batch: int = 1, cfg: float = 1.0,
    negative: torch.Tensor | None = None, steps: int = 2, frames: int | None = None, **options: Any,
) -> torch.Tensor:  # fmt: skip
    """Through ComfyUI's KSampler."""
    import comfy.sample

    noise = tiny.latent(size, batch, frames=frames)
    other = tiny.words(TEXTS[0], 90) if negative is None else negative
    both = [[[text, {**tiny.options, **tiny.beside(text), **options}]], [[other, {**tiny.options, **tiny.beside(other)}]]]
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", both[0], both[1], torch.zeros_like(noise), seed=3, disable_pbar=True
    )  # fmt: skip


def regions(tiny: Tiny, size: tuple[int, int], **more: Any) -> list[prompt_regions.PromptRegion]:
    given = {"strength": (1.0, 1.0), "replaces": (False, False), "apart": (0.0, 0.0), **more}
    return [
        region(
            tiny, tiny.words(TEXTS[number + 1], 20 + number), mask, strength=given["strength"][number],
            replaces=given["replaces"][number], apart=given["apart"][number], scope=chain.Scope(half="positive"),
        )
        for number, mask in enumerate(masks(size))
    ]  # fmt: skip


def region(tiny: Tiny, words: torch.Tensor, mask: torch.Tensor, **more: Any) -> prompt_regions.PromptRegion:
    """A region with these words, as its CONDITIONING brings them."""
    return prompt_regions.PromptRegion(words, RegionMask(mask), options=tiny.beside(words), **more)


def text_of(tiny: Tiny) -> torch.Tensor:
    return tiny.words(TEXTS[0], 10)


def close(result: torch.Tensor, wanted: torch.Tensor) -> None:
    scale = float(wanted.abs().max())
    torch.testing.assert_close(result / scale, wanted / scale, atol=1e-5, rtol=0)
