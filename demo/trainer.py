"""What the scripts that train the tiny models share: a log, the device, and a learning rate over the run."""

from __future__ import annotations

import math
from pathlib import Path

import torch


class Log:
    """Prints a line and appends it to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(line + "\n")


def device_of() -> torch.device:
    """Give the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learns_in_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 is faster than float32 in training there: on a GPU, and on a processor that multiplies it (AVX-512 BF16, AMX).

    On other processors it takes nine times as long (measured with AVX2). A PyTorch that cannot tell counts as one of those.
    """
    if device.type != "cpu":
        return True
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def cosine(progress: float, high: float, low: float, warm: float = 0.02) -> float:
    """A learning rate: linear rise over `warm` of the run, then half a cosine from `high` to `low`."""
    if progress < warm:
        return high * max(progress, 1e-4) / warm
    through = min(1.0, (progress - warm) / (1 - warm))
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * through))
