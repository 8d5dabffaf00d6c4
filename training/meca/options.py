"""What MECA's training is asked for, and what it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...attention.meca import Mode
from ..engine import loop

CHUNK = 256
"""Samples are encoded so many at a time, so that neither VAE nor CLIP need stay loaded while the adapter learns."""


@dataclass(frozen=True)
class Options:
    """What the artist sets. `size` is the side of the training crops in pixels, `tokens` the c of equation 3.

    Of the samples, `text_only` are shown no image (section 4.1); of the others `masked` have a region: there the attention is `mode`,
    outside of it the text's alone. `threshold` is Patch Visibility's. The rest is not the paper's: `text_dropout` of the samples lose
    their text, as IP-Adapter's training does, and `blank` of those with a region are shown no image, which is what the unconditional
    half of guidance sees in a region. `random_crop` takes any square of a picture instead of the middle one, `flip` mirrors half of
    them.
    """

    steps: int = 10_000
    rate: float = 1e-4
    weight_decay: float = 0.01
    batch: int = 4
    size: int = 512
    tokens: int = 16
    mode: Mode = "region"
    text_only: float = 0.05
    masked: float = 0.5
    text_dropout: float = 0.05
    blank: float = 0.05
    threshold: float = 0.5
    random_crop: bool = False
    flip: bool = False
    seed: int = 0
    average: float = 0.0
    checkpointing: bool = True

    def settings(self) -> loop.Settings:
        return loop.Settings(self.steps, self.rate, self.seed, self.weight_decay, average=self.average)

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """The shape of a batch of latents."""
        return self.batch, 4, self.size // 8, self.size // 8

    @property
    def steps_per_chunk(self) -> int:
        """How many steps one chunk of samples serves."""
        return max(1, CHUNK // self.batch)

    def samples(self, chunk: int) -> int:
        """How many samples chunk number `chunk` holds: each of its steps takes `batch` of its own."""
        first = chunk * self.steps_per_chunk
        return self.batch * max(0, min(self.steps_per_chunk, self.steps - first))

    def fingerprint(self, *parts: str) -> str:
        """Says what is trained on what: `parts` are the signatures of pictures and models.

        The number of steps is not part of it, so that a training can be made longer, nor is what changes memory alone.
        """
        return " ".join(["meca 1", str(replace(self, steps=0, checkpointing=True)), *parts])


@dataclass(frozen=True)
class Examples:
    """Encoded samples, one entry for each in every field.

    `latents` [N, 4, h, w] as the VAE gives them. `features`: what the adapter's projection takes, the visible tokens of the last layer
    but one of the vision model, [M, features] each (`patch_visibility.own_tokens`). Zeros [1, features] are no image: just what
    `LoadedAdapter` gives the unconditional half of guidance, so that samples of text alone teach the adapter what no image is.
    `regions` [N, S, S], 0 or 1: where the image drives. `masked` bool [N]: whether the sample has a region; without one text and image
    both act everywhere (equation 4, lambda = 1), and `regions` is not looked at. `texts`: each sample's CONDITIONING.
    """

    latents: Tensor
    features: Sequence[Tensor]
    regions: Tensor
    masked: Tensor
    texts: Sequence[Any]

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, rows: slice) -> Examples:
        """Some of the samples."""
        return Examples(self.latents[rows], self.features[rows], self.regions[rows], self.masked[rows], self.texts[rows])
