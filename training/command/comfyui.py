"""ComfyUI for a program that is not ComfyUI: where it lies, its start, and files loaded as its nodes load them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(os.path.abspath(__file__)).parents[2]
"""The pack's folder."""


def find_comfyui(given: str | None) -> Path:
    """ComfyUI's folder: `given`, else COMFYUI_PATH, else the one in whose custom_nodes the pack lies."""
    named = given or os.environ.get("COMFYUI_PATH")
    folder = Path(named).expanduser().absolute() if named else ROOT.parent.parent
    if not (folder / "comfy" / "sd.py").is_file():
        raise ValueError(
            f"there is no ComfyUI in {folder}: name its folder, in which main.py lies, with --comfyui or in the environment variable "
            "COMFYUI_PATH."
        )
    return folder


def start_comfyui(folder: Path, cpu: bool) -> None:
    """Puts ComfyUI on the path, and knows the models that its extra_model_paths.yaml names.

    Its own options stay at their defaults: it reads no command line unless its main.py asks it to.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        from comfy.cli_args import args

        args.cpu = args.cpu or cpu
        importlib.import_module("comfy.sd")
        shared = folder / "extra_model_paths.yaml"
        if shared.is_file():  # as its main.py does
            importlib.import_module("utils.extra_config").load_extra_path_config(str(shared))
    except ImportError as error:
        raise ValueError(f"ComfyUI in {folder} does not start ({error}): run train.py with the Python that runs ComfyUI.") from error


def load_package(name: str, folder: Path) -> ModuleType:
    """A Python package (or a single file) by its path, under a name of its own."""
    if name in sys.modules:
        return sys.modules[name]
    is_file = folder.suffix == ".py"
    inside = None if is_file else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, folder if is_file else folder / "__init__.py", submodule_search_locations=inside)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python package at {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def register(path: str) -> None:
    """Imports what makes ComfyUI know further models."""
    place = Path(path).expanduser().absolute()
    try:
        load_package(f"register_{re.sub(r'[^0-9a-zA-Z]', '_', str(place))}", place)
    except Exception as error:
        raise ValueError(f"--register {path} cannot be imported: {error}. It takes a Python file, or a folder with __init__.py.") from error


def checkpoint_file(name: str) -> str:
    """The path of a file, or of one in ComfyUI's models/checkpoints. ValueError if there is none."""
    import folder_paths

    path = name if os.path.isfile(name) else folder_paths.get_full_path("checkpoints", name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths("checkpoints"))
        raise ValueError(f"there is no checkpoint {name}, neither from here nor in {places}.")
    return path


def load_checkpoint(name: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a file, or of one in ComfyUI's models/checkpoints. ValueError if there is none, or not all three."""
    import comfy.sd
    import folder_paths

    path = checkpoint_file(name)
    try:
        loaded: Any = comfy.sd.load_checkpoint_guess_config(path, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    except Exception as error:  # unknown models, damaged files
        raise ValueError(
            f"ComfyUI cannot load the checkpoint {name}: {str(error).strip()}. It may be damaged, or no checkpoint. "
            "What makes ComfyUI know other models can be imported with --register."
        ) from error
    model, clip, vae = loaded[:3]
    for part, there in (("text encoder", clip), ("VAE", vae is not None and vae.first_stage_model is not None)):
        if not there:
            raise ValueError(f"the checkpoint {name} holds no {part}: a whole checkpoint is needed, with UNet, text encoder and VAE.")
    return model, clip, vae


def load_clip_vision(name: str) -> Any:
    """CLIP_VISION of a file, or of one in ComfyUI's models/clip_vision. ValueError if there is none, or if it is another model."""
    import comfy.clip_vision
    import folder_paths

    path = name if os.path.isfile(name) else folder_paths.get_full_path("clip_vision", name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths("clip_vision"))
        raise ValueError(f"there is no CLIP vision model {name}, neither from here nor in {places}.")
    try:
        loaded = comfy.clip_vision.load(path)
    except Exception as error:  # damaged files
        raise ValueError(f"ComfyUI cannot load the CLIP vision model {name}: {str(error).strip()}. It may be damaged.") from error
    if loaded is None:
        raise ValueError(f"{name} is no CLIP vision model: take one such as CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors.")
    return loaded


def load_sam(name: str) -> Any:
    """The SAM (`sam.LoadedSam`) of a file, or of one in ComfyUI's models/sams. ValueError if there is none, or if it is another model."""
    from ...models import files
    from ...models.sam import model as sam

    advice = "Name a SAM file such as sam_vit_b_01ec64.pth (375 MB), or mobile_sam.pt (40 MB)."
    return sam.load(name if os.path.isfile(name) else files.find_file("sams", name, advice))


def load_blip(name: str) -> Any:
    """The BLIP (`caption.LoadedBlip`) of a folder, or of one in ComfyUI's models/blip. ValueError if there is none, or another model."""
    from ...models.blip import captioner
    from ...models.blip import folder as blip_folder

    place = Path(name).expanduser().absolute()
    if not place.is_dir():
        return captioner.load(blip_folder.find(name))
    blip_folder.check(place)
    return captioner.load(place)
