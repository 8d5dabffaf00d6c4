"""DreamCom's training as a Job: pictures of one subject in, a LoRA (or all weights' differences) out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.references import Reference, doubts
from ..engine import job, loop, memory
from ..engine.checkpoint import signature, signature_of
from ..engine.learner import Learner
from ..engine.preview import paint
from ..engine.trainable_weights import Method
from .checks import check
from .examples import Examples, encode
from .loss import Loss
from .options import Options

TOLD = ("method", "token", "noun", "prompt", "rank", "batch", "size", "seed", "masked_attention", "box_margin", "average")
"""The options that go into a file's metadata."""


@dataclass(frozen=True)
class Learned:
    """`lora`: what was learned, as core's LORA_MODEL; `about` says how, for a file's metadata."""

    lora: dict[str, Tensor]
    about: dict[str, Any]


@dataclass(kw_only=True)
class DreamCom(job.Job[Learned]):
    """The subject of `pictures` tuned into the learner's UNet. `texts` are CONDITIONINGs of the prompt and of nothing."""

    method = "dreamcom"

    options: Options
    texts: tuple[Any, Any]
    pictures: Sequence[Reference] = ()
    vae: Any = None
    examples: Examples | None = None

    def fetch(self, step: int) -> bool:
        if self.examples is not None:
            return False
        self.examples = encode(self.pictures, self.vae, self.options, on_crop=partial(self.tell, "Encoding crops"))
        return True

    def parameters(self, phase: int) -> dict[str, nn.Parameter]:
        return self.learner.parameters

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        return self._loss(step, generator)

    @cached_property
    def _loss(self) -> Loss:
        return Loss(self.learner, self._encoded, self.texts[0], self.options)

    @property
    def _encoded(self) -> Examples:
        if self.examples is None:
            raise RuntimeError("the crops have not been encoded: ask `fetch` first")
        return self.examples

    def preview(self) -> Tensor:
        """The first crop's box, painted by what was learned so far: [1, S, S, 3]."""
        first = slice(0, 1)
        examples = self._encoded
        values = examples.values(first)
        patches = examples.patches(first) if self.options.masked_attention else ()
        latents = paint(self.learner, *self.texts, examples.latents[first], values, values["concat_mask"], patches)
        return self.vae.decode(latents)

    def finish(self, done: loop.Progress) -> Learned:
        base = {"format": "maskprompt-dreamcom-1", "width": self.learner.width}
        about = {name: getattr(self.options, name) for name in TOLD}
        return Learned(self.learner.learned(), {**base, **about, "steps": done.step, "rate": self.phases[0].settings.learning_rate})


def prepare(
    model: Any,
    clip: Any,
    vae: Any,
    pictures: Sequence[Reference],
    options: Options,
    tell: job.Tell = job.quiet,
    process: int = 0,
    disk: int | None = None,
    begun: job.Begun = job.never,
) -> DreamCom:
    """A training of one subject, checked and ready for `engine.job.run`; the given models are only read.

    `disk`: bytes that are free for its state, if that is known. `begun` says of fingerprints whether such a training has a state.
    ValueError, in the artist's words, for what cannot be trained.
    """
    check(model, clip, vae, options, pictures)
    texts = job.encoded(clip, options.prompt, "")
    known = f"{signature(model, texts)} {signature_of(vae.first_stage_model)}"
    method = options.method
    if method == "auto":
        full = memory.estimate_full(model, options.latents, options.checkpointing, options.average > 0)
        there = partial(_begun_with, options, pictures, known, begun)
        method = memory.chosen(model.load_device, full, disk, there)
        options = replace(options, method=method)
    learner = Learner(model, method, options.rank, options.seed, options.checkpointing)
    memory.check(memory.estimate(learner, options.latents, options.checkpointing, options.average > 0), learner.device, method)
    fingerprint = options.fingerprint(pictures, known)
    return ready(learner, texts, options, fingerprint, pictures=pictures, vae=vae, tell=tell, process=process, doubts=doubts(pictures))


def _begun_with(options: Options, pictures: Sequence[Reference], known: str, begun: job.Begun, method: Method) -> bool:
    return begun([replace(options, method=method).fingerprint(pictures, known)])


def ready(learner: Learner, texts: Sequence[Any], options: Options, fingerprint: str = "", **more: Any) -> DreamCom:
    """The job of a learner, of CONDITIONINGs of the prompt and of nothing, without any check; `more` are fields of `DreamCom`."""
    phase = job.Phase(options.settings(learner.width), fingerprint)
    weights = sum(value.numel() for value in learner.parameters.values())
    positive, negative = texts
    return DreamCom(learner=learner, phases=(phase,), weights=weights, options=options, texts=(positive, negative), **more)
