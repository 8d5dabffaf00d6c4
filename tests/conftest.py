"""Loads the pack as ComfyUI does, by path and under a name of its own (`maskprompt`), and ComfyUI beside it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _load_pack() -> None:
    spec = importlib.util.spec_from_file_location("maskprompt", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    if spec is None or spec.loader is None:
        raise ImportError(f"no pack at {ROOT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["maskprompt"] = module
    spec.loader.exec_module(module)


def _add_comfyui() -> None:
    folder = Path(os.environ.get("COMFYUI_PATH", ROOT / ".cache" / "ComfyUI"))
    if not (folder / "comfy").is_dir():
        raise RuntimeError(f"no ComfyUI at {folder}: run `nox -s tests`, or set COMFYUI_PATH to your own")
    sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True


_add_comfyui()
_load_pack()
