"""The one network that an experiment paints with: a trained file that is given, or trained from --train by all processes together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import pictures
from .work import Work

Prepare = Callable[[Any, int], Any]
"""A Job of what is learned from, and of the number of this process."""


def network(work: Work, name: str, options: Any, objects: bool, prepare: Prepare, write: Callable[[Any, Path], object]) -> Path:
    """The file of a network of these options. ValueError where there is neither a file nor what it could learn from."""
    given = work.given
    if given.network is not None:
        if not given.network.is_file():
            raise ValueError(f"there is no --network {given.network}: a .safetensors file of train.py, or of this command's `trained`.")
        return given.network
    if given.train is None:
        raise ValueError("no network is given: name a trained one with --network FILE, or what it learns from with --train FOLDER (COCO).")
    examples = pictures.learned_from(given.train, options.size, objects)

    def job() -> Any:
        return prepare(examples, work.processes.number)

    about = {"train": examples.fingerprint(), "options": asdict(options), "processes": 1 if given.share else work.processes.count}
    return work.trained(name, about, job, write, joint=True, suffix=".safetensors")


def print_of(work: Work, file: Path) -> str:
    """Tells a network from others: one that was trained here by the key of its settings, as safetensors writes the same metadata in any
    order, and one that was given by its content."""
    return file.name if file.parent == work.kept.folder else work.content(file)
