"""The letters that tokens stand for, of every kind of tokenizer that ComfyUI's text encoders have."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from typing import Any

SENTENCEPIECE_BLANK = "\u2581"
CLIP_END = "</w>"
BYTE_BLANK = "\u0120"
"""How byte-level vocabularies write a blank."""
FILLING = "\0"
"""What stands for a token without letters: the beginning, the end, what fills up, a vector, a picture."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

Placed = tuple[str, int, int]
"""A letter, and the first and last token that it is made of."""


def letters_of(tokenizer: Any, tokens: Sequence[Any]) -> list[Placed]:
    """The letters of a row of tokens (number or vector, weight, word id; 0: no word), as ComfyUI's tokenizer object gives them.

    A letter of several bytes may be spread over tokens. LookupError if the vocabulary is of no kind that is known.
    """
    vocabulary = tokenizer.inv_vocab
    kind = _kind(vocabulary.values())
    found: list[Placed] = []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    first = 0
    for number, entry in enumerate(tokens):
        written = FILLING.encode() if is_filling(entry) else _bytes(vocabulary.get(entry[0]), kind)
        for byte in written:
            letters = decoder.decode(bytes([byte]))
            found += [(letter, first, number) for letter in letters]
            if letters:
                first = number
        if not decoder.getstate()[0]:
            first = number + 1
    return found


def is_filling(entry: Sequence[Any]) -> bool:
    """Whether a token (number or vector, weight, word id if it is told) stands for no letters."""
    return not isinstance(entry[0], int) or (len(entry) > 2 and entry[2] == 0)


def _kind(vocabulary: Collection[str]) -> str:
    if SENTENCEPIECE_BLANK in vocabulary:
        return "sentencepiece"
    if f"a{CLIP_END}" in vocabulary:
        return "clip"
    if BYTE_BLANK in vocabulary:
        return "bytes"
    raise LookupError("the vocabulary is neither of bytes nor of SentencePiece")


def _bytes(piece: str | None, kind: str) -> bytes:
    """What a piece of a vocabulary stands for. Pieces that are no text (special tokens) are written as they are named."""
    if piece is None:
        return FILLING.encode()
    if kind == "sentencepiece":
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(SENTENCEPIECE_BLANK, " ").encode("utf-8")
    blank = b""
    if kind == "clip" and piece.endswith(CLIP_END):
        piece = piece.removesuffix(CLIP_END)
        blank = b" "
    if all(sign in BYTES for sign in piece):
        return bytes(BYTES[sign] for sign in piece) + blank
    return piece.encode("utf-8") + blank


def _byte_signs() -> dict[str, int]:
    """The sign that byte-level vocabularies write for each byte: printable ones for themselves, the others from U+0100 on in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(0x100 + place): byte for place, byte in enumerate(others)}}


BYTES = _byte_signs()
