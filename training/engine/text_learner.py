"""The text encoder that learns: a copy of a ComfyUI CLIP, and the vectors of handles, which stand in a prompt as words do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .model_copy import twin, without_sums_in_place
from .trainable_weights import Adapted, Method

PLACEHOLDER = "x"
"""The word that keeps a handle's place while a prompt is cut into tokens."""

Tokens = dict[str, list[list[tuple[Any, ...]]]]
"""What a CLIP tokenizes a prompt to: for each of its text encoders, by letter, rows of (token or vector, weight)."""


class TextLearner:
    """A copy of `clip` in which handles learn, beside its weights as `method` says; the given one is only read.

    `words`: the plain word that each handle begins as. `vectors` are the handles, for each of the CLIP's text encoders by its letter
    [handles, width], float32. ValueError for a word that the text encoder does not know,
    or that is an embedding for another one.
    """

    def __init__(self, clip: Any, words: Sequence[str], method: Method = "lora", rank: int = 16, seed: int = 0) -> None:
        self.clip = clip
        with torch.inference_mode(False):
            patcher = twin(clip.patcher)
            without_sums_in_place(patcher.model.requires_grad_(False))
            self.adapted = Adapted(patcher, method, _of_encoder, "text_encoders.", rank, seed)
            self.vectors = {letter: nn.Parameter(rows) for letter, rows in first_vectors(clip, patcher.model, words).items()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The handles' vectors and what learns of the encoder, by the names they have in the state that is saved."""
        return self.handles | self.adapted.parameters

    @property
    def handles(self) -> dict[str, nn.Parameter]:
        """The handles' vectors alone."""
        return {f"handles.{letter}": rows for letter, rows in self.vectors.items()}

    def handle(self, index: int) -> dict[str, Tensor]:
        """One handle's vector for each text encoder, as `handles.save` takes it: [1, width], float32, on the CPU."""
        return {letter: rows[index : index + 1].detach().float().cpu().clone() for letter, rows in self.vectors.items()}

    def tokens(self, prompt: str, order: Sequence[int]) -> tuple[Tokens, list[int]]:
        """A prompt that holds a placeholder for each handle of `order`, in tokens; and the column in which each of them stands."""
        found: Tokens = {}
        columns: list[int] = []
        for letter, rows in self.clip.tokenize(prompt).items():
            mark = self.clip.tokenize(PLACEHOLDER)[letter][0][1][0]
            places = [(row, column) for row, entries in enumerate(rows) for column, entry in enumerate(entries) if _same(entry[0], mark)]
            if len(places) != len(order):
                raise ValueError(f"the prompt has {len(places)} places for {len(order)} handles")
            found[letter] = [list(entries) for entries in rows]
            for (row, column), index in zip(places, order, strict=True):
                found[letter][row][column] = (self.vectors[letter][index : index + 1], *rows[row][column][1:])
            columns = [sum(len(entries) for entries in rows[:row]) + column for row, column in places]
        return found, columns

    def encode(self, tokens: Tokens) -> list[Any]:
        """One text of a CONDITIONING, [text [1, T, width], options], with gradients: as the CLIP itself encodes it."""
        encoder = self.adapted.patcher.model
        encoder.reset_clip_options()
        if self.clip.layer_idx is not None:
            encoder.set_clip_options({"layer": self.clip.layer_idx})
        encoder.set_clip_options({"execution_device": self.adapted.patcher.load_device})
        text, pooled, *_ = encoder.encode_token_weights(tokens)
        return [text, {"pooled_output": pooled}]

    def text(self, prompt: str) -> list[Any]:
        """The same of a prompt without handles."""
        return self.encode(self.clip.tokenize(prompt))


def first_vectors(clip: Any, encoder: Any, words: Sequence[str]) -> dict[str, Tensor]:
    """What the handles begin as: the mean of their words' token vectors, [words, width] for each text encoder by its letter."""
    found: dict[str, list[Tensor]] = {}
    for word in words:
        for letter, rows in clip.tokenize(word, return_word_ids=True).items():
            table = getattr(encoder, f"clip_{letter}").transformer.get_input_embeddings().weight
            pieces = [entry[0] for row in rows for entry in row if entry[2] != 0]  # 0: beginning, end and padding
            if not pieces:
                raise ValueError(f"the text encoder reads nothing where a subject's word says {word!r}")
            vectors = [piece if isinstance(piece, Tensor) else table[piece].detach() for piece in pieces]
            for width in {vector.shape[-1] for vector in vectors} - {table.shape[-1]}:
                raise ValueError(
                    f"the subject's word {word!r} is an embedding for another text encoder: it has {width} numbers where this one "
                    f"(clip_{letter}) needs {table.shape[-1]}."
                )
            found.setdefault(letter, []).append(torch.stack([vector.float().cpu() for vector in vectors]).mean(0))
    return {letter: torch.stack(rows).clone() for letter, rows in found.items()}


def _same(token: Any, mark: Any) -> bool:
    return not isinstance(token, Tensor) and token == mark


def _of_encoder(name: str) -> bool:
    """The layers of all text encoders; not the tables of words and places, nor what makes the pooled text."""
    return ".encoder.layers." in name or ".final_layer_norm." in name
