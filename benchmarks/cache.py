"""What a long table keeps on disk, so that a run that was stopped goes on: files under keys of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def sha(content: bytes) -> str:
    """16 hexadecimal digits that tell this content from others."""
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class Kept:
    """A folder of such files; `common` is what all of them depend on. The keys know nothing of the code."""

    folder: Path
    common: dict[str, Any]

    def file(self, what: str, **settings: Any) -> Path:
        """Where something is kept that depends on these settings."""
        text = json.dumps({**self.common, **settings}, sort_keys=True)
        return self.folder / f"{what}-{sha(text.encode())}"


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Writes a file (or a folder) so that a run that is stopped leaves none half written, nor do two processes that write the same one."""
    part = file.with_suffix(f".{os.getpid()}.part")
    write(part)
    part.replace(file)


def keep_pictures(file: Path, pictures: Tensor) -> None:
    """Pictures [B, H, W, 3] in 0..1 as one PNG, one below the other."""
    sheet = Image.fromarray((torch.cat(list(pictures)).numpy() * 255).round().astype(np.uint8))
    keep(file, lambda part: sheet.save(part, "PNG"))


def kept_pictures(file: Path, size: int) -> Tensor:
    """The same again, [B, size, size, 3]."""
    with Image.open(file) as kept:
        return image_of(np.asarray(kept)).reshape(-1, size, size, 3)


def image_of(pixels: np.ndarray) -> Tensor:
    """uint8 pixels as float32 in 0..1."""
    return torch.from_numpy(pixels.copy()).float() / 255
