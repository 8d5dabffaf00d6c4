"""Which transformers take reference pictures, and how many they were trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import find
from .reader import Family


@dataclass(frozen=True)
class References:
    """What a model does with references: with how many it was `trained` at most, 0 if it takes none, None if that is not known.

    `doubt` says why it may do badly, where the weights tell. `whole` says that ComfyUI's class takes none whose edge cuts a token.
    """

    trained: int | None
    doubt: str = ""
    whole: bool = False


def of(model: Any) -> References:
    """What a diffusion model does with reference latents.

    Sources for the numbers: FLUX.1 Kontext's paper (one picture), Black Forest Labs' table of references for each FLUX.2 (dev 6, klein 4),
    and how many pictures ComfyUI's own text nodes take for Qwen-Image-Edit and Z-Image (3).
    """
    family = find(model)
    return References(0) if family is None else _of_family(family, model)


def _of_family(family: Family, model: Any) -> References:
    if family.name.startswith("Flux"):
        if model.in_channels != model.out_channels:
            return References(0)
        if model.params.global_modulation:
            return References(6 if model.hidden_size >= 6144 else 4)
        return References(1 if model.params.default_ref_method == "offset" else None)
    if family.name.startswith("Qwen"):
        return References(3)
    if family.name.startswith("Krea"):
        return References(None)
    if family.name.startswith("Z-Image") and model.pad_tokens_multiple:
        doubt = "" if model.siglip_embedder is not None else "this Z-Image was not trained with reference pictures"
        return References(3, doubt, True)
    return References(0)
