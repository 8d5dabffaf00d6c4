"""What a Train node shows while it works, and where it keeps its state."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from ..training.engine.job import Job
    from ..training.engine.loop import Progress

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class TrainingProgress:
    """The node's progress bar, its line of text, and previews. What is encoded `first` counts as the first tenth of the bar."""

    def __init__(self, node: str | None, steps: int, first: bool = True) -> None:
        from comfy.utils import ProgressBar

        self.node = node
        self.steps = steps
        self.ahead = max(1, steps // 10) if first else 0
        self.bar = ProgressBar(self.ahead + steps, node_id=node)
        self.first = ""
        self.notes: tuple[str, ...] = ()
        self.reached = 0

    def tell(self, what: str, done: int, count: int) -> None:
        """After a part of what is done before training or between its steps, such as "Encoding crops"."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        self.first = self.first or what
        if self.ahead and what == self.first:
            self.bar.update_absolute(done * self.ahead // count)
        self.say(f"{what}: {done} of {count}")

    def watcher(self, preview_every: int, preview: Callable[[], torch.Tensor | None]) -> Callable[[Progress], None]:
        """What to do after each step: bar, loss, a preview [B, H, W, 3] every so often (0: never), and the artist's interrupt."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        clock = Clock(self.steps)

        def after(progress: Progress) -> None:
            self.reached = progress.step
            throw_exception_if_processing_interrupted()
            shown = None
            if preview_every and progress.step % preview_every == 0 and progress.step < self.steps:
                image = preview()
                shown = None if image is None else ("JPEG", picture(image), 512)
            self.bar.update_absolute(self.ahead + progress.step, preview=shown)
            self.say(f"Step {progress.step} of {self.steps}, loss {progress.recent:.4f}{clock.left(progress.step)}")

        return after

    def say(self, text: str) -> None:
        """A line under the node, and below it what the artist should not miss; nothing without a server."""
        say(self.node, "\n".join((text, *self.notes)))

    def stopped(self, resume: bool, kept: int) -> None:
        """After an interrupt: of how many steps the states on disk are, and what the next Run does."""
        step = max(self.reached, kept if resume and kept <= self.steps else 0)
        if not step:
            self.say("Stopped before the first step.")
        elif kept < step:
            then = f"goes on from step {kept}" if kept and resume else "begins again"
            self.say(f"Stopped at step {step} of {self.steps}. Its state was not written, as the log says: the next Run {then}.")
        elif resume:
            self.say(f"Stopped at step {step} of {self.steps}. Nothing is lost: Run goes on from there.")
        else:
            then = "With resume off the next Run begins again; on, it goes on from there."
            self.say(f"Stopped at step {step} of {self.steps}. {then}")


class Clock:
    """Tells how long a training still takes, from the steps that it has seen."""

    def __init__(self, steps: int, now: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.now = now
        self.begun: tuple[int, float] | None = None

    def left(self, step: int) -> str:
        """ ", about 12 minutes left", after a step; nothing before two steps were seen, nor where it is less than half a minute."""
        if self.begun is None:
            self.begun = step, self.now()
            return ""
        first, begun = self.begun
        seconds = (self.now() - begun) * (self.steps - step) / max(1, step - first)
        return f", about {duration(seconds)} left" if seconds >= 30 else ""


def duration(seconds: float) -> str:
    """A time in an artist's words: "2 minutes", "3 hours 5 minutes"."""
    minutes = max(1, round(seconds / 60))
    hours, rest = divmod(minutes, 60)
    parts = [f"{count} {unit}{'s' if count > 1 else ''}" for count, unit in ((hours, "hour"), (rest, "minute")) if count]
    return " ".join(parts)


def say(node: str | None, text: str) -> None:
    """Shows a line under the node of that id; nothing without a server."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None and node is not None:
        instance.send_progress_text(text, node)


def picture(image: torch.Tensor) -> Any:
    """The first of an IMAGE batch as a Pillow image."""
    from PIL import Image

    return Image.fromarray((image[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def state_folder() -> Path:
    """Where trainings keep their states: in ComfyUI's output folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "maskprompt" / "training"


def free_disk() -> int | None:
    """Bytes that are free for states, None where the disk does not tell."""
    import folder_paths

    try:
        return shutil.disk_usage(folder_paths.get_output_directory()).free
    except OSError:
        return None


def begun(method: str, resume: bool) -> Callable[[Sequence[str]], bool]:
    """Says of a method's trainings, by the fingerprints of their phases, whether there is a state of the last; of none without `resume`."""
    from ..training.engine import checkpoint

    return lambda prints: resume and checkpoint.begun(checkpoint.named(state_folder(), method, prints[0]), prints)


def train(job: Job[Result], progress: TrainingProgress, preview_every: int, resume: bool) -> tuple[Progress, Result]:
    """Runs a job from its states on, or anew; how it went, and what leaves.

    The state of a finished training stays, so that nothing is lost where the next node fails: the same Run gives the result at once.
    """
    from comfy.model_management import InterruptProcessingException

    from ..training.engine import checkpoint
    from ..training.engine.job import run

    states = job.state_files(state_folder())
    if not resume:
        checkpoint.discard(states)
        states = tuple(replace(state, anew=True) for state in states)  # one that another training builds on is still there
    disk = checkpoint.room(job.disk, free_disk())
    log.info("%s", disk)
    progress.notes = (*job.doubts, disk)
    try:
        outcome = run(job, states, progress.watcher(preview_every, job.painted))
    except InterruptProcessingException:
        progress.stopped(resume, sum(replace(state, anew=False).steps() for state in states))
        raise
    if len(states) == 1:
        checkpoint.prune(states, job.method)
    return outcome
