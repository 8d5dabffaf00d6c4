"""What an artist sets for MCGM's training, and what is checked before anything is encoded."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...images import masks
from ...models.mcgm.mask_encoder import Mode
from ..data.references import SMALLEST
from ..engine import loop
from ..engine.checks import ENLARGED, check_parts, check_size, check_unet
from ..engine.trainable_weights import Method
from .examples import Background, Scene

log = logging.getLogger(__name__)

USUAL_RATE: dict[Method, float] = {"lora": 1e-4, "full": 2e-6}
"""Of the second phase: the published rate for all weights, and the usual one for a LoRA, for a UNet of `USUAL_WIDTH` channels (a narrower
one takes more, as `dreamcom.USUAL_RATE` says)."""
USUAL_WIDTH = 320
OWN = ("handles.", "mask_encoder.")
LATE = 0.2
"""What the first phase trains goes on at this part of its rate beside a LoRA; in `full` everything has one rate, as in the paper."""
BETAS = (0.9, 0.99)
DECAY = 1e-8
"""Of the paper's Adam. So small a decay is the same in Adam and AdamW, to far less than a step's rounding."""
PLAIN = " on a plain background"
"""What the prompt says of a plain background that is learned too, so that it does not become part of the subject."""
OVERLAP = 0.1
"""Masks that share more than this part of the smaller one are warned of."""


@dataclass(frozen=True)
class Options:
    """`words`: for each subject the plain word that its handle begins as.

    `steps` and `weight_steps` are of the first and the second phase. `rate` None is the method's usual one in the second. `masks` off
    trains without mask tokens: Break-A-Scene. `attention_weight` and `mask_attention_weight` are the paper's two lambdas. There they are
    0.01 and 0.3, and the mask encoder never learned; with them masks pose nothing after so few steps. `background_weight`: how much the
    error outside of the subjects counts; 0 in the paper (equation 1), where subjects spread beyond their masks. `average`: the decay of a
    moving average of what the second phase learns, 0 in the paper.
    """

    words: tuple[str, ...]
    steps: int = 400
    weight_steps: int = 400
    handle_rate: float = 5e-4
    rate: float | None = None
    method: Method = "lora"
    rank: int = 16
    batch: int = 1
    size: int = 512
    seed: int = 0
    background: Background = "plain"
    move: bool = True
    masks: bool = True
    mode: Mode = "bound"
    attention_weight: float = 0.3
    mask_attention_weight: float = 3.0
    background_weight: float = 0.3
    prior_weight: float = 0.0
    prior_prompt: str = "a photo at the beach"
    prior_pictures: int = 20
    average: float = 0.0
    checkpointing: bool = True

    def settings(self, phase: int, width: int) -> loop.Settings:
        """Of phase 1 or 2, for a UNet of `width` channels."""
        if phase == 1:
            return loop.Settings(self.steps, self.handle_rate, self.seed, DECAY, BETAS)
        rate = USUAL_RATE[self.method] * USUAL_WIDTH / width if self.rate is None else self.rate
        late = tuple((part, self.handle_rate * LATE) for part in OWN) if self.method == "lora" else ()
        return loop.Settings(self.weight_steps, rate, self.seed + 1, DECAY, BETAS, average=self.average, rates=late)

    def prompt(self, names: Sequence[str]) -> str:
        """The sentence that is trained with: "a photo of A and B"."""
        told = self.background == "plain" and self.background_weight > 0
        return "a photo of " + " and ".join(names) + (PLAIN if told else "")

    def latents(self, scene: Scene) -> tuple[int, int, int, int]:
        """The shape of a batch of latents of a fitted scene."""
        return self.batch, 4, scene.masks.shape[1] // 8, scene.masks.shape[2] // 8

    def fingerprint(self, phase: int, scene: Scene, model: str = "") -> str:
        """Says what is trained on what, `model` being its signature.

        A phase's own number of steps is not part of it, so that it can be made longer, nor is what changes memory alone. The first phase
        does not depend on the second.
        """
        same = replace(self, weight_steps=0, checkpointing=True)
        same = replace(same, steps=0, rate=None, method="lora", rank=0, average=0.0) if phase == 1 else same
        return f"mcgm 1 phase {phase} {same} {scene.fingerprint()} {model}"


def words_of(text: str) -> tuple[str, ...]:
    """The subjects' words in a text, separated by commas or lines."""
    return tuple(word.strip() for word in re.split(r"[,;\n]", text) if word.strip())


def scene_of(image: Tensor, marks: Tensor, options: Options) -> Scene:
    """The first picture of an IMAGE and its subjects' masks, a MASK batch. ValueError in the artist's words for what cannot be learned."""
    marked = masks.to_mask(marks, "masks").detach().float().cpu()
    picture = image[0, ..., :3].detach().float().cpu().clamp(0, 1)
    if len(image) > 1:
        log.warning("Train MCGM learns from one picture; the first of %d is taken.", len(image))
    if not bool(torch.isfinite(picture).all()):
        raise ValueError("the picture holds values that are no numbers (NaN): a node before it failed. Wire one that is whole.")
    if not options.words:
        raise ValueError("words is empty. Write one plain word for each subject, separated by commas, such as: cat, dog.")
    if len(marked) != len(options.words):
        raise ValueError(
            f"{_counted(len(options.words), 'word')} ({', '.join(options.words)}) but {_counted(len(marked), 'mask')}: give one mask for "
            "each word, in the same order, as a batch (SAM Mask makes one for each object; core's Mask Batch nodes join several)."
        )
    for number, (mask, word) in enumerate(zip(marked, options.words, strict=True), 1):
        if int((mask > 0.5).sum()) < SMALLEST:
            raise ValueError(f"mask {number} ({word}) marks nothing: point SAM Mask at that subject, or take its word away.")
    if marked.shape[1:] != picture.shape[:2]:
        raise ValueError(
            f"the picture is {picture.shape[1]} x {picture.shape[0]} pixels but its masks {marked.shape[2]} x {marked.shape[1]}: make the "
            "masks from the same picture, before or after both are resized."
        )
    for (first, one), (second, other) in itertools.combinations(enumerate(marked > 0.5, 1), 2):
        shared = float((one & other).sum() / torch.minimum(one.sum(), other.sum()))
        if shared > OVERLAP:
            log.warning("Train MCGM: masks %d and %d share %.0f %% of the smaller one: there the subjects are learned mixed.",
                        first, second, 100 * shared)  # fmt: skip
    return Scene(picture, marked)


def fitted(scene: Scene, options: Options) -> Scene:
    """The scene in the training's size. ValueError where a subject is too small to be seen in it."""
    small = scene.fitted(options.size)
    for number, (mask, word) in enumerate(zip(small.masks, options.words, strict=True), 1):
        if int((mask > 0.5).sum()) < SMALLEST:
            raise ValueError(
                f"mask {number} ({word}) marks too little: nothing is left of it where the picture has {small.masks.shape[2]} x "
                f"{small.masks.shape[1]} pixels for training. Crop the picture to the subjects first, or use a larger `size`."
            )
    return small


def check(model: Any, clip: Any, vae: Any, options: Options, scene: Scene) -> None:
    """ValueError, in the artist's words, for what cannot be trained; to be asked before anything is encoded."""
    check_unet(model)
    check_parts(model, clip, vae)
    check_size(options.size, [], "Train MCGM")
    _check_area(options.size, scene.masks.shape[1], scene.masks.shape[2])
    if options.masks and options.mask_attention_weight > 0 and options.attention_weight == 0:
        log.warning("Train MCGM: with attention_weight 0 mask_attention_weight has no effect: it is a part of it.")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _check_area(size: int, height: int, width: int) -> None:
    """ValueError for a picture that is much too small for the size that is trained with; a warning for a small one.

    What is fitted is the area: a long picture is not enlarged because its short side is short.
    """
    side = math.sqrt(height * width)
    if side * ENLARGED < size:
        raise ValueError(
            f"picture 1 is {width} x {height} pixels, too small for crops of {size}: it would be blurred, and so would what is learned. "
            f"Use a larger picture, or a `size` of at most {int(side * ENLARGED) // 8 * 8}."
        )
    if side < size:
        log.warning("Train MCGM: picture 1 (%d x %d) is enlarged to crops of %d pixels.", width, height, size)
