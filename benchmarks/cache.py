"""What a long table keeps on disk, so that a run that was stopped goes on: files under keys of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def sha(content: bytes) -> str:
    """16 hexadecimal digits that tell this content from others."""
    return hashlib.sha256(content).hexdigest()[:16]


def sha_of(pixels: Tensor) -> str:
    """The same of a tensor's numbers."""
    return sha(pixels.numpy().tobytes())


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


def pictures_in(file: Path, size: int, paint: Callable[[], Tensor]) -> Tensor:
    """The pictures [B, size, size, 3] of a file, painted and kept there first if there is none."""
    if not file.is_file():
        keep_pictures(file, paint())
    return kept_pictures(file, size)


def records_in(file: Path, judge: Callable[[], Iterable[Any]]) -> list[dict[str, Any]]:
    """The dataclasses of a file as dicts, with lists for tuples; judged and kept there first if there is none."""
    if not file.is_file():
        text = json.dumps([asdict(one) for one in judge()])
        keep(file, lambda part: part.write_text(text, encoding="utf-8"))
    return json.loads(file.read_text("utf-8"))


def image_of(pixels: np.ndarray) -> Tensor:
    """uint8 pixels as float32 in 0..1."""
    return torch.from_numpy(pixels.copy()).float() / 255
