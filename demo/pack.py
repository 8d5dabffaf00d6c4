"""Loads the pack as ComfyUI does: by path, under a name of its own, with ComfyUI on the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from demo import tiny_model

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> ModuleType:
    """The pack as the package `maskprompt`; its rooms import as `maskprompt.attention.chain` and so on."""
    tiny_model.comfyui_on_path()
    if "maskprompt" in sys.modules:
        return sys.modules["maskprompt"]
    spec = importlib.util.spec_from_file_location("maskprompt", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    if spec is None or spec.loader is None:
        raise ImportError(f"no pack at {ROOT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["maskprompt"] = module
    spec.loader.exec_module(module)
    return module
