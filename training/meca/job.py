"""MECA's training as a Job: pictures with captions to an adapter that lets an image drive a region."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ...attention import ip_adapter_layers
from ...models.ip_adapter import adapter as meca_adapter
from ...models.ip_adapter import file as meca_file
from ...models.ip_adapter.network import Compression, MecaNetwork
from ..data.captions import Pictures
from ..engine import job, loop, memory
from ..engine.checkpoint import signature, signature_of
from ..engine.checks import check_text
from ..engine.learner import Learner
from ..engine.preview import paint
from .checks import check
from .examples import Examples, Source, width_of
from .keys import fresh, keys_of, patches_of, size
from .loss import Loss
from .options import Options

TOLD = (
    "rate", "weight_decay", "batch", "size", "masked", "text_only", "text_dropout", "blank", "threshold", "visibility", "seed", "average",
)  # fmt: skip
"""The options that go into a file's metadata."""


@dataclass(frozen=True)
class Learned:
    """The `adapter`, in half precision, as it is saved; `about` says how it was trained, for a file's metadata."""

    adapter: meca_adapter.LoadedAdapter
    about: dict[str, Any]


@dataclass(kw_only=True)
class Meca(job.Job[Learned]):
    """What learns is `network`, from the samples that `source` gives by the number of their chunk, the same ones each time.

    `features`: the width of the vision model's tokens. `base`: what it is trained on, in words. `show` gives the sample of the previews,
    `vae` and `negative`, the CONDITIONING of no text, are for these.
    """

    method = "meca"

    options: Options
    source: Callable[[int], Examples]
    features: int
    base: str = ""
    show: Callable[[], Examples] | None = None
    vae: Any = None
    negative: Any = None
    network: MecaNetwork = field(init=False)
    _loss: Loss = field(init=False)
    _chunk: tuple[int, Examples] | None = field(init=False, default=None)
    _shown: Examples | None = field(init=False, default=None)

    @override
    def fetch(self, step: int) -> bool:
        number = step // self.options.steps_per_chunk
        if self._chunk is not None and self._chunk[0] == number:
            return False
        self._chunk = None  # the old one goes before the new one comes
        with torch.no_grad():
            examples = self.source(number)
        if len(examples) < self.options.samples(number):
            raise ValueError(
                f"chunk {number} of the samples holds {len(examples)}; {self.options.samples(number)} are needed for its training steps."
            )
        self._chunk = number, examples
        return True

    @override
    def begin(self) -> None:
        self.network = fresh(self.learner, self.features, self.options)
        self._loss = Loss(self.learner, self.network, self.options)

    @override
    def load(self) -> None:
        self.learner.load()
        self.network.to(self.learner.device)

    @override
    def parameters(self, phase: int) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    @override
    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        return self._loss(self.batch(step), generator)

    def batch(self, step: int) -> Examples:
        """The samples of a step, which `fetch` has been asked for."""
        if self._chunk is None:
            raise RuntimeError("no samples have been encoded: ask `fetch` first")
        first = step % self.options.steps_per_chunk * self.options.batch
        return self._chunk[1].part(slice(first, first + self.options.batch))

    @override
    def preview(self) -> Tensor:
        """What the first picture's text and image paint by now, with its region: [1, S, S, 3]."""
        if self._shown is None:
            if self.show is None:
                raise RuntimeError("there is no sample to preview")
            self._shown = self.show()
        return preview(self.learner, self.network, self._shown, self.vae, self.negative, self.options)

    @override
    def finish(self, done: loop.Progress) -> Learned:
        told = {name: getattr(self.options, name) for name in TOLD} | {"steps": done.step}
        return Learned(finished(self.network, self.options, self.base, f"the adapter of {done.step} steps"), told)


def prepare(
    model: Any,
    clip: Any,
    vae: Any,
    clip_vision: Any,
    pictures: Pictures,
    options: Options,
    tell: job.Tell = job.quiet,
    process: int = 0,
    base: str = "",
    rounds: int = 0,
) -> Meca:
    """Makes a training that is ready to run; the given models are only read.

    `base`: what it is trained on, by default the model in words. `rounds`: so many chunks are encoded once, stay in memory and take turns;
    0 encodes new samples all the time. ValueError, in the artist's words, before anything is encoded, for what cannot be trained.
    """
    check(model, clip, vae, clip_vision, options, pictures)
    learner = Learner(model, "frozen", checkpointing=options.checkpointing)
    features = width_of(clip_vision)
    weights = size(learner, features, options)
    memory.check(
        memory.estimate(learner, options.latents, options.checkpointing, options.average > 0, weights), learner.device, learner.method
    )
    source = Source(pictures, clip, vae, clip_vision, options, process, partial(tell, "Encoding pictures"))
    (negative,) = job.encoded(clip, "")
    check_text(learner, negative)
    parts = [pictures.fingerprint(), signature(model, [negative]), signature_of(clip_vision.model), signature_of(vae.first_stage_model)]
    if rounds:
        parts.append(f"{rounds} rounds")
    base = base or meca_adapter.in_words(*ip_adapter_layers.widths(learner.network.diffusion_model))
    more: dict[str, Any] = {"base": base, "show": source.shown, "vae": vae, "negative": negative, "tell": tell, "process": process}
    samples = repeated(source, rounds) if rounds else source
    return ready(learner, samples, features, options, options.fingerprint(*parts), **more)


def ready(learner: Learner, source: Callable[[int], Examples], features: int, options: Options, fingerprint: str = "", **more: Any) -> Meca:
    """Makes the job of a learner and a source of samples, without any check; `more` are fields of `Meca`."""
    phase = job.Phase(options.settings(), fingerprint)
    known: dict[str, Any] = {"options": options, "source": source, "features": features}
    return Meca(learner=learner, phases=(phase,), weights=size(learner, features, options), **known, **more)


def repeated(source: Callable[[int], Examples], rounds: int) -> Callable[[int], Examples]:
    """Gives the first `rounds` chunks of a source again and again; each is encoded once and stays in memory."""
    known = functools.cache(source)
    return lambda chunk: known(chunk % rounds)


def preview(learner: Learner, network: MecaNetwork, examples: Examples, vae: Any, negative: Any, options: Options) -> Tensor:
    """Paints the first sample's text and image by what was learned so far, with its region: [1, S, S, 3].

    The learner has to be loaded again before it goes on learning.
    """
    first = examples.part(slice(0, 1))
    layers = ip_adapter_layers.numbered(learner.network.diffusion_model)
    with torch.no_grad():
        blank = torch.zeros(1, network.image_proj.features)
        keys = keys_of(network, layers, [first.features[0], blank.to(first.features[0])], 1)
        empty = torch.zeros_like(first.latents)
        return vae.decode(paint(learner, first.texts[0], negative, empty, {}, patches=patches_of(keys, first, options.mode)))


def about(network: MecaNetwork, options: Options, base: str) -> meca_file.About:
    """Says what goes with the weights; `base` is what they were trained on, in words."""
    projection = network.image_proj
    return meca_file.About(options.mode, meca_file.ZEROS, projection.heads if isinstance(projection, Compression) else 0, base)


def finished(network: MecaNetwork, options: Options, base: str, name: str) -> meca_adapter.LoadedAdapter:
    """Copies what was learned as an adapter for Image Prompt Region, in half precision, as it is saved."""
    with torch.inference_mode(False):
        weights = {key: value.detach().to("cpu", torch.float16, copy=True) for key, value in network.state_dict().items()}
        return meca_adapter.from_weights(weights, about(network, options, base), name)
