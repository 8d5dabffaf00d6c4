"""What MECA's training is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from ...attention.meca import Mode
from ...models.clip_vision.patch_visibility import HIDE, Visibility
from ..engine import loop
from ..engine import options as engine
from ..engine.options import option, written

CHUNK = 256
"""Samples are encoded so many at a time, so that neither VAE nor CLIP need stay loaded while the adapter learns."""


@dataclass(frozen=True)
class Options:
    """What the artist sets. What the paper does not have: `text_dropout`, as IP-Adapter's training does; and `blank`, of the samples with
    a region, which is what the unconditional half of guidance sees in a region."""

    steps: int = engine.steps(
        10_000,
        "How long it learns: pictures follow their images the better, the longer. The paper takes a million steps.",
        highest=10_000_000,
    )
    rate: float = engine.rate(
        1e-4, "How fast it learns: too high spoils the pictures, too low leaves images without effect. 0.0001 in the paper.", lowest=1e-9
    )
    weight_decay: float = option(0.01, "AdamW's weight decay.", lowest=0.0, advanced=True)
    batch: int = engine.batch(4, "How evenly it learns: pictures in each step, 64 in the paper. More needs more memory.")
    size: int = engine.size("How much detail it sees: the side of the training crops in pixels. The paper takes 512, also for SDXL.")
    tokens: int = option(16, "How much of an image can reach the picture: into how many tokens it is compressed.", lowest=1, highest=256)
    mode: Mode = option(
        "region",
        "How text and image share a picture that has a region; Image Prompt Region takes the same one by itself. region: text "
        "outside, image inside. query: the paper's equation 6 to the letter. global: text everywhere, image inside.",
        choices=get_args(Mode),
    )
    text_only: float = engine.share(
        0.05, "Keeps the text from being drowned by images: this part of the samples has text and no image; 0.05 in the paper.", step=0.01
    )
    masked: float = engine.share(0.5, "How well the adapter knows regions: this part of the samples has one; half in the paper.")
    text_dropout: float = engine.share(
        0.05, "Lets an image work without a prompt too: this part of the samples loses its text. 0 is the paper's.", step=0.01
    )
    blank: float = engine.share(
        0.05, "Which part of those with a region is shown no image, as guidance's unconditional half is; 0 is the paper's.", step=0.01
    )
    threshold: float = engine.share(
        0.5,
        "How strictly a region's edge is kept, as in Hide in Reference: a patch is hidden when more than this part of it lies "
        "outside of the region.",
        step=0.01,
    )
    visibility: Visibility = option(
        HIDE,
        "How the vision model is kept from seeing hidden patches; choose the same in Hide in Reference later. hide: they are left out. "
        "paper: equation 1, they are empty and keep their places.",
        choices=get_args(Visibility),
        advanced=True,
    )
    random_crop: bool = engine.switch(False, "Take any square of a picture instead of the middle one.")
    flip: bool = engine.switch(False, "Mirror half of the samples.")
    seed: int = engine.seed()
    average: float = engine.average(0.999)
    checkpointing: bool = engine.checkpointing()

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
        own = written(replace(self, steps=0, checkpointing=True), "visibility")
        return " ".join(["meca 1", own, *parts])
