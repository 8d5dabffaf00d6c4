"""MCGM's training as a Job: one picture, its subjects' masks and words in; handles, a mask encoder and a LoRA out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ...models.mcgm.mask_encoder import MaskEncoder
from ..engine import job, loop, memory
from ..engine.checkpoint import signature, signature_of
from ..engine.learner import Learner
from ..engine.preview import paint
from ..engine.text_learner import TextLearner
from ..engine.trainable_weights import Method
from . import examples as pictures
from . import prior
from .checks import check, doubts, fitted, scene_of
from .examples import Examples
from .loss import Loss, Prior
from .options import Options
from .scene import Scene
from .subjects import Subjects

WIDGETS_OF_STEPS = ("steps", "weight_steps")
"""What an artist sets the steps of the two phases with."""


@dataclass(frozen=True)
class Learned:
    """`vectors`: of each subject's handle, by text encoder, as `handles.save` takes them. `encoder` is on the CPU; None for Break-A-Scene.
    `lora`: what model and text encoder learned, as core's LORA_MODEL."""

    vectors: tuple[dict[str, Tensor], ...]
    encoder: MaskEncoder | None
    lora: dict[str, Tensor]


@dataclass(kw_only=True)
class MCGM(job.Job[Learned]):
    """The subjects of `scene`, which is fitted to the training's size. `given`: the MODEL, CLIP and VAE, which are only read."""

    method = "mcgm"

    options: Options
    scene: Scene | None = None
    given: tuple[Any, Any, Any] = (None, None, None)
    subjects: Subjects | None = None
    examples: Sequence[Examples] = ()
    whole: Examples | None = None
    ordinary: Prior | None = field(default=None)

    def fetch(self, step: int) -> bool:
        if self.examples or self.scene is None:
            return False
        options = self.options
        model, clip, vae = self.given
        told = partial(self.tell, "Encoding crops")
        # As many however few steps are asked for, so that a training that is made longer goes on with the same.
        self.examples = pictures.encode(self.scene, vae, options.background, options.move, options.variations, options.seed, told)
        self.whole = pictures.whole(self.scene, vae)
        if options.prior_weight:
            shape = (options.prior_pictures, *options.latents(self.scene)[1:])
            painting = partial(self.tell, "Painting ordinary pictures")
            self.ordinary = Prior(prior.painted(model, clip, options.prior_prompt, shape, options.seed, painting), options.prior_prompt)
        return True

    def begin(self) -> None:
        if self.subjects is None:
            self.subjects = Subjects(self.learner, self.options)

    @property
    def learning(self) -> Subjects:
        """What learns beside the UNet."""
        if self.subjects is None:
            raise RuntimeError("the training has not begun")
        return self.subjects

    def parameters(self, phase: int) -> dict[str, nn.Parameter]:
        return self.learning.parameters(phase + 1)

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        return self._loss(step, generator)

    @cached_property
    def _loss(self) -> Loss:
        return Loss(self.learning, self.examples, self.options, self.ordinary)

    def preview(self) -> Tensor:
        if self.whole is None:
            raise RuntimeError("the picture has not been encoded")
        return preview(self.learning, self.whole, self.given[2])

    def finish(self, done: loop.Progress) -> Learned:
        text = self.learning.text
        vectors = tuple(text.handle(number) for number in range(len(self.options.words)))
        encoder = self.learning.encoder
        return Learned(vectors, None if encoder is None else encoder.cpu(), self.learner.learned())


def prepare(
    model: Any,
    clip: Any,
    vae: Any,
    image: Tensor,
    masks: Tensor,
    options: Options,
    tell: job.Tell = job.quiet,
    process: int = 0,
    disk: int | None = None,
    begun: job.Begun = job.never,
) -> MCGM:
    """A training on an IMAGE and its subjects' MASK batch, checked and ready for `engine.job.run`; the given models are only read.

    `disk`: bytes that are free for its states, if that is known. `begun` says of fingerprints whether such a training has a state of its
    last phase. ValueError, in the artist's words, for what cannot be trained.
    """
    scene = scene_of(image, masks, options)
    doubtful = doubts(scene.masks, options)
    check(model, clip, vae, options, scene)
    scene = fitted(scene, options)
    batch, channels, height, width = options.latents(scene)
    batches = 2 if options.prior_weight > 0 else 1  # one of the prior is held beside the picture's
    shape = (batches * batch, channels, height, width)
    known = f"{signature(model, job.encoded(clip, *options.words))} {signature_of(vae.first_stage_model)}"
    method = options.method
    if method == "auto":
        text_weights = sum(value.numel() for value in clip.patcher.model.parameters())
        full = memory.estimate_full(model, shape, options.checkpointing, options.average > 0, text_weights)
        there = partial(_begun_with, options, scene, known, begun)
        method = memory.chosen(model.load_device, full, disk, there)
        options = replace(options, method=method)
    text = TextLearner(clip, options.words, method, options.rank, options.seed)
    learner = Learner(model, method, options.rank, options.seed, options.checkpointing, text)
    beside = sum(part.numel() for part in text.parameters.values())
    memory.check(memory.estimate(learner, shape, options.checkpointing, options.average > 0, beside), learner.device, method)
    fingerprints = _fingerprints(options, scene, known)
    return ready(learner, options, fingerprints, scene=scene, given=(model, clip, vae), tell=tell, process=process, doubts=doubtful)


def _fingerprints(options: Options, scene: Scene, known: str) -> list[str]:
    return [options.fingerprint(phase, scene, known) for phase in (1, 2)]


def _begun_with(options: Options, scene: Scene, known: str, begun: job.Begun, method: Method) -> bool:
    return begun(_fingerprints(replace(options, method=method), scene, known))


def ready(learner: Learner, options: Options, fingerprints: Sequence[str] = ("", ""), **more: Any) -> MCGM:
    """The job of a learner with its text encoder, without any check; `more` are fields of `MCGM`."""
    steps = enumerate(zip(fingerprints, WIDGETS_OF_STEPS, strict=True), 1)
    phases = tuple(job.Phase(options.settings(phase, learner.width), own, widget) for phase, (own, widget) in steps)
    parts = {**learner.parameters, **(learner.text.parameters if learner.text is not None else {})}
    return MCGM(learner=learner, phases=phases, weights=sum(part.numel() for part in parts.values()), options=options, **more)


@torch.no_grad()
def preview(subjects: Subjects, whole: Examples, vae: Any) -> Tensor:
    """Each subject by itself where it stands in the picture, painted by what was learned so far, side by side: [1, H, N W, 3].

    `whole` is the picture with all subjects. The learner goes on as if nothing had been.
    """
    learner = subjects.learner
    count = whole.subjects.shape[1]
    try:
        cells = whole.cells[0][whole.subjects[0].argsort()][:, None]
        positive = subjects.prompts([(number,) for number in range(count)], cells).conditioning
        negative = subjects.without_subjects("", 1, count)
        latents = paint(learner, positive, negative, torch.zeros_like(whole.latents[:1]).repeat(count, 1, 1, 1), {})
        return torch.cat(list(vae.decode(latents)), 1)[None]
    finally:
        learner.load()
