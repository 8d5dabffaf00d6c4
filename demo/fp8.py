"""Keeps a file's large matrices and kernels in fp8, so that the demo's networks fit the repository.

    python -m demo.fp8 FILE...

E4M3, with no scale beside it, as ComfyUI and this pack load such files; whatever is small stays as it was
(ComfyUI's loader of control networks puts that into fp8 too).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

SMALLEST = 2**12
"""Matrices and kernels of fewer numbers stay as they are."""


def in_fp8(weights: Mapping[str, Tensor], smallest: int = SMALLEST) -> dict[str, Tensor]:
    """Gives the weights with matrices and kernels of `smallest` numbers and more in E4M3."""
    return {
        name: value.to(torch.float8_e4m3fn) if value.ndim > 1 and value.is_floating_point() and value.numel() >= smallest else value
        for name, value in weights.items()
    }


def rewrite(file: Path) -> None:
    """Puts a safetensors file into fp8 in its place; its metadata stays."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    partial = file.with_suffix(".partial")
    save_file(in_fp8(load_file(file)), partial, metadata=metadata)
    partial.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    for file in parser.parse_args().files:
        rewrite(file)
        print(f"{file} {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
