"""Where a prompt's words stand among the tokens that the UNet sees, asked of the CLIP that encodes it. Transformers: `encoder_words`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import handles
from .mask_tokens import PLACES

log = logging.getLogger(__name__)

Group = tuple[int, ...]
"""Columns of a prompt that belong to one word."""

END = "</w>"
"""How CLIP's vocabulary marks the last piece of a word."""
MASK = re.compile(r"mask\s*:\s*(\d+)", re.IGNORECASE)
_EMBEDDING = re.compile(r"embedding:[^\s,():<\[]+")
MOST_NAMED = 40
SAME = 1e-3
"""Two encodings of one text differ by no more, in half precision too."""

COMMAS = ",\uff0c\u3001\u060c"
"""The commas of Latin, Chinese, Japanese and Arabic."""


@dataclass(frozen=True)
class Piece:
    """A token of a prompt: its column, its number (or an embedding's vector), its text ("" for a vector), and whether it begins a word."""

    column: int
    token: Any
    text: str
    begins: bool


@dataclass(frozen=True)
class Prompt:
    """A text's tokens, for each of the CLIP's text encoders by its letter, and the length of what they encode it to."""

    text: str
    pieces: Mapping[str, tuple[Piece, ...]]
    length: int

    def words(self) -> list[str]:
        """Its different words in order, embeddings as the text names them."""
        found = []
        word = ""
        for piece in next(iter(self.pieces.values()), ()):
            word += piece.text.removesuffix(END)
            if word and (piece.text.endswith(END) or not piece.text):
                found.append(word)
                word = ""
        return list(dict.fromkeys([*found, *_EMBEDDING.findall(self.text)]))


class Worded(Protocol):
    """A prompt that knows its words."""

    def words(self) -> list[str]: ...


def split(words: str) -> list[str]:
    """A list of words as an artist writes it: separated by commas, of whichever script, or lines."""
    return list(dict.fromkeys(" ".join(word.split()) for word in re.split(rf"[\n{COMMAS}]", words) if word.strip()))


def read(clip: Any, text: str) -> Prompt:
    """What the CLIP makes of a text. Weights, long prompts and embeddings of several vectors are as its text nodes have them."""
    widths = handles.widths_of(clip)
    rows = clip.tokenize(text, return_word_ids=True)
    # The parts of an SDXL text are cut to the shorter one.
    length = min(sum(len(row) for row in chunks) for chunks in rows.values())
    return Prompt(text, {letter: _pieces(clip, chunks, widths.get(letter)) for letter, chunks in rows.items()}, length)


def _pieces(clip: Any, chunks: Sequence[Any], width: int | None) -> tuple[Piece, ...]:
    found: list[Piece] = []
    first = 0
    begins = True
    for chunk in chunks:
        column = first
        for token, weight, word in chunk:
            vector = isinstance(token, Tensor)
            if vector and width is not None and token.shape[-1] != width:
                continue  # the text encoder leaves it out, and what follows moves up
            if word != 0:  # 0: the beginning, the end, what fills up
                text = "" if vector else str(clip.tokenizer.untokenize([(token, weight)])[0][1])
                found.append(Piece(column, token, text, begins or vector))
                begins = vector or text.endswith(END)
            column += 1
        first += len(chunk)
    return tuple(found)


def find(clip: Any, prompt: Prompt, word: str) -> Group:
    """The columns of a word, a phrase or `embedding:name`, everywhere in the prompt.

    ValueError, naming the prompt's words, if it is not there.
    """
    sought = read(clip, word)
    if not any(sought.pieces.values()):
        what = f"there is no embedding of that name in models/embeddings: '{word}'" if "embedding:" in word else f"'{word}' is no word"
        raise ValueError(f"{what}. {named(prompt)}")
    columns: set[int] = set()
    for letter, pieces in prompt.pieces.items():
        columns.update(_places(pieces, sought.pieces[letter]))
    if not columns:
        raise ValueError(f"the word '{word}' is not in `text`. {named(prompt)}")
    return tuple(sorted(column for column in columns if column < prompt.length))


def _places(pieces: Sequence[Piece], sought: Sequence[Piece]) -> list[int]:
    """The columns wherever `sought` stands among the pieces, from the beginning of a word on."""
    found: list[int] = []
    for start in range(len(pieces) - len(sought) + 1 if sought else 0):
        part = pieces[start : start + len(sought)]
        if part[0].begins and all(_same(one.token, two.token) for one, two in zip(part, sought, strict=True)):
            found += [piece.column for piece in part]
    return found


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    return not isinstance(one, Tensor) and not isinstance(two, Tensor) and one == two


def find_mask(options: Mapping[str, Any], number: int) -> Group:
    """The columns of mask token `number` (from 1) in a text of a CONDITIONING with these options. ValueError if there is no such."""
    before = 0
    for first, count, copies in options.get(PLACES, ()):
        if before < number <= before + count:
            return tuple(first + copy * count + number - before - 1 for copy in range(copies))
        before += count
    if before == 0:
        raise ValueError(f"'mask:{number}': the positive prompt has no mask tokens. Wire the positive of Pose by Masks to `positive`.")
    raise ValueError(f"'mask:{number}': the positive prompt has {before} mask token{'s' * (before > 1)}. They are numbered from 1.")


def columns(prompt: Worded, words: Sequence[str], options: Mapping[str, Any], find: Callable[[str], Group]) -> tuple[Group, ...]:
    """The columns of each of the words and mask tokens (`mask:1`); words by `find`. ValueError as `find` and `find_mask`."""
    if not words:
        raise ValueError(f"`words` is empty: write the words that you want to see, separated by commas. {named(prompt)}")
    found = [(word, MASK.fullmatch(word)) for word in words]
    return tuple(find_mask(options, int(mask[1])) if mask else find(word) for word, mask in found)


def entries(positive: list[Any] | None, own: list[Any], length: int) -> tuple[list[Any], bool]:
    """The texts of a CONDITIONING that are a prompt's, all of one length, and whether they are it for sure.

    `own` is the prompt encoded, which is taken without a CONDITIONING, `length` its length. ValueError if none is long enough to be it.
    Where none equals `own`, a warning and all that may be it.
    """
    if positive is None:
        return own, True
    long_enough = [entry for entry in positive if entry[0].shape[1] >= length]
    if not long_enough:
        lengths = " and ".join(str(entry[0].shape[1]) for entry in positive) or "nothing"
        raise ValueError(
            f"`text` is {length} tokens long for the text encoder, but `positive` holds {lengths}: it was made from another text. "
            "Wire one text to this node and to the text node (right click, convert to input), or leave `positive` out."
        )
    same = [entry for entry in long_enough if any(_is(entry[0], text) for text, _ in own)]
    if not same:
        log.warning(
            "Attention Map: `positive` is not what this CLIP makes of `text`. The words are looked for where they stand in `text`; if it "
            "is another prompt, the maps are of other words."
        )
    found = same or long_enough
    return [entry for entry in found if entry[0].shape[1] == found[0][0].shape[1]], bool(same)


def _is(given: Tensor, text: Tensor) -> bool:
    """Whether a text of a CONDITIONING begins with this encoding."""
    begin = given[:1, : text.shape[1]].float().cpu()
    return begin.shape == text[:1].shape and torch.allclose(begin, text[:1].float().cpu(), atol=SAME, rtol=SAME)


def named(prompt: Worded) -> str:
    """A prompt's words, for messages."""
    words = prompt.words()
    if not words:
        return "`text` has no words: write the positive prompt into it."
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return f"`text` has the words: {', '.join(words[:MOST_NAMED])}{more}. Whole words are found, and phrases of several."
