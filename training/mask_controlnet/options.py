"""What Mask-ControlNet's training is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..engine import loop

USUAL_WIDTH = 320
"""Channels of the UNet for which the usual rate is; a narrower one takes more, as `dreamcom.USUAL_RATE` says."""
AHEAD = 64
"""The texts of so many steps are encoded at a time, so that CLIP need not stay loaded."""


@dataclass(frozen=True)
class Options:
    """What the artist sets.

    `size`: pictures are scaled and cropped to about its square in pixels, in their own proportions. `rate` None is ControlNet's usual
    one, 1e-5. A step takes `accumulate` times `batch` pictures. `masked` off trains without the mask prompt, on the bare reference
    (the paper's ablation). `text_dropout` of the samples lose their text, as in ControlNet's own training, where it is a half.
    """

    steps: int = 10_000
    rate: float | None = None
    weight_decay: float = 0.01
    batch: int = 4
    accumulate: int = 1
    size: int = 512
    masked: bool = True
    text_dropout: float = 0.1
    seed: int = 0
    average: float = 0.0
    checkpointing: bool = True

    def settings(self, width: int) -> loop.Settings:
        """For a UNet of `width` channels."""
        rate = 1e-5 * USUAL_WIDTH / width if self.rate is None else self.rate
        return loop.Settings(self.steps, rate, self.seed, self.weight_decay, average=self.average, accumulate=self.accumulate)

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """The shape of a batch of square pictures' latents."""
        return self.batch, 4, self.size // 8, self.size // 8

    def fingerprint(self, *parts: str) -> str:
        """Says what is trained on what: `parts` are the signatures of pictures and models.

        The number of steps is not part of it, so that a training can be made longer, nor is what changes memory alone.
        """
        return " ".join(["mask-controlnet 1", str(replace(self, steps=0, checkpointing=True)), *parts])
