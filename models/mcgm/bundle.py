"""What one MCGM training left, brought together again; and masks for its subjects as tokens. Errors are in the artist's words."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...conditioning import handles, mask_tokens
from .. import files
from ..sd_families import text_width
from . import file as mask_encoder_file
from . import mask_encoder
from .file import LoadedEncoder

log = logging.getLogger(__name__)

LORAS = "loras"
EMBEDDINGS = "embeddings"
OVERLAP = 0.1
"""Masks that share more than this part of the smaller one are warned of."""


def words(encoder: LoadedEncoder) -> str:
    """The handles as a prompt names them: "embedding:fox-cat and embedding:fox-dog"."""
    return " and ".join(handle.text for handle in encoder.about.handles)


def check_model(encoder: LoadedEncoder, width: int) -> None:
    """ValueError with both widths if the encoder is for another model than one whose text has this width."""
    if encoder.network.width != width:
        raise ValueError(
            f"'{encoder.name}' was trained for text of {text_width(encoder.network.width)}; this model's text has {text_width(width)}. "
            "Load the checkpoint that it was trained on, or train the subjects on this one."
        )


def check_handles(encoder: LoadedEncoder, clip: Any) -> None:
    """ValueError if the CLIP does not find a handle or cannot read it; a warning if it finds another than the one trained with it."""
    if clip is None:
        raise ValueError("no text encoder was given (the checkpoint holds none): wire the CLIP of the checkpoint, or Load CLIP.")
    widths = handles.widths_of(clip)
    for handle in encoder.about.handles:
        vectors = handles.vectors_of(clip, handle.name)
        if not vectors:
            raise ValueError(
                f"'{encoder.name}' belongs to the embedding '{handle.name}', which the text encoder does not find. Put the file "
                f"{handle.name}.safetensors into ComfyUI/models/embeddings."
            )
        for letter, width in widths.items():
            given = vectors[letter].shape[-1] if letter in vectors else None
            if given != width:
                raise ValueError(
                    f"the embedding '{handle.name}' is for another text encoder: it has {given or 'nothing'} where this one "
                    f"(clip_{letter}) needs {width} numbers. Wire the CLIP of the checkpoint that '{encoder.name}' was trained on."
                )
        if handle.fingerprint and handles.fingerprint(vectors) != handle.fingerprint:
            log.warning(
                "Load Poseable Subjects: the embedding '%s' is not the one that was trained with '%s'; its masks may pose nothing.",
                handle.name, encoder.name,
            )  # fmt: skip


def with_lora(encoder: LoadedEncoder, model: Any, clip: Any, strength: float) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with the encoder's LoRA. ValueError if its file is not there or no LoRA."""
    from comfy.sd import load_lora_for_models

    path = _found(LORAS, encoder.about.lora)
    if path is None:
        raise ValueError(
            f"'{encoder.name}' was trained with the LoRA '{encoder.about.lora}', of which there is no file in ComfyUI/models/loras. Put "
            "it there; or set lora_strength to 0 if you load it with another node."
        )
    return load_lora_for_models(model, clip, files.load_weights(path), strength, strength)


def stamp(path: str) -> str:
    """A text that changes when the mask encoder in `path`, its LoRA or its handles are written anew."""
    try:
        about = mask_encoder_file.read_about(path)
        others = [_found(LORAS, about.lora), *(_found(EMBEDDINGS, f"{handle.name}.safetensors") for handle in about.handles)]
    except ValueError:
        others = []  # the node's execution says what is wrong with the file
    return " ".join(files.stamp(name) if name else "none" for name in (path, *others))


def owners(encoder: LoadedEncoder, count: int, prompt: str | None) -> list[int | None]:
    """For each of `count` masks the index of the subject it is for, None for a plain word: in the prompt's order, else the training's.

    ValueError if there are more masks than places in the prompt (than subjects, without one) that they could be for.
    """
    known = encoder.about.handles
    if not prompt or not prompt.strip():
        if count > len(known):
            raise ValueError(
                f"there are {count} masks, but '{encoder.name}' knows {_number(len(known), 'subject')} ({words(encoder)}). Give at most "
                "one mask for each; or wire the positive prompt's text to `prompt` if it names a subject several times."
            )
        return list(range(count))
    found = handles.mentions(prompt, known)
    if count > len(found):
        named = {mention.index for mention in found}
        absent = [f"{handle.text} (or '{handle.word}')" for index, handle in enumerate(known) if index not in named]
        missing = f" It does not name {', '.join(absent)}." if absent else ""
        raise ValueError(
            f"there {'is 1 mask' if count == 1 else f'are {count} masks'}, but the prompt names {_number(len(found), 'subject')} of "
            f"'{encoder.name}'.{missing} Name each subject that has a mask, as a word by itself with a space before and after it, or take "
            "masks away."
        )
    return [mention.index if mention.by_handle else None for mention in found[:count]]


def warn_of(masks: Tensor) -> None:
    """Warnings for masks [N, H, W] that have nothing in them, or hide each other."""
    small = mask_encoder.cells(masks).flatten(1)
    areas = small.sum(dim=1)
    for number, (mask, area) in enumerate(zip(masks, areas, strict=True), 1):
        if area == 0:
            why = "nothing in it" if bool((mask < 0.5).all()) else "shapes too thin for 64 x 64 cells"
            log.warning("Pose by Masks: mask %d has %s; its token is zero, and the text alone poses the subject.", number, why)
    for (first, one), (second, other) in itertools.combinations(enumerate(small, 1), 2):
        shared = float((one * other).sum() / torch.minimum(one.sum(), other.sum()).clamp(min=1))
        if shared > OVERLAP:
            log.warning(
                "Pose by Masks: masks %d and %d share %.0f %% of the smaller one; there subjects may mix.", first, second, 100 * shared
            )


def length(text: Tensor, encoder: LoadedEncoder) -> int:
    """The number of a text's tokens [B, T, width]. ValueError with both widths if it is another model's text."""
    if text.shape[-1] != encoder.network.width:
        raise ValueError(
            f"'{encoder.name}' was trained for text of {text_width(encoder.network.width)}, but the prompt was encoded with "
            f"{text_width(text.shape[-1])}. Take model, text encoder and mask encoder from one Load Poseable Subjects."
        )
    return text.shape[1]


def tokens(
    encoder: LoadedEncoder, masks: Tensor, owners: Sequence[int | None], options: Mapping[str, Any], strength: float = 1.0
) -> Tensor:
    """Mask tokens [N, width] for a text with these options (its area) and masks [N, H, W] of the whole picture."""
    return strength * encoder.network(mask_tokens.in_area(masks, options), owners)


def _found(folder: str, name: str) -> str | None:
    """The path of a file in ComfyUI's folder: the one of exactly that name, else the only one of that name in its subfolders."""
    import folder_paths

    present = files.list_files(folder)
    alike = [other for other in present if os.path.basename(other) == os.path.basename(name)]
    chosen = name if name in present else alike[0] if len(alike) == 1 else None
    return folder_paths.get_full_path(folder, chosen) if chosen else None


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
