"""One training: its files, its progress on the screen, and what an interrupt leaves behind."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...models import files
from ..engine import loop
from ..engine.checkpoint import StateFile, begun, discard, room
from ..engine.job import Job, run
from . import comfyui
from .processes import Processes
from .signals import Interrupted, Signals

Result = TypeVar("Result")
log = logging.getLogger(__name__)

DONE = "done"
BEAT = 1.0
"""Seconds between two signs of life of a process for which others wait."""


class Work:
    """One training: the command's arguments, this process, and the files that come of it. Serves every method."""

    def __init__(self, given: argparse.Namespace, processes: Processes, output: Path) -> None:
        self.given = given
        self.processes = processes
        self.output = output
        self.state = Path(given.state).expanduser() if given.state else output.with_suffix(".state.pt")
        self.preview = Path(given.preview).expanduser() if given.preview else None
        self.signals = Signals(processes.count == 1)
        self.started = False
        self.states: Sequence[StateFile] = ()
        self._bars: dict[str, Callable[[int, int], None]] = {}
        if processes.first:
            self._check_files()

    def _check_files(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ValueError(f"--out {self.output} must end in .safetensors.")
        if self.output.exists() and not self.given.overwrite:
            raise ValueError(f"{self.output} exists: choose another --out, or replace it with --overwrite.")
        if self.state.is_dir():
            raise ValueError(f"--state {self.state} is a folder: name a file in it, such as {self.state / 'training.state.pt'}.")
        for folder in (self.output.parent, self.state.parent, *([self.preview] if self.preview else [])):
            files.check_writable(folder)

    def checkpoint(self) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE of --checkpoint."""
        return comfyui.load_checkpoint(self.given.checkpoint)

    def free_disk(self) -> int | None:
        """Bytes that are free where the state lies, None where the disk does not tell."""
        try:
            return shutil.disk_usage(self.state.parent).free
        except OSError:
            return None

    def begun(self, fingerprints: Sequence[str]) -> bool:
        """Whether a training of these fingerprints has a state of its last phase where states lie."""
        return begun(self.state, fingerprints)

    def counter(self, what: str) -> Callable[[int, int], None]:
        """A bar for work before the training: to be called with how much is done, of how much."""
        from tqdm import tqdm

        bar = tqdm(desc=what, leave=False, disable=not self.processes.first)

        def count(done: int, of: int) -> None:
            bar.total = of
            bar.n = done
            bar.refresh()
            if done >= of:
                bar.close()

        return count

    def counted(self, what: str, beat: Callable[[], None]) -> Callable[[int, int], None]:
        """A bar for work that the first process does alone, and a beat after every part of it."""
        bar = self.counter(what)

        def count(done: int, of: int) -> None:
            bar(done, of)
            beat()

        return count

    def first_alone(self, do: Callable[[Callable[[], None]], None]) -> None:
        """`do(beat)` in the first process, while the others wait, however long it takes. `do` calls `beat` between its parts, which raises
        `Interrupted` in every process when one of them was asked to end."""
        with self.signals:
            if not self.processes.first:
                while not self._together():
                    pass
                return
            last = time.monotonic()

            def beat() -> None:
                nonlocal last
                if self.processes.count == 1 or time.monotonic() - last > BEAT:
                    self._together()
                    last = time.monotonic()

            do(beat)
            self._together(DONE)

    def _together(self, word: str = "") -> bool:
        """Whether the first process says that it is done, once every process has said something."""
        words = self.processes.told(str(self.signals.number) if self.signals.number else word)
        if number := max(int(one) for one in (*words, "0") if one.isdecimal()):
            raise Interrupted(number)
        return words[0] == DONE

    def tell(self, what: str, done: int, count: int) -> None:
        """A bar for each thing that is done before training or between its steps (see `training.engine.job.Tell`)."""
        if self.signals.number and self.processes.count == 1:  # several would not stop at the same part
            raise Interrupted(self.signals.number)
        if what not in self._bars:
            self._bars[what] = self.counter(what)
        self._bars[what](done, count)
        if done >= count:
            del self._bars[what]

    def train(self, job: Job[Result], states: Sequence[StateFile]) -> tuple[loop.Progress, Result]:
        """Runs a job from its states on, with a line of progress and previews."""
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        first = self.processes.first
        if first and (free := shutil.disk_usage(self.output.parent).free) < 2 * job.weights:
            raise ValueError(f"{self.output} will take {2 * job.weights / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left.")
        if first:
            log.info("%s", room(job.disk, self.free_disk()))
        begun = [_begun(state, phase.settings.steps, self.given.overwrite) for state, phase in zip(states, job.phases, strict=True)]
        for state, step in zip(states, begun, strict=True):
            if first and step == 0:
                state.remove()
        start = sum(begun)
        self.states = states
        self.processes.ready(f"{job.weights} weights from step {start}")
        self.started = True
        shown = {"initial": start, "total": job.steps, "desc": "Training", "unit": "step", "disable": not first}
        seldom = 0.5 if sys.stderr.isatty() else 10.0
        with self.signals, tqdm(**shown, mininterval=seldom) as bar, logging_redirect_tqdm():

            def after(progress: loop.Progress) -> None:
                rate = job.rate(progress.step)
                bar.set_postfix_str(f"loss {progress.recent:.4f}, rate {rate:g}", refresh=False)
                bar.update(progress.step - bar.n)
                number = self.processes.highest(self.signals.number)
                if number and progress.step < job.steps:
                    raise Interrupted(number)
                if self.preview is not None and first:
                    self._preview(progress.step, job.steps, self.preview, job.painted)

            return run(job, states, after, self.processes.share if self.processes.count > 1 else None)

    def save(self, learned: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Writes what was learned, with `about` as metadata, wholly or not at all; then the state has served."""
        if not self.processes.first:
            return
        metadata = {name: str(value) for name, value in about.items()}
        with self.signals:
            problem = _written(self.output, learned, metadata)
            if problem is None:
                discard(self.states)
                print(f"Saved {self.output}.")
                return
            places = (self.state.parent, Path(tempfile.gettempdir()))
            spare = [place / f"{self.output.stem}-{os.getpid()}.safetensors" for place in places]
            saved = next((path for path in spare if _written(path, learned, metadata) is None), None)
        instead = f" It was saved as {saved} instead." if saved else ""
        raise ValueError(f"{self.output} could not be written: {problem}. Is the disk full?{instead}")

    def kept(self) -> str:
        """What there is of a training that did not come to its end."""
        there = [state.path for state in self.states if state.path.is_file()] or ([self.state] if self.state.is_file() else [])
        if not there:
            return "There is no training state."
        return f"The training's state is kept in {' and '.join(map(str, there))}; the same command goes on from there."

    def finish(self, write: Callable[[], str]) -> None:
        """Has the first process write what was learned; `write` says what it saved. Then the states have served."""
        if not self.processes.first:
            return
        with self.signals:
            saved = write()
            discard(self.states)
            print(f"Saved {saved}.")

    def _preview(self, step: int, steps: int, folder: Path, paint: Callable[[], Tensor | None]) -> None:
        if step % self.given.preview_every and step < steps:
            return
        from PIL import Image

        painted = paint()
        if painted is None:
            return
        image = Image.fromarray((painted[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        try:
            image.save(folder / f"step-{step:06d}.png")
        except OSError as error:
            log.warning("The preview of step %d could not be written: %s.", step, error)


def _written(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> Exception | None:
    """Writes a safetensors file; or why it could not be."""
    from safetensors import SafetensorError

    try:
        files.write_weights(path, state, metadata)
    except (OSError, SafetensorError) as error:
        return error
    return None


def _begun(state: StateFile, steps: int, overwrite: bool) -> int:
    """The step from which a state goes on. ValueError for a file that this training would throw away, unless it may be overwritten."""
    if not state.path.is_file():
        return 0
    try:
        kept = torch.load(state.path, map_location="cpu", mmap=True, weights_only=True)
        step = int(kept["step"])
        problem = "" if kept["fingerprint"] == state.fingerprint else "is of another training (other options or pictures)"
    except Exception as error:  # torch.load raises many kinds
        step = 0
        problem = f"cannot be read ({error})"
    if not problem and step > steps:
        problem = f"has {step} steps done already, more than --{state.widget.replace('_', '-')} {steps}"
    if problem and not overwrite:
        raise ValueError(f"the training state {state.path} {problem}: name another file with --state, or begin anew with --overwrite.")
    return 0 if problem else step
