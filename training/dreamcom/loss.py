"""DreamCom's training (Lu et al., "DreamCom", sections 3, 4.1, 4.2 and 6.1): a subject tuned into an inpainting model.

Each reference's box is the inpainting mask, the picture without it the condition; the prompt holds a token for the subject;
text reaches the box only, through the same masked cross-attention that sampling uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.chain import Patch
from ...attention.grid import RegionMask
from ...attention.masked_attention import MaskedCrossAttention
from ..data import references
from ..engine import loop
from ..engine.checkpoint import StateFile
from ..engine.checks import check_model, check_parts, check_size, check_words
from ..engine.learner import Learner
from ..engine.noise import Schedule
from ..engine.preview import paint
from ..engine.trainable_weights import Method
from .augment import Augmentation

USUAL_RATE: dict[Method, float] = {"lora": 1e-4, "full": 5e-6}
"""The published rate for all weights, and the usual one for a LoRA, for a UNet of `USUAL_WIDTH` channels.

Adam's best rate goes with one over a network's width (Yang et al., "Tensor Programs V"), so a narrower UNet takes more.
"""
USUAL_WIDTH = 320
AT_ONCE = 8
CROPS_EACH = 40
"""Crops are encoded before training, so that the VAE need not stay loaded: this many of each reference at most."""


@dataclass(frozen=True)
class Options:
    """What the artist sets. `rate` None is the method's usual one; `size` is the side of the training crops in pixels.

    `box_margin` is `Augmentation.margin`.
    """

    token: str = "sks"
    noun: str = "object"
    steps: int = 400
    rate: float | None = None
    method: Method = "lora"
    rank: int = 16
    batch: int = 1
    size: int = 512
    seed: int = 0
    masked_attention: bool = True
    box_margin: float = 0.0
    average: float = 0.0
    checkpointing: bool = True

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


def check(model: Any, clip: Any, vae: Any, options: Options, pictures: Sequence[references.Reference]) -> None:
    """ValueError, in the artist's words, for what cannot be trained; to be asked before anything is encoded."""
    check_model(model)
    check_parts(model, clip, vae)
    check_words(options, clip)
    check_size(options.size, [(one.mask.shape[0], one.mask.shape[1]) for one in pictures], "Train DreamCom")


@dataclass(frozen=True)
class Examples:
    """Encoded crops: `latents` and `masked` [N, 4, h, w] as the VAE gives them, `boxes` bool [N, S, S], `valid` [N, 1, h, w]."""

    latents: Tensor
    masked: Tensor
    boxes: Tensor
    valid: Tensor

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a batch of latents."""
        channels, height, width = self.latents.shape[1:]
        return batch, channels, height, width

    def values(self, chosen: Tensor | slice) -> dict[str, Tensor]:
        """What InpaintModelConditioning sets on a prompt, for some of the crops."""
        return {"concat_latent_image": self.masked[chosen], "concat_mask": self.boxes[chosen][:, None].float()}

    def patches(self, chosen: Tensor | slice) -> tuple[Patch, ...]:
        """Masked cross-attention (section 4.2) for some of the crops."""
        return (MaskedCrossAttention(RegionMask(self.boxes[chosen].float())),)


def encode(
    pictures: Sequence[references.Reference],
    vae: Any,
    options: Options,
    augmentation: Augmentation | None = None,
    on_crop: Callable[[int, int], None] | None = None,
) -> Examples:
    """Random crops of the references and what an inpainting model is shown of them, through the VAE.

    `on_crop` is told how many are done, and of how many; what it raises interrupts. ValueError where the VAE gives no numbers.
    """
    rng = np.random.default_rng(options.seed)
    take = augmentation or Augmentation(margin=options.box_margin)
    count = max(len(pictures), min(CROPS_EACH * len(pictures), options.steps * options.batch))
    latents = []
    masked = []
    boxes = []
    valid = []
    # Not in inference mode, in which ComfyUI runs nodes: what is made there cannot take part in a gradient.
    with torch.inference_mode(False), torch.no_grad():
        for first in range(0, count, AT_ONCE):
            crops = [take(pictures[number % len(pictures)], options.size, rng) for number in range(first, min(first + AT_ONCE, count))]
            images = torch.stack([crop.image for crop in crops])
            box = torch.stack([crop.box for crop in crops])
            latents.append(references.finite(vae.encode(images).float().cpu()))
            masked.append(references.finite(vae.encode((images - 0.5) * (1 - box[..., None]) + 0.5).float().cpu()))
            boxes.append(box > 0.5)
            valid.append(F.interpolate(torch.stack([crop.valid for crop in crops])[:, None], size=latents[-1].shape[-2:], mode="area"))
            if on_crop is not None:
                on_crop(first + len(crops), count)
        return Examples(*(torch.cat(parts) for parts in (latents, masked, boxes, valid)))


class Loss:
    """Equation 1 over what is no padding. `conditioning` is the prompt's, of one row."""

    def __init__(self, learner: Learner, examples: Examples, conditioning: Any, options: Options) -> None:
        self.learner = learner
        self.examples = examples
        self.conditioning = conditioning
        self.options = options
        self.schedule = Schedule(learner.patcher.get_model_object("model_sampling"))

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Of a batch drawn with `generator`."""
        chosen = torch.randint(len(self.examples.latents), (self.options.batch,), generator=generator)
        noise = torch.randn(self.examples.shape(len(chosen)), generator=generator)
        return self.of(chosen, noise, self.schedule.draw(len(chosen), generator))

    def of(self, chosen: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Of some crops [B] under this noise [B, 4, h, w] of these levels [B]."""
        device = self.learner.device
        examples = self.examples
        latents = self.learner.network.process_latent_in(examples.latents[chosen].to(device))
        noise = noise.to(device)
        sigmas = sigmas.to(device)
        conditions = self.learner.conditions(self.conditioning, latents, examples.values(chosen))
        patches = examples.patches(chosen) if self.options.masked_attention else ()
        denoised = self.learner.denoised(self.schedule.noisy(latents, noise, sigmas), sigmas, conditions, patches)
        weight = (examples.valid[chosen] > 0.5).to(device).float().expand_as(latents)
        return (self.schedule.error(denoised.float(), latents, sigmas) ** 2 * weight).sum() / weight.sum().clamp(min=1)


def train(
    learner: Learner,
    examples: Examples,
    conditioning: Any,
    options: Options,
    state: Path | None = None,
    fingerprint: str = "",
    on_step: Callable[[loop.Progress], None] | None = None,
    **processes: Any,
) -> loop.Progress:
    """Tunes the subject into the learner (which must be loaded). The state file goes when the training is done.

    `processes` are `process` and `share` of `loop.run`.
    """
    keep = None if state is None else StateFile(state, fingerprint)
    with torch.enable_grad():
        loss = Loss(learner, examples, conditioning, options)
        progress = loop.run(learner.parameters, loss, options.settings(learner.width), keep, on_step, **processes)
    if keep is not None and processes.get("process", 0) == 0:
        keep.remove()
    return progress


def preview(learner: Learner, examples: Examples, vae: Any, positive: Any, negative: Any, masked_attention: bool = True) -> Tensor:
    """The first crop's box, painted by what was learned so far: [1, S, S, 3]. The learner goes on as if nothing had been."""
    first = slice(0, 1)
    values = examples.values(first)
    patches = examples.patches(first) if masked_attention else ()
    try:
        latents = paint(learner, positive, negative, examples.latents[first], values, values["concat_mask"], patches)
        with torch.no_grad():
            return vae.decode(latents)
    finally:
        learner.load()
