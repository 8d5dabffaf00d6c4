"""Where a prompt's words stand among the tokens that a transformer sees, asked of the CLIP object that encodes it.

T5, Qwen, Mistral, Gemma and CLIP cut words in different ways, and some set the prompt into a template. So words are looked for by their
letters: of every token it is known which it stands for (`token_text.py`), and what is the template's is what two prompts share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..attention.families.hidream import LLAMA
from .prompt_words import Group, named
from .token_text import FILLING, is_filling, letters_of

OTHER_PROMPT = "\u00b6"
"""A prompt of one sign that nobody begins or ends a prompt with."""
UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
"""Letters of scripts that write no blanks between words, or join endings to them."""

FLUX = {"l", "t5xxl"}
SD3 = {"g", "l", "t5xxl"}
ANIMA = {"qwen3_06b", "t5xxl"}
HIDREAM = {"g", "l", "llama", "t5xxl"}
"""The names of the encoders that are tokenized for, of the CLIPs that have several."""
CUT_BEHIND = {"LongCatImageTokenizer"}
"""The tokenizers whose template's end is taken off what was encoded."""


@dataclass(frozen=True)
class Letter:
    """A letter of the prompt, in lower case, and the first and last of the columns that make it."""

    sign: str
    first: int
    last: int


@dataclass(frozen=True)
class EncoderPrompt:
    """A text's letters, once for each encoder whose tokens the model sees, by their columns in the CONDITIONING.

    HiDream's Llama has columns behind those of T5, whose words are the CONDITIONING's text. `length` is that of the CONDITIONING's text,
    `seen` how many tokens the model makes of it. `at_the_end` says that what is not the prompt's (instructions, pictures) comes before it,
    so that in a longer CONDITIONING the words are as far from the end as here.
    """

    text: str
    letters: tuple[tuple[Letter, ...], ...]
    length: int
    seen: int
    at_the_end: bool

    def words(self) -> list[str]:
        """Its different words in order."""
        return list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", self.text)))

    def tokens_in(self, entry: Sequence[Any]) -> int:
        """How many tokens the model makes of a text of a CONDITIONING, [text, options]."""
        ids, llama = entry[1].get("t5xxl_ids"), entry[1].get(LLAMA)
        if llama is not None:
            return entry[0].shape[1] + llama.shape[2]
        return entry[0].shape[1] if ids is None else len(ids)

    def shift_in(self, entry: Sequence[Any], same: bool) -> int:
        """How much further behind the words stand in a text of a CONDITIONING; `same`: it begins with what the prompt is encoded to."""
        return entry[0].shape[1] - self.length if self.at_the_end and not same else 0

    def find(self, word: str) -> Group:
        """The columns of a word or phrase, everywhere in the prompt. ValueError, naming the prompt's words, if it is not there."""
        if word.lower().startswith("embedding:"):
            raise ValueError(f"'{word}': learned embeddings can be looked for in prompts of SD 1.5, SD 2.1 and SDXL only.")
        columns: set[int] = set()
        pattern = _pattern(word)
        for letters in self.letters:
            line = "".join(letter.sign for letter in letters)
            for match in pattern.finditer(line):
                for letter in letters[match.start() : match.end()]:
                    columns.update(range(letter.first, letter.last + 1) if not letter.sign.isspace() else ())
        found = tuple(sorted(column for column in columns if 0 <= column < self.seen))
        if not found:
            raise ValueError(f"the word '{word}' is not in `text`. {named(self)}")
        return found


def _pattern(word: str) -> re.Pattern[str]:
    """Whole words, blanks between them as many as there are; in scripts without blanks anywhere."""
    pieces = re.findall(r"\w+|[^\w\s]", word.lower())
    text = ""
    for number, piece in enumerate(pieces):
        between = r"\s+" if number and piece[0].isalnum() and pieces[number - 1][-1].isalnum() else r"\s*" if number else ""
        text += between + re.escape(piece)
    before = "" if not pieces or not pieces[0][0].isalnum() or UNSPACED.match(pieces[0][0]) else r"(?<!\w)"
    after = "" if not pieces or not pieces[-1][-1].isalnum() or UNSPACED.match(pieces[-1][-1]) else r"(?!\w)"
    return re.compile(f"{before}{text}{after}" if pieces else r"(?!)")


def read(clip: Any, text: str, encoded: Tensor, options: Mapping[str, Any]) -> EncoderPrompt:
    """What a CLIP makes of a text; `encoded` [1, T, width] and its options are the first entry of its CONDITIONING.

    ValueError in words where it cannot be known which token is which.
    """
    rows = clip.tokenize(text, return_word_ids=True)
    others = clip.tokenize(OTHER_PROMPT, return_word_ids=True)
    length = encoded.shape[1]
    counts = {name: sum(len(chunk) for chunk in chunks) for name, chunks in rows.items()}
    names, seen, at_the_end = set(rows), length, False
    if names == FLUX:
        places = {"t5xxl": 0}
        _check(clip, counts["t5xxl"] == length, names)
    elif names == ANIMA:
        if options.get("t5xxl_ids") is None:
            _check(clip, False, names)
        places, seen = {"t5xxl": 0}, counts["t5xxl"]
    elif names == HIDREAM:
        places, seen = _of_hidream(clip, counts, length, options.get(LLAMA))
    elif names == SD3:
        places = _of_sd3(clip, counts, length)
    elif len(names) == 1:
        (name,) = names
        cut = counts[name] - length
        _check(clip, cut >= 0 and type(clip.tokenizer).__name__ not in CUT_BEHIND, names)
        at_the_end = bool(rows[name][-1]) and not is_filling(rows[name][-1][-1])
        places = {name: -cut}
    else:
        _check(clip, False, names)
        places = {}
    letters = tuple(
        tuple(Letter(one.sign, one.first + place, one.last + place) for one in _own(clip, name, rows[name], others[name]))
        for name, place in places.items()
    )
    return EncoderPrompt(text, letters, length, seen, at_the_end)


def _of_sd3(clip: Any, counts: Mapping[str, int], length: int) -> dict[str, int]:
    """Where CLIP's and T5's tokens begin: CLIP's two share columns, cut to the shorter one, and T5's come behind. Each may be missing."""
    encoder = clip.cond_stage_model
    there = {name: getattr(encoder, attribute, None) is not None for name, attribute in (("l", "clip_l"), ("g", "clip_g"))}
    t5 = getattr(encoder, "t5xxl", None) is not None
    both = min((counts[name] for name, is_there in there.items() if is_there), default=0)
    _check(clip, both + (counts["t5xxl"] if t5 else 0) == length, {"g", "l", "t5xxl"})
    places = {name: 0 for name, is_there in there.items() if is_there}
    return {**places, "t5xxl": both} if t5 else places


def _of_hidream(clip: Any, counts: Mapping[str, int], length: int, llama: Tensor | None) -> tuple[dict[str, int], int]:
    """Where T5's and Llama's tokens begin, and how many there are. Of an encoder that is not loaded there are zeros, and no words."""
    encoder = clip.cond_stage_model
    there = {name: getattr(encoder, name, None) is not None for name in ("t5xxl", "llama")}
    behind = 0 if llama is None else llama.shape[2]
    known = (not there["t5xxl"] or counts["t5xxl"] == length) and (not there["llama"] or counts["llama"] == behind)
    _check(clip, known and any(there.values()), HIDREAM)
    starts = {"t5xxl": 0, "llama": length}
    return {name: starts[name] for name in there if there[name]}, length + behind


def _check(clip: Any, known: bool, names: set[str]) -> None:
    if not known:
        raise ValueError(
            f"it is not known where this text encoder ({', '.join(sorted(names))}; {type(clip.tokenizer).__name__}) puts the words of a "
            "prompt, so their maps cannot be told apart. Attention Map knows those of FLUX.1 and 2, Chroma, Qwen-Image, Z-Image, Lumina 2, "
            "Krea 2, Anima, Cosmos, SD 3, HiDream, Wan and Lens. Wire the CLIP that belongs to the model."
        )


def _own(clip: Any, name: str, chunks: Sequence[Any], others: Sequence[Any]) -> list[Letter]:
    """The prompt's own letters: those that another prompt's line does not begin or end with alike."""
    mine, other = (_without_filling(_letters(clip, name, row)) for row in (chunks, others))
    most = max(0, min(len(mine), len(other) - 1))
    before = _alike(mine, other, most)
    after = _alike(mine[::-1], other[::-1], min(most - before, len(mine) - before)) if most > before else 0
    return mine[before : len(mine) - after]


def _without_filling(letters: list[Letter]) -> list[Letter]:
    """The letters from the first token that is no filling to the last one."""
    places = [number for number, letter in enumerate(letters) if letter.sign != FILLING]
    return letters[places[0] : places[-1] + 1] if places else []


def _alike(one: Sequence[Letter], two: Sequence[Letter], most: int) -> int:
    """How many of the first letters of both are the same."""
    for number in range(most):
        if one[number].sign != two[number].sign:
            return number
    return most


def _letters(clip: Any, name: str, chunks: Sequence[Any]) -> list[Letter]:
    """All letters of an encoder's tokens, in lower case, by their tokens' columns."""
    tokenizer = getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}", None)
    tokens = [entry for chunk in chunks for entry in chunk]
    try:
        found = letters_of(tokenizer, tokens)
    except LookupError as error:
        raise ValueError(
            f"the tokens of this text encoder ({name}) cannot be read as letters: {error}. Words cannot be looked for."
        ) from None
    return [Letter(sign, first, last) for letter, first, last in found for sign in letter.lower()]
