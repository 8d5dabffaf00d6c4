"""Model files: which folders they lie in, and how their weights are read without running anything that is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SUFFIXES = frozenset({".safetensors", ".sft", ".pth", ".pt"})
SAVED = frozenset({"controlnet", "ipadapter"})
"""Folders of files that our nodes save: as ComfyUI does with LoRAs, they are looked for in its output folder too."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def register_folder(name: str, suffixes: frozenset[str] = SUFFIXES) -> None:
    """Makes `models/<name>` a folder of ComfyUI, beside the places that extra_model_paths.yaml or other packs gave it.

    For what our nodes save, `<name>` in ComfyUI's output folder too. Nothing is taken away: paths are appended, suffixes are added. May
    be called again at any time.
    """
    import folder_paths

    folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    if name in SAVED:
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.get_output_directory(), name))
    paths, known = folder_paths.folder_names_and_paths[name]
    # An empty set means "any file" to ComfyUI (yaml entries have it): adding to it would hide files from other packs.
    if known and not suffixes <= set(known):
        folder_paths.folder_names_and_paths[name] = (paths, set(known) | suffixes)
        folder_paths.filename_list_cache.pop(name, None)


def list_files(name: str, suffixes: frozenset[str] = SUFFIXES) -> list[str]:
    """The model files in ComfyUI's folder `name`, as relative names in alphabetic order."""
    import folder_paths

    register_folder(name, suffixes)
    return [file for file in folder_paths.get_filename_list(name) if os.path.splitext(file)[1].lower() in suffixes]


def find_file(name: str, file: str, advice: str, suffixes: frozenset[str] = SUFFIXES) -> str:
    """The full path of `file` in ComfyUI's folder `name`. ValueError naming the folders, the files there and `advice` if there is none."""
    import folder_paths

    register_folder(name, suffixes)
    path = folder_paths.get_full_path(name, file)
    if path is None:
        present = ", ".join(list_files(name, suffixes)) or "no model file"
        places = " or ".join(folder_paths.get_folder_paths(name))
        raise ValueError(f"There is no file '{file}' in {places} (found there: {present}). {advice}")
    return path


def stamp(path: str) -> str:
    """Gives a text that changes when a file is written anew; another one where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return "none"
    return f"{found.st_mtime_ns} {found.st_size}"


def load_weights(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pth or .pt file by name, on the CPU in the file's own precision. Never runs code.

    A dict wrapped in "state_dict", "model_state_dict" or "model" is unwrapped, entries that are no tensors are left out.
    ValueError in plain words if the file is missing, damaged, holds anything but weights, or holds no tensors.
    """
    title = f"'{os.path.basename(path)}'"
    if not os.path.isfile(path):
        raise ValueError(f"The model file {title} is missing: there is no file {path}.")
    content = _read_safetensors(path, title) if path.lower().endswith((".safetensors", ".sft")) else read_pickle(path, title)
    tensors = _tensors(content)
    for key in _WRAPPERS:
        if not tensors and isinstance(content, Mapping) and key in content:
            tensors = _tensors(content[key])
    if not tensors:
        raise ValueError(
            f"The model file {title} was read, but it holds no weights by name ({type(content).__name__}). It is another kind of file."
        )
    return tensors


def check_writable(folder: Path) -> None:
    """Tries to write into a folder, which is made where it is missing. ValueError that says why nothing can be written."""
    trial = folder / f".maskprompt-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ValueError(f"nothing can be written into {folder}: {error.strerror}.") from error


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a .safetensors file in the tensors' own precision. A file of that name is replaced whole or not at all.

    OSError or safetensors' own error where that fails; nothing is left behind then.
    """
    from safetensors.torch import save_file

    unfinished = Path(f"{os.fspath(path)}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, unfinished, dict(metadata))
        unfinished.chmod(mode)  # newer versions of safetensors let nobody else read their files
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def strip_prefix(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The same tensors without what stands before `part` in the first name that has it ("module.", "model.", …).

    With such a prefix, names that do not start with it are left out; without any name that has `part`, nothing changes.
    """
    prefix = next((name[: name.index(part)] for name in tensors if part in name), "")
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    items = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, torch.Tensor)}


def _read_safetensors(path: str, title: str) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(path, title) from error


def read_pickle(path: str, title: str) -> Any:
    """What a .pth, .pt or .bin file holds, on the CPU. Never runs code: ValueError, with `title` in it, for a file that would."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with open(path, "rb") as file:
            is_pickle = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if not is_pickle:
            raise _damaged(path, title) from error
        raise ValueError(
            f"The model file {title} was refused: beside weights it holds Python objects, and such a file can run any program on this "
            "computer when it is opened. Take it from its original source, or take a .safetensors version."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a flipped byte makes Python's and PyTorch's unpicklers raise nearly anything
        if "enough memory" in str(error):
            raise
        raise _damaged(path, title) from error


def _damaged(path: str, title: str) -> ValueError:
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    size = f"{os.path.getsize(path) / 1e6:.1f} MB"
    if start.startswith((b"<", b'{"error', b"version https://git-lfs")):
        return ValueError(
            f"{title} ({size}) is no model but a text or web page that was saved in its place. Download the model file again."
        )
    return ValueError(
        f"The model file {title} ({size}) is damaged or not complete. This happens when a download is cut off: "
        "compare its size with the one at the source and download it again."
    )
