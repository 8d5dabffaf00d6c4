"""Mask encoder files: .safetensors with metadata that names what was trained together with them.

One training leaves files of three kinds, each where ComfyUI looks for its kind, and each usable without this pack: handles as embeddings in
models/embeddings, the LoRA in models/loras, and the mask encoder in models/mcgm, which names the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...conditioning.handles import Handle, check_name
from .. import files
from .. import weights as strict
from ..sd_families import text_width
from .mask_encoder import SIDE, MaskEncoder

FORMAT = "maskprompt-mcgm"
VERSION = 1
FOLDER = "mcgm"
SUFFIXES = frozenset({".safetensors", ".sft"})


@dataclass(frozen=True)
class About:
    """What an encoder's weights do not tell.

    `handles`: the subjects it was trained with, in the order of a `bound` encoder's vectors. `lora`: the file in models/loras that was
    trained with it, with a folder or without; "" for none. `base`: the model it was trained on, in words.
    """

    handles: tuple[Handle, ...]
    lora: str = ""
    base: str = ""


@dataclass(frozen=True)
class LoadedEncoder:
    """A mask encoder as nodes hand it on: float32, on the CPU, where a mask's token takes a millisecond. It never changes."""

    network: MaskEncoder = field(repr=False)
    about: About
    name: str


def load(path: str) -> LoadedEncoder:
    """The mask encoder in a file. ValueError in plain words for a file that cannot be read, is of another kind, or incomplete."""
    title = os.path.basename(path)
    _refuse_pickles(title)
    weights = files.load_weights(path)
    about = read_about(path)
    metadata = _metadata(path)
    _check(weights, metadata, about, title)
    subjects = weights.get("subjects")
    network = MaskEncoder(len(weights["linear.bias"]), 0 if subjects is None else len(subjects))
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return LoadedEncoder(network.eval().requires_grad_(False), about, title)


def read_about(path: str) -> About:
    """What belongs to the mask encoder in a .safetensors file, without its weights. ValueError if it cannot be read."""
    return _about(_metadata(path), os.path.basename(path))


def save(network: MaskEncoder, about: About, path: str) -> None:
    """Writes a mask encoder in its weights' precision. A file of that name is replaced whole or not at all."""
    for handle in about.handles:
        check_name(handle.name)
    if network.subjects is not None and len(network.subjects) != len(about.handles):
        raise ValueError(f"the encoder has vectors for {len(network.subjects)} subjects, but {len(about.handles)} handles are given.")
    files.write_weights(path, network.state_dict(), metadata_of(network, about))


def metadata_of(network: MaskEncoder, about: About) -> dict[str, str]:
    """What `save` writes beside the weights."""
    handles = [{"name": handle.name, "word": handle.word, "fingerprint": handle.fingerprint} for handle in about.handles]
    return {
        "format": FORMAT,
        "format_version": str(VERSION),
        "width": str(network.width),
        "mode": network.mode,
        "base": about.base,
        "handles": json.dumps(handles, ensure_ascii=False),
        "lora": about.lora,
    }


def _refuse_pickles(title: str) -> None:
    if not title.lower().endswith(tuple(SUFFIXES)):
        raise ValueError(f"'{title}' was refused: mask encoders are .safetensors files, and a file of another kind may run programs.")


def _metadata(path: str) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        raise ValueError(f"'{os.path.basename(path)}' is damaged or not complete. Copy or download it again.") from None


def _about(metadata: Mapping[str, str], title: str) -> About:
    if metadata.get("format") != FORMAT:
        kind = f"'{metadata['format']}'" if metadata.get("format", "pt") != "pt" else "without a format"
        raise ValueError(
            f"'{title}' is no mask encoder but another kind of file ({kind}). Take one that Train Poseable Subjects has written. A LoRA "
            "goes into models/loras, an embedding into models/embeddings."
        )
    version = metadata.get("format_version", "")
    if version != str(VERSION):
        raise ValueError(
            f"'{title}' is a mask encoder of format {version or 'unknown'}; this pack reads format {VERSION}. Update MaskPrompt."
        )
    try:
        handles = tuple(_handle(entry) for entry in json.loads(metadata.get("handles", "")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{title}': its list of handles cannot be read ({error}). The file is damaged.") from None
    if not handles:
        raise ValueError(f"'{title}' names no handles, so no word of a prompt belongs to it. The file is damaged.")
    return About(handles, metadata.get("lora", ""), metadata.get("base", ""))


def _handle(entry: Mapping[str, Any]) -> Handle:
    found = Handle(*(str(entry[name]) for name in ("name", "word", "fingerprint")))
    check_name(found.name)
    return found


def _check(weights: Mapping[str, Tensor], metadata: Mapping[str, str], about: About, title: str) -> None:
    """ValueError unless names, shapes and numbers are what the metadata says."""
    width = metadata.get("width", "")
    mode = metadata.get("mode", "")
    if not width.isdecimal() or int(width) < 1 or mode not in ("paper", "bound"):
        raise ValueError(f"'{title}': its metadata cannot be read (width '{width}', mode '{mode}'). The file is damaged.")
    wanted: dict[str, Sequence[int]] = {"linear.weight": [int(width), SIDE * SIDE], "linear.bias": [int(width)]}
    if mode == "bound":
        wanted["subjects"] = [len(about.handles), int(width)]
    found = strict.differences(weights, wanted)
    for name in sorted((*found.missing, *found.surplus, *found.misshapen)):
        given = list(weights[name].shape) if name in weights else "missing"
        raise ValueError(
            f"'{title}': {name} is {given}, but a mask encoder ({mode}, {len(about.handles)} handles) for text of {text_width(int(width))} "
            f"has {wanted.get(name, 'no such weights')}. The file is damaged."
        )
    strict.check_numbers(weights, f"'{title}'")
