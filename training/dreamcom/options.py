"""What DreamCom's training is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..data import references
from ..engine import loop
from ..engine import options as engine
from ..engine.options import option
from ..engine.trainable_weights import Method

USUAL_RATE: dict[str, float] = {"lora": 1e-4, "full": 5e-6}
"""The published rate for all weights, and the usual one for a LoRA, for a UNet of `USUAL_WIDTH` channels.

Adam's best rate goes with one over a network's width (Yang et al., "Tensor Programs V"), so a narrower UNet takes more.
"""
USUAL_WIDTH = 320


@dataclass(frozen=True)
class Options:
    """What the artist sets. `rate` None is the method's usual one. `method` auto is settled before anything is trained."""

    token: str = option("sks", "A rare word that is to stand for the subject. Write it into your prompts later.")
    noun: str = option("object", "What the subject is, in one plain word.")
    steps: int = engine.steps(
        400, "How long it learns: more brings a closer likeness, far too many only repeat the pictures. The paper takes 400 steps."
    )
    rate: float | None = engine.rate(
        None,
        "How fast it learns: too high spoils the pictures, too low leaves the subject unlearned. 0 takes the usual one: 0.0001 "
        "for lora, the paper's 0.000005 for full (for a model of SD 1.5's or SDXL's width; more for a narrower one).",
    )
    method: Method | Literal["auto"] = engine.method(
        "lora",
        "What learns, and how large the file becomes. lora: a small file beside the checkpoint. full: all of the UNet's "
        "weights, as in the paper; takes about 16 GB for SD 1.5 and saves a file as large as the checkpoint's UNet. auto: full "
        "where the GPU holds it, else lora.",
    )
    rank: int = engine.rank()
    batch: int = engine.batch(1, "How evenly it learns: crops in each step, 1 in the paper. More needs more memory.")
    size: int = engine.size("How much detail it sees: the side of the training crops in pixels, 512 for SD 1.5, 1024 for SDXL.")
    seed: int = engine.seed()
    masked_attention: bool = engine.switch(
        True,
        "Keeps the pictures' backgrounds out of what the word learns: while training the text reaches the subject's box only, as "
        "in the paper.",
    )
    box_margin: float = engine.share(
        0.0,
        "Lets the subject stand in a box with some room around it: each training box is drawn larger on every side by up to "
        "this part of its size. 0: the tight box, as in the paper.",
    )
    average: float = engine.average(0.99, last="the last weights, as in the paper.")
    checkpointing: bool = engine.checkpointing()

    @property
    def prompt(self) -> str:
        return f"a photo of {self.token} {self.noun}"

    def settings(self, width: int) -> loop.Settings:
        """For a UNet of `width` channels."""
        rate = USUAL_RATE[self.method] * USUAL_WIDTH / width if self.rate is None else self.rate
        return loop.Settings(self.steps, rate, self.seed, average=self.average)

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """The shape of a batch of latents."""
        return self.batch, 4, self.size // 8, self.size // 8

    def fingerprint(self, pictures: Sequence[references.Reference], model: str = "") -> str:
        """Says what is trained on what, `model` being its signature.

        The number of steps is not part of it, so that a training can be made longer, nor is what changes memory alone.
        """
        return f"dreamcom 1 {replace(self, steps=0, checkpointing=True)} {references.fingerprint(pictures)} {model}"
