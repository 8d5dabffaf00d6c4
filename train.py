"""Trains the pack's methods from the command line: on one device, or with `accelerate launch` on many.

python train.py dreamcom --comfyui ComfyUI --checkpoint sd-v1-5-inpainting.safetensors --pictures my-dog --noun dog
python train.py mcgm --comfyui ComfyUI --checkpoint v1-5-pruned-emaonly.safetensors --picture my-cats.png --words "cat, kitten"
python train.py mask-controlnet --comfyui ComfyUI --checkpoint v1-5-pruned-emaonly.safetensors --pictures my-pictures
python train.py meca --comfyui ComfyUI --checkpoint sd_xl_base_1.0.safetensors --clip-vision clip-vit-h.safetensors --pictures my-pictures

The program itself is in training/command.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(os.path.abspath(__file__)).parent
PACK = "maskprompt"
"""The name under which the program knows the pack, whatever its folder is called."""


def load_pack() -> None:
    """The pack as a package of its own name."""
    if PACK in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[PACK] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the program's); the exit status."""
    load_pack()
    return importlib.import_module(f"{PACK}.training.command.program").main(arguments)


def script() -> int:
    """The program: as `main`, with messages of the pack shown, in the first process only."""
    # The folder of a script is on its path, where this pack's `nodes` and `models` would hide ComfyUI's.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != str(ROOT)]
    others = int(os.environ.get("RANK", 0)) > 0
    verbose = "--verbose" in sys.argv
    logging.basicConfig(level=logging.ERROR if others else logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger(PACK).setLevel(logging.ERROR if others else logging.INFO)
    return main()


if __name__ == "__main__":
    sys.exit(script())
