"""Adapter files: IP-Adapter's .bin and .safetensors, and our own .safetensors with metadata. No code in a file is ever run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from ...attention.meca import Mode
from .. import files
from .. import weights as strict
from . import network as meca_network
from .network import Compression, MecaNetwork

FORMAT = "maskprompt-meca"
VERSION = 1
SUFFIXES = files.SUFFIXES | {".bin"}
ZEROS = "zeros"
ZERO_PIXELS = "zero pixels"
FACE_WIDTH = 512
"""InsightFace's embeddings, which IP-Adapter FaceID and InstantID take."""


@dataclass(frozen=True)
class About:
    """What an adapter's weights do not tell.

    `mode`: the attention it was trained in. `unconditional`: what it was given for no image: features of zeros, or the encoding of zero
    pixel values. `heads`: the compression's. `base`: the model it was trained on, in words.
    """

    mode: Mode = "region"
    unconditional: str = ZEROS
    heads: int = 0
    base: str = ""


def read(path: str) -> tuple[dict[str, Tensor], About]:
    """An adapter's weights by name ("image_proj.…", "ip_adapter.1.to_k_ip.weight", …), checked, on the CPU; and what else is known.

    ValueError in plain words for a file that cannot be read, holds another family's weights, not all of its own, or some that are no
    numbers.
    """
    title = os.path.basename(path)
    weights, metadata = _content(path)
    if metadata.get("format") == FORMAT:
        about = _about(metadata, title)
    else:
        about = About(unconditional=ZERO_PIXELS if "image_proj.latents" in weights else ZEROS)
    _refuse_others(weights, title)
    try:
        network = meca_network.like(weights, about.heads)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"'{title}' is no complete IP-Adapter or MECA file: {error} is missing or of another shape.") from None
    strict.check_shapes(weights, strict.shapes_of(network), f"'{title}'")
    strict.check_numbers(weights, f"'{title}'")
    if metadata.get("format") == FORMAT:
        _check_metadata(metadata, metadata_of(network, about), title)
    return weights, about


def save(network: MecaNetwork, about: About, path: str) -> None:
    """Writes a MECA file: safetensors with metadata, in the weights' own precision. A file of that name is replaced whole or not at all."""
    files.write_weights(path, network.state_dict(), metadata_of(network, about))


def metadata_of(network: MecaNetwork, about: About) -> dict[str, str]:
    """What `save` writes beside the weights."""
    projection = network.image_proj
    heads = projection.heads if isinstance(projection, Compression) else 0
    return {
        "format": FORMAT,
        "format_version": str(VERSION),
        "base": about.base,
        "projection": projection.kind,
        "features": str(projection.features),
        "context": str(projection.context),
        "tokens": str(projection.tokens),
        "layers": ",".join(str(width) for width in network.widths.values()),
        "heads": str(heads),
        "mode": about.mode,
        "unconditional": about.unconditional,
    }


def _content(path: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    if path.lower().endswith((".safetensors", ".sft")):
        from safetensors import safe_open

        weights = files.load_weights(path)
        with safe_open(path, framework="pt") as file:
            return weights, file.metadata() or {}
    title = f"'{os.path.basename(path)}'"
    if not os.path.isfile(path):
        raise ValueError(f"The model file {title} is missing: there is no file {path}.")
    return _flat(files.read_pickle(path, title)), {}


def _flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """{"image_proj": {"proj.weight": …}} as {"image_proj.proj.weight": …}; what is no tensor is left out."""
    found: dict[str, Tensor] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        else:
            found |= _flat(value, f"{prefix}{name}.")
    return found


def _refuse_others(weights: Mapping[str, Tensor], title: str) -> None:
    """ValueError for the other families, by the names that only they have."""
    what = ""
    if not any(name.startswith("image_proj.") for name in weights) or not any(name.endswith(".to_k_ip.weight") for name in weights):
        names = ", ".join(sorted({name.split(".")[0] for name in weights})[:4]) or "nothing"
        what = f"another kind of model (its weights begin with: {names}; an adapter's with image_proj and ip_adapter)"
    if any("perceiver_resampler." in name or "_lora." in name for name in weights) or "image_proj.proj.2.weight" in weights:
        what = "an IP-Adapter FaceID file, which needs a face recogniser"
    if "image_proj.proj.3.weight" in weights:
        what = "an IP-Adapter full-face file, whose projection is another"
    first = weights.get("image_proj.proj_in.weight", weights.get("image_proj.proj.weight"))
    if first is not None and first.ndim == 2 and first.shape[1] == FACE_WIDTH:
        what = f"an adapter for face embeddings of {FACE_WIDTH} numbers (InstantID, FaceID)"
    if what:
        raise ValueError(
            f"'{title}' cannot be used here: it is {what}. Take an IP-Adapter or IP-Adapter plus file for SD 1.5 or SDXL, such as "
            "ip-adapter_sd15.safetensors or ip-adapter-plus_sdxl_vit-h.safetensors, or one from Train Image Prompt Adapter."
        )


def _about(metadata: Mapping[str, str], title: str) -> About:
    version = metadata.get("format_version", "")
    if version != str(VERSION):
        raise ValueError(f"'{title}' is a MECA file of format {version or 'unknown'}; this pack reads format {VERSION}. Update MaskPrompt.")
    mode, unconditional, heads = (metadata.get(name, "") for name in ("mode", "unconditional", "heads"))
    for known in get_args(Mode):
        if mode == known and unconditional in (ZEROS, ZERO_PIXELS) and heads.isdecimal():
            return About(known, unconditional, int(heads), metadata.get("base", ""))
    raise ValueError(f"'{title}': its metadata cannot be read (mode '{mode}', unconditional '{unconditional}', heads '{heads}').")


def _check_metadata(given: Mapping[str, str], wanted: Mapping[str, str], title: str) -> None:
    wrong = [name for name in wanted if given.get(name) != wanted[name]]
    if wrong:
        raise ValueError(
            f"'{title}': its metadata does not fit its weights ({wrong[0]} is {given.get(wrong[0])!r}, but the weights say "
            f"{wanted[wrong[0]]!r}). The file is damaged."
        )
