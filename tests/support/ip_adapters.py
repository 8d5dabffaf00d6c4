"""IP-Adapter files and UNets for them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from . import adapters

WIDTHS = {1: 32, 3: 64, 5: 96}
CONTEXT = 24


def write(weights: adapters.Weights, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(adapters.nested(weights), path)
    return str(path)
