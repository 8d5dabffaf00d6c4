"""What is checked before DreamCom's training encodes or trains anything; every error is a ValueError in the artist's words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..data import references
from ..engine.checks import check_inpainting, check_parts, check_size
from ..engine.options import check_numbers
from .options import Options

log = logging.getLogger(__name__)

NODE = "Train a Subject"
MOST_PIECES = 8


def check(model: Any, clip: Any, vae: Any, options: Options, pictures: Sequence[references.Reference]) -> None:
    """ValueError, in the artist's words, for what cannot be trained; to be asked before anything is encoded."""
    check_numbers(options, NODE)
    check_inpainting(model)
    check_parts(model, clip, vae)
    check_words(options, clip)
    check_size(options.size, [(one.mask.shape[0], one.mask.shape[1]) for one in pictures], NODE)


def check_words(options: Options, clip: Any) -> None:
    """ValueError for an empty token or noun, or one that the text encoder does not know as a word; a warning where it is in pieces."""
    words = (("token", options.token, "a rare word such as sks"), ("noun", options.noun, "what the subject is, such as dog"))
    for name, word, instead in words:
        if not word.strip():
            raise ValueError(f"{name} is empty. Write {instead} into it; the prompt is made of both.")
    for name, word, instead in words:
        pieces, weighted = _pieces(clip, word)
        if pieces == 0:
            raise ValueError(
                f"the text encoder reads nothing where the {name} says {word!r}: there is no such embedding. Write {instead} "
                "instead, or put the embedding's file into models/embeddings."
            )
        if pieces > MOST_PIECES:
            raise ValueError(
                f"the {name} {word!r} is {pieces} pieces long for the text encoder (at most {MOST_PIECES}). Use one plain word for it."
            )
        if pieces > 1:
            log.warning(
                "Train a Subject: the text encoder reads the %s %r as %d pieces; one short word is learned better.", name, word, pieces
            )
        if weighted:
            log.warning("Train a Subject: the %s %r is trained with its weight; later prompts need the same weight.", name, word)


def _pieces(clip: Any, text: str) -> tuple[int, bool]:
    """How many pieces a text is for the text encoder (a stored embedding is one), and whether it carries a weight."""
    most = 0
    weighted = False
    for rows in clip.tokenize(text, return_word_ids=True).values():
        entries = [entry for row in rows for entry in row if entry[2] != 0]  # 0: beginning, end and padding
        embeddings = {entry[2] for entry in entries if isinstance(entry[0], Tensor)}
        most = max(most, sum(not isinstance(entry[0], Tensor) for entry in entries) + len(embeddings))
        weighted = weighted or any(entry[1] != 1.0 for entry in entries)
    return most, weighted
