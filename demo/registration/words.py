"""Of a text encoder's words, the tiny models' files hold those that have a meaning; the others' embeddings are zeros."""

from __future__ import annotations

from typing import Any

WORDS = "text_model.embeddings.token_embedding.weight"
WORD_IDS = "text_model.embeddings.token_ids"
"""In a tiny model's file the words' embeddings are those of the tokens named here: all other tokens have none but zeros."""
TOKENS = 49_408


def packed_words(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A text encoder's weights with the embeddings [K, C] of the tokens that have any, and which these are [K], for `whole_words`."""
    table = state[prefix + WORDS]
    (ids,) = table.any(dim=1).nonzero(as_tuple=True)
    return {**state, prefix + WORDS: table[ids], prefix + WORD_IDS: ids}


def whole_words(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The weights with the embeddings of all tokens [49408, C], zero where the file has none; those without `WORD_IDS` as they are."""
    if prefix + WORD_IDS not in state:
        return state
    known = state[prefix + WORDS]
    table = known.new_zeros(TOKENS, known.shape[1])
    table[state[prefix + WORD_IDS]] = known
    return {name: value for name, value in state.items() if name != prefix + WORD_IDS} | {prefix + WORDS: table}
