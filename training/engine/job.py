"""A training as one object, a Job, and the one way to run it: nodes, train.py, demo and tables call `run`.

A method's `job.py` has `prepare(model, clip, vae, pictures, options, ...) -> Job`, which checks what was given, and a class that says
what learns, from which loss, what a preview shows and what leaves at the end. Everything else is here.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from . import checkpoint, loop
from .checkpoint import StateFile
from .learner import Learner

log = logging.getLogger(__name__)

NUMBER = 4
"""Bytes of a number in float32."""
MOMENTS = 2
"""The optimizer's, of each number."""
Result = TypeVar("Result")
"""What leaves a method's training: a LoRA, an adapter, handles with their encoder ..."""
Tell = Callable[[str, int, int], None]
"""Told what is being done before or between steps ("Encoding crops"), how much of it is done, and of how much. May raise to interrupt."""


Begun = Callable[[Sequence[str]], bool]
"""Says of the fingerprints of a training's phases whether its last one has a state on disk."""


def never(_fingerprints: Sequence[str]) -> bool:
    """Knows no state."""
    return False


def quiet(_what: str, _done: int, _count: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Phase:
    """A part of a training with an optimizer and a state of its own; most trainings have one.

    `fingerprint` says what is trained on what; a later phase's includes what the earlier ones depend on. `widget` is what an artist sets
    its steps with.
    """

    settings: loop.Settings
    fingerprint: str
    widget: str = "steps"


@dataclass(kw_only=True)
class Job(ABC, Generic[Result]):
    """A training that has been checked and is ready to `run`.

    `weights`: how many numbers learn, in the phase that has the most. `process` is the number of this process among several that learn
    together, each from samples of its own. `doubts` are sentences about what was given that an artist should read before it is learned.
    """

    method: ClassVar[str]
    """Begins the names of states."""

    learner: Learner
    phases: tuple[Phase, ...]
    weights: int
    tell: Tell = quiet
    process: int = 0
    doubts: tuple[str, ...] = ()

    @property
    def disk(self) -> int:
        """Bytes that its states take on disk, at most: what learns, two moments of it and an average, and the next one beside it."""
        average = max(phase.settings.average > 0 for phase in self.phases)
        return 2 * NUMBER * (MOMENTS + 1 + average) * self.weights

    @property
    def steps(self) -> int:
        """Of all phases together."""
        return sum(phase.settings.steps for phase in self.phases)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted through all phases from 1 on."""
        for phase in self.phases:
            if step <= phase.settings.steps:
                return phase.settings.learning_rate
            step -= phase.settings.steps
        return self.phases[-1].settings.learning_rate

    def fetch(self, step: int) -> bool:
        """Makes what step `step` of a phase needs from other models: encodes pictures or texts, unless that is done. True if it was not.

        Asked before the learner is loaded and before every step. Other models may push the learner off its device: it is put back.
        """
        return False

    def begin(self) -> None:
        """Makes what learns beside the learner, which is loaded; followed by `load`."""

    def load(self) -> None:
        """Puts the learner, and what learns beside it, on the device: after `begin`, and whenever other models may have been there."""
        self.learner.load()

    @abstractmethod
    def parameters(self, phase: int) -> dict[str, nn.Parameter]:
        """What learns in a phase, numbered from 0, by the names in its state. Asked after `begin`; the last phase has all."""

    @abstractmethod
    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        """Of a step of any phase, with random numbers drawn from `generator`; `fetch` has been asked for it. Loads no model."""

    @abstractmethod
    def preview(self) -> Tensor:
        """A picture [B, H, W, 3] of what was learned so far. It may push the learner off its device."""

    @abstractmethod
    def finish(self, done: loop.Progress) -> Result:
        """What leaves, copied to the CPU, while the learner is still loaded."""

    def painted(self) -> Tensor | None:
        """The preview, None where it fails: no training is lost for a picture. The learner goes on as if nothing had been."""
        from comfy.model_management import InterruptProcessingException

        try:
            with torch.no_grad():
                return self.preview()
        except InterruptProcessingException:  # a plain Exception in older versions
            raise
        except Exception as error:
            log.warning("The preview failed (%s: %s); training goes on.", type(error).__name__, error)
            return None
        finally:
            self.load()

    def state_files(self, folder: Path) -> tuple[StateFile, ...]:
        """Where the phases keep their states in a folder that many trainings share."""
        return self.states(checkpoint.named(folder, self.method, self.phases[0].fingerprint))

    def states(self, path: Path, every: int = 100) -> tuple[StateFile, ...]:
        """The same at a path, or beside it (see `checkpoint.files_of`), written every so many steps."""
        phases = self.phases
        return checkpoint.files_of(path, [one.fingerprint for one in phases], every, [one.widget for one in phases])


def run(
    job: Job[Result],
    states: Sequence[StateFile] = (),
    on_step: Callable[[loop.Progress], None] | None = None,
    share: Callable[[Sequence[Tensor]], None] | None = None,
) -> tuple[loop.Progress, Result]:
    """Trains all phases, from their states on where there are some (one for each phase, or none); how it went, and what leaves.

    A training whose states say that it is done is not done again: its result comes at once. `on_step` is called after each step, steps
    and losses counted through all phases, and may raise to interrupt (see `loop.run`, also for `share`).
    """
    with torch.inference_mode(False):
        if not _done(job, states):
            job.fetch(_first_step(job, states))
        with job.learner.loaded():
            done = train(job, states, on_step, share)
            return done, job.finish(done)


def train(
    job: Job[Any],
    states: Sequence[StateFile] = (),
    on_step: Callable[[loop.Progress], None] | None = None,
    share: Callable[[Sequence[Tensor]], None] | None = None,
) -> loop.Progress:
    """What `run` does while the learner is loaded."""
    job.begin()
    job.load()
    losses: list[float] = []
    everything = job.parameters(len(job.phases) - 1)

    def fetch(step: int) -> None:
        if job.fetch(step):
            job.load()

    with torch.enable_grad():
        for number, phase in enumerate(job.phases):
            learning = job.parameters(number)
            before = list(losses)
            for name, value in everything.items():
                value.requires_grad_(name in learning)

            def after(progress: loop.Progress, before: list[float] = before) -> None:
                if on_step is not None:
                    on_step(loop.Progress(len(before) + progress.step, before + progress.losses))

            state = states[number] if states else None
            losses += loop.run(learning, job.loss, phase.settings, state, after, job.process, share, fetch).losses
    return loop.Progress(len(losses), losses)


def _done(job: Job[Any], states: Sequence[StateFile]) -> bool:
    """Whether the states hold all steps of all phases."""
    return bool(states) and all(state.steps() == phase.settings.steps for state, phase in zip(states, job.phases, strict=True))


def _first_step(job: Job[Any], states: Sequence[StateFile]) -> int:
    """The step, in its phase, from which a training goes on."""
    for state, phase in zip(states, job.phases, strict=False):
        if (step := state.steps()) < phase.settings.steps:
            return step
    return 0


def encoded(clip: Any, *texts: str) -> list[Any]:
    """CONDITIONINGs of prompts, as the text nodes make them."""
    with torch.no_grad():
        return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]
