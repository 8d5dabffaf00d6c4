"""Handles: what stands for a learned subject in a prompt. They are ComfyUI's own embeddings (`embedding:name` in any text node)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import files

PREFIX = "embedding:"
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SUFFIXES = (".safetensors", ".pt", ".bin")
_IN_PROMPT = re.compile(r"(?:^|(?<=[\s()]))embedding:([^\s()<\[]*)")


@dataclass(frozen=True)
class Handle:
    """A learned subject: its embedding's file name without suffix, the plain word it began as, and `fingerprint` of its vectors."""

    name: str
    word: str
    fingerprint: str = ""

    @property
    def text(self) -> str:
        """What a prompt says: "embedding:fox-cat"."""
        return PREFIX + self.name


@dataclass(frozen=True)
class Mention:
    """A place in a prompt where a subject stands: which handle's, and whether by its handle or by its plain word."""

    index: int
    by_handle: bool


def check_name(name: str) -> None:
    """ValueError for a name that ComfyUI's text nodes would not read as one embedding."""
    if not _NAME.fullmatch(name) or name.lower().endswith(_SUFFIXES):
        raise ValueError(
            f"'{name}' cannot be a handle's name: in a prompt it would be read as something else. Use letters from a to z, digits, - and _ "
            "only, such as fox-cat."
        )


def save(folder: str, name: str, vectors: Mapping[str, Tensor], word: str) -> str:
    """Writes a handle as an embedding that ComfyUI's text nodes read: NAME.safetensors in `folder`, float32. Gives its path.

    `vectors`: for each of the CLIP's text encoders by its letter ("l", "g", "h"; see `vectors_of`) [k, width], or [width] for one.
    SDXL's pair is stored as clip_l and clip_g, a single one as emb_params, which other programs read too. A file of that name is replaced
    whole or not at all.
    """
    check_name(name)
    path = os.path.join(folder, f"{name}.safetensors")
    rows = {letter: vector.float().reshape(-1, vector.shape[-1]) for letter, vector in vectors.items()}
    named = {f"clip_{letter}": row for letter, row in rows.items()} if len(rows) > 1 else {"emb_params": next(iter(rows.values()))}
    files.write_weights(path, named, {"format": "pt", "word": word})
    return path


def vectors_of(clip: Any, name: str) -> dict[str, Tensor]:
    """What the CLIP's text nodes put where a prompt says `embedding:name`: [k, width] for each of its text encoders; {} for nothing.

    The CLIP itself is asked, so this is the file that it finds, in whichever of its folders.
    """
    found: dict[str, Tensor] = {}
    for letter, rows in clip.tokenize(PREFIX + name).items():
        vectors = [entry[0] for row in rows for entry in row if isinstance(entry[0], Tensor)]
        if vectors:
            found[letter] = torch.stack(vectors)
    return found


def widths_of(clip: Any) -> dict[str, int]:
    """The width of the word embeddings of each of the CLIP's text encoders, by its letter: {"l": 768}, for SDXL {"l": 768, "g": 1280}."""
    encoders = {name: child.transformer for name, child in clip.cond_stage_model.named_children() if hasattr(child, "transformer")}
    return {name.removeprefix("clip_"): int(found.get_input_embeddings().weight.shape[-1]) for name, found in encoders.items()}


def fingerprint(vectors: Mapping[str, Tensor]) -> str:
    """A short text that tells these vectors from others. `vectors` as in `save`; rounded to half precision, which files may have."""
    digest = hashlib.blake2b(digest_size=8)
    for letter in sorted(vectors):
        half = vectors[letter].detach().half().cpu().reshape(-1, vectors[letter].shape[-1]).contiguous()
        digest.update(f"{letter} {list(half.shape)}".encode())
        digest.update(half.numpy().tobytes())
    return digest.hexdigest()


def mentions(prompt: str, known: Sequence[Handle]) -> list[Mention]:
    """Where the prompt names the subjects, in its order: by their handles, each time; those that it never calls so by their plain words.

    Handles are found where ComfyUI finds them: after a space or a bracket, with or without folder and suffix, case as the file's.
    """
    found: list[tuple[int, Mention]] = []
    for match in _IN_PROMPT.finditer(prompt):
        name = _file_name(match[1])
        found += [(match.start(), Mention(index, True)) for index, handle in enumerate(known) if handle.name == name]
    named = {mention.index for _, mention in found}
    rest = _IN_PROMPT.sub(lambda match: " " * len(match[0]), prompt)
    for index, handle in enumerate(known):
        if index not in named and handle.word.strip():
            word = re.compile(rf"(?<![\w-]){re.escape(handle.word.strip())}(?![\w-])", re.IGNORECASE)
            found += [(match.start(), Mention(index, False)) for match in word.finditer(rest)]
    return [mention for _, mention in sorted(found, key=lambda place: (place[0], place[1].index))]


def _file_name(written: str) -> str:
    """ "sub/fox-cat.safetensors:1.2," as "fox-cat"."""
    name = re.sub(r":[-+.\d]*$", "", written).strip(",").replace("\\", "/").rsplit("/", 1)[-1]
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
