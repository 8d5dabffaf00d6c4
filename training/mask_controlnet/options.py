"""What Mask-ControlNet's training is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..engine import loop
from ..engine import options as engine
from ..engine.options import option, written

USUAL_CHANNELS = 320
"""Channels of the UNet for which the usual rate is; a narrower one takes more, as `dreamcom.USUAL_RATE` says."""

Pairs = Literal["none", "grounds", "given"]
NONE: Pairs = "none"
GROUNDS: Pairs = "grounds"
GIVEN: Pairs = "given"


@dataclass(frozen=True)
class Options:
    """What the artist sets. A step takes `accumulate` times `batch` pictures. `rate` None is ControlNet's usual one."""

    steps: int = engine.steps(
        10_000, "How long it learns. A network of this kind keeps objects only after thousands of steps.", highest=10_000_000
    )
    rate: float | None = engine.rate(
        None,
        "How fast it learns: too high spoils the pictures, too low keeps nothing. 0: ControlNet's usual one, 0.00001 for a UNet of "
        "Stable Diffusion's width.",
    )
    weight_decay: float = option(0.01, "AdamW's weight decay.", lowest=0.0, advanced=True)
    batch: int = engine.batch(4, "How evenly it learns: pictures at a time. More needs more memory.")
    accumulate: int = option(
        1,
        "Learns as evenly as from a larger batch, with the memory of a small one: so many batches make a step.",
        lowest=1,
        highest=1024,
        advanced=True,
    )
    size: int = engine.size(
        "How much detail it sees: pictures are scaled to about this square in pixels, in their own proportions: 512 for SD 1.5, "
        "1024 for SDXL."
    )
    masked: bool = engine.switch(
        True,
        "On: the mask tells which object is kept. Off: trains on the bare reference, for comparison: the paper's ablation.",
        name="mask_prompt",
    )
    text_dropout: float = engine.share(0.1, "Lets the hint work without a prompt too: this part of the samples loses its text.", step=0.01)
    seed: int = engine.seed()
    average: float = engine.average(0.999)
    checkpointing: bool = engine.checkpointing()
    pairs: Pairs = option(
        NONE,
        "What the reference shows. none: the picture that is painted, as the paper trains. grounds: its object on the ground of another "
        "picture, so that nothing but the object is kept. given: a picture of your own, with the object in the same place.",
        choices=get_args(Pairs),
        advanced=True,
    )

    def settings(self, channels: int) -> loop.Settings:
        """For a UNet of so many channels at full resolution."""
        rate = 1e-5 * USUAL_CHANNELS / channels if self.rate is None else self.rate
        return loop.Settings(self.steps, rate, self.seed, self.weight_decay, average=self.average, accumulate=self.accumulate)

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """The shape of a batch of square pictures' latents."""
        return self.batch, 4, self.size // 8, self.size // 8

    def fingerprint(self, *parts: str) -> str:
        """Says what is trained on what: `parts` are the signatures of pictures and models.

        The number of steps is not part of it, so that a training can be made longer, nor is what changes memory alone.
        """
        own = written(replace(self, steps=0, checkpointing=True), "pairs")
        return " ".join(["mask-controlnet 1", own, *parts])
