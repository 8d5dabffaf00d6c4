"""What a paper's whole experiment keeps on disk, so that a killed run goes on: trainings and pictures under keys of all they depend on.

Several processes share the items of an experiment (`accelerate launch`, or --share K/N on several machines with one disk). None waits for
another: whichever comes last finds everything painted, and scores it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..cache import Kept, keep, sha
from .sampling import Painter, sha_of

FORMAT = 1
LONGEST = 80
"""Characters of a folder's name."""
KEY = "maskprompt"
"""Under which a painted PNG holds the key of what it was painted from."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """This process's part of an experiment: `number` from 0 of `count`."""

    number: int = 0
    count: int = 1

    @classmethod
    def read(cls, text: str | None) -> Share:
        """Of --share, else of what `accelerate launch` says. ValueError for what is no share."""
        if text is None:
            return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--share {text}: a part and the number of parts are needed, such as 2/3 for the second of three.")
        return cls(int(match[1]) - 1, int(match[2]))

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        return items[self.number :: self.count]


@dataclass
class Work:
    """An experiment's command, folder and models. Nothing is loaded before it is needed: a run that has only to score loads none."""

    given: Any
    share: Share
    out: Path
    kept: Kept = field(init=False)

    def __post_init__(self) -> None:
        from maskprompt.training.command import comfyui

        self.checkpoint = comfyui.checkpoint_file(self.given.checkpoint)
        (self.out / "trained").mkdir(parents=True, exist_ok=True)
        self.kept = Kept(self.out / "trained", {"format": FORMAT, "checkpoint": sha_of(self.checkpoint)})
        self._known: dict[tuple[Path, ...], str] = {}
        self._held: dict[Path, Any] = {}

    @cached_property
    def painter(self) -> Painter:
        return Painter(self.checkpoint)

    @cached_property
    def processes(self) -> Any:
        """Those that `accelerate launch` started, which train one network together; this one alone with --share."""
        from maskprompt.training.command.processes import Processes, cpu_only

        return Processes(cpu_only())

    def leave(self) -> None:
        """Parts from the other processes, if this one was joined with them."""
        if "processes" in vars(self):
            self.processes.leave()

    def content(self, *files: Path | None) -> str:
        """Tells the contents of these files from others; each is read once."""
        there = tuple(file for file in files if file is not None)
        if there not in self._known:
            self._known[there] = sha_of(*there)
        return self._known[there]

    def held(self, file: Path, load: Callable[[], Item]) -> Item:
        """What `load` makes of a file of learned weights; only the last one is held."""
        if file not in self._held:
            self._held.clear()
            self._held[file] = load()
        found: Item = self._held[file]
        return found

    def key(self, **settings: Any) -> str:
        """Of something that depends on these settings and the checkpoint."""
        return self.kept.file("", **settings).name.lstrip("-")

    def trained(
        self, name: str, about: Mapping[str, Any], prepare: Callable[[], Any], write: Callable[[Any, Path], object], joint: bool = False,
        suffix: str = "",
    ) -> Path:  # fmt: skip
        """What a training leaves, under `name` and a key of `about`: made if it is not there, from the training's state if there is one.

        `write` gets the Job's result and a path, a file's or a new folder's. `joint`: all processes train it together.
        """
        path = self.kept.file(name, **about).with_suffix(suffix)
        if path.exists():
            return path
        if joint and self.given.share and self.share.number:
            raise ValueError(f"{path.name} is trained by share 1/{self.share.count}: run this share when that has written {path}.")
        from maskprompt.training.engine.checkpoint import discard

        job = prepare()
        states = job.states(self.out / "states" / f"{path.stem}.pt", self.given.save_every)
        together = joint and self.processes.count > 1
        if together:
            self.processes.ready(path.name)
        learned = self._run(name, job, states, self.processes.share if together else None)
        if not joint or self.processes.first:
            for left in path.parent.glob(f"{path.stem}.*.part"):  # by a run that was killed while it wrote
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            keep(path, lambda part: write(learned, part))
            discard(states)
        if together:
            self.processes.told("written")
        return path

    def _run(self, name: str, job: Any, states: Any, average: Any) -> Any:
        from maskprompt.training.command.signals import Interrupted, Signals
        from maskprompt.training.engine.job import run
        from tqdm import tqdm

        signals = Signals(self.share.count == 1)
        with signals, tqdm(total=job.steps, desc=f"Training {name}", unit="step", leave=False, mininterval=1.0) as bar:

            def after(progress: Any) -> None:
                bar.set_postfix_str(f"loss {progress.recent:.4f}", refresh=False)
                bar.update(progress.step - bar.n)
                if signals.number and progress.step < job.steps:
                    raise Interrupted(signals.number)

            _, learned = run(job, states, after, average)
        return learned

    def folder(self, row: str) -> Path:
        """Where a row's pictures lie."""
        name = re.sub(r"[^\w.-]+", "-", row.lower()).strip("-")
        return self.out / "painted" / (name if len(name) <= LONGEST else f"{name[:LONGEST]}-{sha(row.encode())}")

    def is_painted(self, row: str, case: str, pictures: int, key: str) -> bool:
        """Whether all pictures of a case, `subject/place`, are there, painted from what the key stands for."""
        return all(_key_of(file) == key for file in self._files(row, case, pictures))

    def paint(self, row: str, case: str, pictures: int, key: str, make: Callable[[], Tensor | Sequence[Tensor]]) -> None:
        """Keeps the pictures [H, W, 3] that `make` paints of a case, unless they are there."""
        if self.is_painted(row, case, pictures, key):
            return
        files = self._files(row, case, pictures)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        made = make()
        for old in files[0].parent.iterdir():
            if re.fullmatch(re.escape(case.rpartition("/")[2]) + r"_\d+\.png", old.name):
                old.unlink()
        for file, picture in zip(files, made, strict=True):
            _keep_picture(file, picture, key)
        print(f"painted {row}: {case}", file=sys.stderr, flush=True)

    def _files(self, row: str, case: str, pictures: int) -> list[Path]:
        return [self.folder(row) / f"{case}_{number}.png" for number in range(pictures)]


def _key_of(file: Path) -> str:
    """The key that a painted picture holds; "" if there is none."""
    if not file.is_file():
        return ""
    with Image.open(file) as opened:
        return str(opened.info.get(KEY, ""))


def _keep_picture(file: Path, picture: Tensor, key: str) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text(KEY, key)
    image = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    keep(file, lambda part: image.save(part, "PNG", pnginfo=about))
