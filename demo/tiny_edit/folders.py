"""Where a training of tiny-edit lies, and the options that its commands share."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ..setup import CACHE

DEFAULT = Path("~/.cache/maskprompt/tiny-edit").expanduser()
"""Outside of the checkout: a fresh checkout finds the training again."""
SHARDS = "shards"
"""Where in a training folder the encoded records lie."""


def world(folder: Path) -> Path:
    """The prepared world: in the training folder, where a machine without registries has it, else in .cache."""
    own = folder / "world"
    return own if own.is_dir() else CACHE / "tiny-edit"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--folder` and `--threads`."""
    parser.add_argument("--folder", type=Path, default=DEFAULT, help="where the training lies (default: in the user's cache)")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch on a CPU (0: as PyTorch thinks)")


def forget_records(folder: Path) -> None:
    """Removes the records of a training folder: their latents are those of an encoder that is there no more."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)


def begin(options: argparse.Namespace) -> None:
    """Makes the folder and sets the threads."""
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)


def save(state: dict[str, Any], file: Path) -> None:
    """Writes the file whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
