"""A checkpoint that paints for the papers' tables, in process, by the functions that ComfyUI's stock nodes call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CELL = 8
"""Pixels of a picture for each cell of a latent, on each side."""
BLOCK = 2**24


@dataclass(frozen=True)
class Sampling:
    """What KSampler is set to."""

    sampler: str
    scheduler: str
    steps: int
    cfg: float


class Painter:
    """MODEL, CLIP and VAE of a checkpoint. Pictures are [B, H, W, 3] in 0..1 on the CPU."""

    def __init__(self, checkpoint: str) -> None:
        from maskprompt.training.command import comfyui

        self.model, self.clip, self.vae = comfyui.load_checkpoint(checkpoint)

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        return self.model, self.clip, self.vae

    @torch.no_grad()
    def text(self, prompt: str, clip: Any = None, **values: Any) -> list[Any]:
        """The CONDITIONING of a prompt, with further values as ComfyUI's nodes set them; `clip` in place of the checkpoint's own."""
        encoder = self.clip if clip is None else clip
        return with_values(encoder.encode_from_tokens_scheduled(encoder.tokenize(prompt)), values)

    def empty(self, count: int, height: int, width: int) -> Tensor:
        """Latents of nothing, for pictures of this size."""
        return torch.zeros(count, 4, height // CELL, width // CELL)

    @torch.no_grad()
    def paint(
        self, how: Sampling, positive: Any, negative: Any, latents: Tensor, seed: int, model: Any = None, mask: Tensor | None = None
    ) -> Tensor:
        """KSampler and VAE Decode: a picture for each latent [B, 4, h, w]. `mask` [1, 1, H, W] keeps the latents outside of it."""
        import comfy.sample

        noise = comfy.sample.prepare_noise(latents, seed)
        done = comfy.sample.sample(
            self.model if model is None else model, noise, how.steps, how.cfg, how.sampler, how.scheduler, positive, negative, latents,
            noise_mask=mask, seed=seed, disable_pbar=True,
        )  # fmt: skip
        return self.vae.decode(done)[..., :3].float().cpu().clamp(0, 1)


def with_values(conditioning: Sequence[Any], values: Mapping[str, Any]) -> list[Any]:
    """The CONDITIONING with these values set on each of its texts."""
    return [[text, {**options, **values}] for text, options in conditioning]


def sha_of(*files: str | Path) -> str:
    """16 hexadecimal digits that tell the contents of these files, in this order, from others."""
    digest = hashlib.sha256()
    for file in files:
        with Path(file).open("rb") as opened:
            while block := opened.read(BLOCK):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def seed_of(case: str, seed: int) -> int:
    """The noise of a case: its own, whichever of the cases are painted and in which order; the same for every row of a table."""
    return int(hashlib.sha256(f"{case} {seed}".encode()).hexdigest()[:8], 16)
