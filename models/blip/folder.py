"""The folders that hold BLIP captioning models as `transformers` saves them: which there are, and whether one is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .. import files

FOLDER = "blip"
SUFFIXES = frozenset({".safetensors", ".bin"})
ADVICE = (
    "Download all files of Salesforce/blip-image-captioning-base (1 GB) or -large (1.9 GB) from huggingface.co into a folder of their own "
    "in ComfyUI/models/blip, for example ComfyUI/models/blip/blip-image-captioning-base, and press R in the browser to refresh the list."
)
DEPTH = 4
KIND = "BlipForConditionalGeneration"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PREPARATION = ("preprocessor_config.json", "processor_config.json")
_PARTS = (WEIGHTS, ("tokenizer.json", "vocab.txt"), _PREPARATION)


def folders() -> dict[str, Path]:
    """The model folders in ComfyUI's `blip` folders, by their relative names in alphabetic order; "." is such a folder itself."""
    import folder_paths

    files.register_folder(FOLDER, SUFFIXES)
    found: dict[str, Path] = {}
    for base in folder_paths.get_folder_paths(FOLDER):
        for place, inner, names in os.walk(base, followlinks=True):
            parts = Path(place).relative_to(base).parts
            if CONFIG in names:
                found.setdefault("/".join(parts) or ".", Path(place))
            if len(parts) >= DEPTH or (CONFIG in names and parts):
                inner.clear()
    return dict(sorted(found.items()))


def find(name: str) -> Path:
    """The folder of that name, if it can hold a BLIP captioning model. ValueError says what is missing, and what to put where."""
    import folder_paths

    present = folders()
    if name not in present:
        places = " or ".join(folder_paths.get_folder_paths(FOLDER))
        listed = ", ".join(present) or f"no folder with a {CONFIG}"
        raise ValueError(f"There is no BLIP folder '{name}' in {places} (found there: {listed}). {ADVICE}")
    check(present[name])
    return present[name]


def check(folder: Path) -> None:
    """ValueError that says what is missing, unless the folder can hold a BLIP captioning model."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no BLIP model: there is no {CONFIG} in it. {ADVICE}")
    _check_kind(_settings(folder / CONFIG), folder)
    missing = [" or ".join(names) for names in _PARTS if not any((folder / one).is_file() for one in names)]
    if missing:
        raise ValueError(f"The BLIP folder {folder} is not complete: it lacks {'; '.join(missing)}. {ADVICE}")


def _settings(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): download it again.") from error


def picture_settings(folder: Path) -> Any:
    """How pictures are prepared; since 5.0 it is a part of another file, which older versions of transformers do not look for."""
    settings = _settings(next(folder / name for name in _PREPARATION if (folder / name).is_file()))
    return settings.get("image_processor", settings)


def _check_kind(settings: Any, folder: Path) -> None:
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind != "blip":
        raise ValueError(f"{folder} holds no BLIP model: its {CONFIG} says model_type {kind!r}, and BLIP is 'blip'. {ADVICE}")
    classes = settings.get("architectures") or [KIND]
    if KIND not in classes:
        raise ValueError(
            f"{folder} holds a BLIP for another task ({', '.join(map(str, classes))}): it answers questions or compares pictures with "
            f"texts, but it cannot describe them. {ADVICE}"
        )
