"""Attention with a dense mask of who sees whom, written out token by token: what the pack's groups must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Token = tuple[str, int]
"""("words", number of the text; -1: of none), ("cells", number of the cell), ("reference", its number)."""


@dataclass(frozen=True)
class Area:
    """A region as a test knows it: its cells, bool [cells], and what was asked for it."""

    inside: torch.Tensor
    strength: float = 1.0
    replaces: bool = False
    apart: bool = False


def sees(query: Token, key: Token, areas: Sequence[Area], inside: Sequence[Sequence[bool]], there: Sequence[bool]) -> bool:
    """Whether a token sees another if the regions `there` are. Text number n + 1 belongs to area n, whose cells are `inside[n]`."""
    kinds = (query[0], key[0])
    if ("words", -1) in (query, key):
        return False
    if kinds == ("words", "words"):
        return query[1] == key[1]
    if kinds == ("words", "cells"):
        if query[1] > 0:
            return inside[query[1] - 1][key[1]]
        return not any(area.replaces and on and cells[key[1]] for area, cells, on in zip(areas, inside, there, strict=True))
    if kinds == ("cells", "words"):
        if key[1] > 0:
            return there[key[1] - 1] and inside[key[1] - 1][query[1]]
        return not any(area.replaces and on and cells[query[1]] for area, cells, on in zip(areas, inside, there, strict=True))
    if kinds == ("cells", "cells"):
        mine = [number for number, cells in enumerate(inside) if cells[query[1]]]
        theirs = [number for number, cells in enumerate(inside) if cells[key[1]]]
        strangers = mine and theirs and not set(mine) & set(theirs)
        return not (strangers and any(areas[number].apart for number in mine + theirs))
    if kinds == ("reference", "words"):
        return key[1] == 0
    return True


def mask_of(queries: Sequence[Token], keys: Sequence[Token], areas: Sequence[Area], there: Sequence[bool]) -> torch.Tensor:
    inside = [area.inside.bool().tolist() for area in areas]
    return pairwise(queries, keys, lambda query, key: sees(query, key, areas, inside, there))


def pairwise(queries: Sequence[Token], keys: Sequence[Token], rule: Callable[[Token, Token], bool]) -> torch.Tensor:
    """What the rule says of each query (row) and key (column), bool [N, M]. It is asked once of tokens that are alike."""
    rows, columns = list(dict.fromkeys(queries)), list(dict.fromkeys(keys))
    answers = torch.tensor([[rule(query, key) for key in columns] for query in rows])
    return answers[[rows.index(query) for query in queries]][:, [columns.index(key) for key in keys]]


def softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, more: torch.Tensor | None = None
) -> torch.Tensor:
    """q, k, v [B, H, N, d], seen [N, M] bool, `more` a bias of the call's own. Queries that see nothing get zero."""
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    if more is not None:
        scores = scores + (more if more.ndim == 4 else more[:, None]).float()
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return (weights @ v.float()).to(v.dtype)


def blended(strengths: Sequence[float]) -> list[tuple[float, list[bool]]]:
    """Gives weights, and which are there, whose results add up: linear between the strengths (Lovász), the strongest first."""
    levels = sorted(set(strengths), reverse=True)
    parts = [(1 - levels[0], [False] * len(strengths))]
    for level, lower in zip(levels, [*levels[1:], 0.0], strict=True):
        parts.append((level - lower, [strength >= level for strength in strengths]))
    return [(weight, there) for weight, there in parts if weight]


def override(
    tokens: Callable[[int, int, dict[str, Any]], tuple[list[Token], list[Token]] | None],
    areas: Callable[[int], Sequence[Sequence[Area]]] | Sequence[Area],
    beneath: Any = None,
) -> Any:
    """An `optimized_attention_override` for a test: `tokens(queries, keys, options)` says what they are (None: leave the call alone).

    `areas` are the regions, or a function of the batch that gives each row's.
    """

    known: dict[Any, torch.Tensor] = {}

    def seen(queries: list[Token], keys: list[Token], here: Sequence[Area], there: list[bool]) -> torch.Tensor:
        key = (tuple(queries), tuple(keys), *map(id, here), *there)
        if key not in known:
            known[key] = mask_of(queries, keys, here, there)
        return known[key]

    def attend(func: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, *_: Any, **kwargs: Any) -> torch.Tensor:
        parts = [q, k, v] if kwargs.get("skip_reshape") else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        told = tokens(parts[0].shape[2], parts[1].shape[2], kwargs.get("transformer_options") or {})
        if told is None:
            return func(q, k, v, heads, mask, *_, **kwargs)
        rows = areas(len(q)) if callable(areas) else [areas] * len(q)
        results = []
        for row, here in enumerate(rows):
            alone = [x[row : row + 1] for x in parts]
            bias = None if mask is None else mask[row : row + 1] if len(mask) == len(q) else mask
            looks = blended([area.strength for area in here]) if here else [(1.0, [])]
            found = [
                weight * softmax_attention(alone[0], alone[1], alone[2], seen(told[0], told[1], here, there), bias)
                for weight, there in looks
            ]
            results.append(torch.stack(found).sum(0))
        result = torch.cat(results)
        return result if kwargs.get("skip_output_reshape") else result.transpose(1, 2).flatten(2)

    return attend


def listed(*spans: tuple[str, int] | tuple[str, int, int]) -> list[Token]:
    """Tokens of spans (kind, count) or (kind, count, number); cells are counted, all else has its span's number."""
    tokens: list[Token] = []
    for kind, count, *number in spans:
        tokens += [(kind, index if kind == "cells" else (number[0] if number else 0)) for index in range(count)]
    return tokens
