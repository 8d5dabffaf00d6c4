"""Mask-ControlNet's training as a Job: pictures with captions and masks to a control network and its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ...conditioning.texts import Texts
from ...models.mask_controlnet.file import Content
from ..data.objects import Examples, doubts
from ..engine import job, loop
from ..engine.checkpoint import signature, signature_of
from ..engine.checks import check_text
from ..engine.learner import Learner
from ..engine.loop import random_numbers
from ..engine.preview import paint
from .branch import Branch, Encoder
from .checks import check, check_memory, weights
from .examples import Batch, Source
from .loss import Loss
from .options import Options

TOLD = ("weight_decay", "batch", "accumulate", "size", "text_dropout", "seed", "average", "pairs")
"""The options that go into a file's metadata."""
AHEAD = 64
"""The texts of so many steps are encoded at a time, so that CLIP need not stay loaded."""


@dataclass(frozen=True)
class Learned:
    """The `content` of a file; `about` says how it was trained, for its metadata."""

    content: Content
    about: dict[str, Any]


@dataclass(kw_only=True)
class MaskControlNet(job.Job[Learned]):
    """What learns is a `Branch`, from batches of `source`; `shown` is the picture of the previews, `prompts` its text and the empty one."""

    method = "mask-controlnet"

    options: Options
    source: Source
    vae: Any
    texts: Texts
    shown: Batch | None = None
    prompts: Sequence[Any] = ()
    encoder: Encoder | None = None
    branch: Branch = field(init=False)
    _loss: Loss = field(init=False)
    _known: int = field(init=False, default=-1)

    @property
    def lanes(self) -> range:
        """The numbers of this process's parts of a step (see `loop.run`)."""
        parts = self.options.accumulate
        return range(self.process * parts, (self.process + 1) * parts)

    @override
    def fetch(self, step: int) -> bool:
        steps = max(1, AHEAD // self.options.accumulate)
        if self._known == step // steps:
            return False
        self._known = step // steps
        first = self._known * steps
        seed = self.options.seed
        plans = [self.source.plan(random_numbers(seed, first + ahead, lane)) for ahead in range(steps) for lane in self.lanes]
        self.texts.know(text for plan in plans for text in plan.texts)
        return True

    @override
    def begin(self) -> None:
        self.branch = Branch(self.learner, self.vae, self.options, self.encoder)
        self._loss = Loss(self.branch, self.source, self.texts)

    @override
    def load(self) -> None:
        self.learner.load()
        self.branch.load()

    @override
    def parameters(self, phase: int) -> dict[str, nn.Parameter]:
        return self.branch.parameters

    @override
    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        return self._loss(step, generator)

    @override
    def preview(self) -> Tensor:
        """What the first picture's text and hint paint by now, beside its hint: [1, H, 2 W, 3]."""
        if self.shown is None:
            raise RuntimeError("there is no picture to preview")
        positive, negative = self.prompts
        return preview(self.branch, self.shown, self.vae, positive, negative)

    @override
    def finish(self, done: loop.Progress) -> Learned:
        told = {name: getattr(self.options, name) for name in TOLD}
        rate = self.phases[0].settings.learning_rate
        return Learned(self.branch.content(), told | {"steps": done.step, "rate": rate, "pictures": len(self.source.examples)})


def prepare(
    model: Any,
    clip: Any,
    vae: Any,
    examples: Examples,
    options: Options,
    tell: job.Tell = job.quiet,
    process: int = 0,
    encoder: Encoder | None = None,
) -> MaskControlNet:
    """Makes a training that is ready to run; the given models are only read.

    ValueError, in the artist's words, before anything is encoded, for what cannot be trained.

    `encoder` encodes the hint in place of the VAE's own, with the same latents.
    """
    check(model, clip, vae, options, examples)
    learner = Learner(model, "frozen", checkpointing=options.checkpointing)
    check_memory(learner, vae, options)
    source = Source(examples, options.batch, options.size, options.text_dropout, options.pairs)
    told = replace(source, text_dropout=0.0)  # what is previewed has its text
    shown = told.load(told.plan(random_numbers(options.seed, 0)))
    positive, negative = job.encoded(clip, shown.texts[0], "")
    check_text(learner, negative)
    fingerprint = options.fingerprint(examples.fingerprint(), signature(model, [negative]), signature_of(vae.first_stage_model))
    more: dict[str, Any] = {"shown": shown, "prompts": (positive, negative), "encoder": encoder, "tell": tell, "process": process}
    return ready(learner, vae, options, source, Texts(clip), fingerprint, doubts=doubts(examples), **more)


def ready(learner: Learner, vae: Any, options: Options, source: Source, texts: Texts, fingerprint: str = "", **more: Any) -> MaskControlNet:
    """Makes the job of a learner and a source of batches, without any check; `more` are fields of `MaskControlNet`."""
    phase = job.Phase(options.settings(learner.width), fingerprint)
    known: dict[str, Any] = {"options": options, "source": source, "vae": vae, "texts": texts}
    return MaskControlNet(learner=learner, phases=(phase,), weights=weights(learner), **known, **more)


def preview(branch: Branch, batch: Batch, vae: Any, positive: Any, negative: Any) -> Tensor:
    """Paints the first picture's text and hint by what was learned so far, beside its hint: [1, H, 2 W, 3].

    Learner and branch have to be loaded again before they go on learning.
    """
    device = branch.learner.device
    with torch.no_grad():
        shown = Batch(batch.reference[:1].to(device), batch.mask[:1].to(device), batch.image[:1], batch.texts[:1])
        hint = branch.hint(shown)
        # Encoded as in training: the sampler would do it in the midst of the model's own precision.
        control = branch.acting(hint).set_cond_hint(hint.cpu(), vae=vae)
        empty = torch.zeros(1, 4, hint.shape[2] // 8, hint.shape[3] // 8)
        painted = paint(branch.learner, positive, negative, empty, {"control": control, "control_apply_to_uncond": False})
        return torch.cat([hint.movedim(1, -1).cpu(), vae.decode(painted).cpu()], 2)
