"""Attention by groups: queries that see the same keys run together, in one call without a mask.

`plan` turns rules into groups, once for each layout; `attend` runs a layer by it. Queries and keys are sorted so that a group is a slice
and its keys are a few slices. It equals the softmax over all keys with a dense mask, which is never built.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, Span
from .visibility import Rule

Piece = tuple[int, int]
"""Tokens from, to (not included), in sorted order."""
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention without rules: q, k, v and the call's own mask or None; its result has the queries in `Where.result`."""


@dataclass(frozen=True)
class View:
    """Keys that are seen, and those of them whose values count as zero, with the weight of the result."""

    weight: float
    keys: tuple[Piece, ...]
    zeroed: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Group:
    """Queries (a piece of the sorted ones) and their views. No view: nothing is seen, and the result is zero."""

    queries: Piece
    views: tuple[View, ...]


@dataclass(frozen=True)
class Plan:
    """How a call is cut. Orders are int64 [N] on the call's device, None where tokens stay in their place."""

    groups: tuple[Group, ...]
    query_order: Tensor | None
    key_order: Tensor | None
    keys: int

    @property
    def free(self) -> bool:
        """Whether every query sees every key, so that the call is the one that would have been made."""
        return all(group.views == (View(1.0, ((0, self.keys),)),) for group in self.groups)


@dataclass(frozen=True)
class Where:
    """In which dimension of q, k and v (`tokens`) and of the result (`result`) the tokens are."""

    tokens: int = 1
    result: int = 1


def plan(layout: Layout, rules: Sequence[Rule], device: torch.device) -> Plan:
    """The groups of a call under all of the rules."""
    queries, query_classes = _classes(rules, layout.queries, layout)
    keys, key_classes = (queries, query_classes) if layout.joint else _classes(rules, layout.keys, layout)
    seen = [_seen(labels, keys, rules) for labels in queries]
    places = _places(keys, key_classes, layout.keys, _seen_by_cells(seen, query_classes, layout.queries))
    groups = sorted(set(seen), key=seen.index)
    group_of = torch.tensor([groups.index(views) for views in seen])[query_classes]
    query_order = torch.argsort(group_of, stable=True)
    key_order = torch.argsort(torch.tensor(places)[key_classes], stable=True)
    ends = torch.tensor([int((torch.tensor(places)[key_classes] < place).sum()) for place in range(len(keys) + 1)]).tolist()
    start, found = 0, []
    for number, views in enumerate(groups):
        count = int((group_of == number).sum())
        found.append(Group((start, start + count), tuple(_view(view, places, ends) for view in views)))
        start += count
    moved = not torch.equal(query_order, torch.arange(len(query_order)))
    kept = torch.equal(key_order, torch.arange(len(key_order)))
    return Plan(
        tuple(found), query_order.to(device) if moved else None, None if kept else key_order.to(device), len(key_order),
    )  # fmt: skip


_Views = tuple[tuple[float, tuple[int, ...], tuple[int, ...]], ...]
"""What a class of queries sees: weight, classes of keys, those of them that are zeroed."""


def _classes(rules: Sequence[Rule], spans: tuple[Span, ...], layout: Layout) -> tuple[list[tuple[int, ...]], Tensor]:
    """The different labels [rules] of the tokens, and each token's number among them, in the order in which they first come."""
    labels = torch.stack([rule.labels(spans, layout.grid) for rule in rules])
    found, inverse = torch.unique(labels, dim=1, return_inverse=True)
    first = torch.full((found.shape[1],), labels.shape[1]).scatter_reduce(0, inverse, torch.arange(labels.shape[1]), "amin")
    order = torch.argsort(first)
    return [tuple(column) for column in found[:, order].T.tolist()], torch.argsort(order)[inverse]


def _seen_by_cells(seen: list[_Views], classes: Tensor, spans: tuple[Span, ...]) -> tuple[frozenset[int], frozenset[int]]:
    """The classes of keys that some cells see, and those that all cells see."""
    cells = [number for span in spans if span.kind == "cells" for number in classes[span.start : span.stop].unique().tolist()]
    views = [frozenset(keys) for number in cells for _, keys, _ in seen[number]] or [frozenset[int]()]
    return frozenset[int]().union(*views), views[0].intersection(*views[1:])


def _places(
    keys: list[tuple[int, ...]], classes: Tensor, spans: tuple[Span, ...], by_cells: tuple[frozenset[int], frozenset[int]]
) -> list[int]:
    """Where each class of keys is put: as they come, but of what only some cells see the first before and the others after all else.

    That are the words of regions, and references with regions; what no cell sees comes last. So for the usual two regions the keys of
    every large group are one slice, and nothing is copied.
    """
    some, every = by_cells
    ranks = [0] * len(keys)
    in_front: tuple[str, int] | None = None
    for span in spans:
        if span.kind not in ("reference", "caption") and (span.kind != "words" or span.number == 0):
            continue
        for number in classes[span.start : span.stop].unique().tolist():
            if span.kind != "words" and number in every:
                continue
            if span.kind != "words" and number not in some:
                ranks[number] = 2
                continue
            what = (span.kind, span.number)
            in_front = in_front or what
            ranks[number] = -1 if what == in_front else 1
    order = sorted(range(len(keys)), key=lambda number: (ranks[number], number))
    return [order.index(number) for number in range(len(keys))]


def _seen(query: tuple[int, ...], keys: list[tuple[int, ...]], rules: Sequence[Rule]) -> _Views:
    weights: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    for looks in itertools.product(*(rule.looks() for rule in rules)):
        pairs = [list(zip(looks, query, key, strict=True)) for key in keys]
        seen = tuple(number for number, pair in enumerate(pairs) if all(look.sees(one, other) for look, one, other in pair))
        zeroed = tuple(number for number in seen if any(look.zeroes(one, other) for look, one, other in pairs[number]))
        if seen and seen != zeroed:
            weights[seen, zeroed] = weights.get((seen, zeroed), 0.0) + math.prod(look.weight for look in looks)
    return tuple((round(weight, 9), *view) for view, weight in weights.items() if abs(weight) > 1e-9)


def _view(view: tuple[float, tuple[int, ...], tuple[int, ...]], places: list[int], ends: list[int]) -> View:
    weight, seen, zeroed = view
    return View(weight, _pieces(seen, places, ends), _pieces(zeroed, places, ends))


def _pieces(classes: tuple[int, ...], places: list[int], ends: list[int]) -> tuple[Piece, ...]:
    """The sorted keys of some classes, neighbours joined."""
    pieces: list[Piece] = []
    for place in sorted(places[number] for number in classes):
        start, stop = ends[place], ends[place + 1]
        if pieces and pieces[-1][1] == start:
            pieces[-1] = (pieces[-1][0], stop)
        else:
            pieces.append((start, stop))
    return tuple(pieces)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cut: Plan,
    attention: Attention,
    where: Where = Where(),
    mask: Tensor | None = None,
    whole: bool = False,
    shares: int = 1,
) -> Tensor:
    """A layer by its plan. q, k and v have their tokens in dimension `where.tokens`; `mask` [..., queries or 1, keys] is the call's own.

    `whole` gives `attention` all queries each time, for those that count them (another pack's replacement of the layer). The heads are
    gone through in so many `shares`, so that the sorted keys and values of one share stand beside the call's own at a time.
    """
    if cut.free:
        return attention(q, k, v, mask)
    if not any(group.views for group in cut.groups):
        return torch.zeros_like(attention(q, k, v, mask))
    results: list[Tensor] = []
    for number in range(shares):
        own = [_share(x, 3 - where.tokens, number, shares) for x in (q, k, v)]
        rows = _share(mask, 1, number, shares) if mask is not None and mask.ndim == 4 and mask.shape[1] > 1 else mask
        results.append(_by_groups(own[0], own[1], own[2], cut, attention, where, rows, whole))
    return results[0] if shares == 1 else torch.cat(results, 3 - where.result)


def _share(x: Tensor, dim: int, number: int, shares: int) -> Tensor:
    """One of so many equal shares of a dimension, which is that of the heads, or of the channels of all heads."""
    if shares == 1:
        return x
    size = x.shape[dim] // shares
    return x.narrow(dim, number * size, size)


def _by_groups(q: Tensor, k: Tensor, v: Tensor, cut: Plan, attention: Attention, where: Where, mask: Tensor | None, whole: bool) -> Tensor:
    """All groups, for the heads that are given: the largest first, before there is a result; last those whose keys are several slices."""
    seeing = sorted((group for group in cut.groups if group.views), key=lambda group: group.queries[0] - group.queries[1])
    scattered = [group for group in seeing if cut.key_order is not None and _is_scattered(group)]
    together = [group for group in seeing if cut.key_order is None or not _is_scattered(group)]
    result: Tensor | None = None

    def put(group: Group, part: Tensor) -> None:
        nonlocal result
        if result is None:
            shape = list(part.shape)
            shape[where.result] = q.shape[where.tokens]
            result = part.new_empty(shape) if len(seeing) == len(cut.groups) else part.new_zeros(shape)
        _put(result, part, group, cut, where.result)

    if together:
        keys = _sorted(k, cut.key_order, where.tokens)
        values = _sorted(v, cut.key_order, where.tokens)
        columns = None if mask is None else _sorted(mask, cut.key_order, -1)
        for group in together:
            put(group, _group(group, q, keys, values, columns, cut, attention, where, whole))
        del keys, values, columns
    for group in scattered:
        put(group, _group(group, q, k, v, mask, cut, attention, where, whole, cut.key_order))
    assert result is not None
    return result


def _is_scattered(group: Group) -> bool:
    """Whether a group's keys are several slices even when sorted, so that they are copied for it alone."""
    return any(len(view.keys) > 1 for view in group.views) and not any(view.zeroed for view in group.views)


def _group(
    group: Group,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    cut: Plan,
    attention: Attention,
    where: Where,
    whole: bool,
    order: Tensor | None = None,
) -> Tensor:
    """What a group's queries take by its views, of which there is one at least. k, v and mask are sorted, or are to be by `order`."""
    queries = q if whole else _taken(q, group, cut, where.tokens)
    rows = mask
    if mask is not None and mask.ndim > 1 and mask.shape[-2] > 1 and not whole:
        rows = _taken(mask, group, cut, -2)
    total: Tensor | None = None
    for view in group.views:
        seen = v if not view.zeroed else _zeroed(v, view.zeroed, where.tokens)
        columns = None if rows is None else _joined(rows, view.keys, -1, order)
        part = attention(queries, _joined(k, view.keys, where.tokens, order), _joined(seen, view.keys, where.tokens, order), columns)
        if whole:
            part = _taken(part, group, cut, where.result)
        if view.weight != 1:
            part = part * view.weight
        total = part if total is None else total + part
    assert total is not None
    return total


def _taken(x: Tensor, group: Group, cut: Plan, dim: int) -> Tensor:
    """A group's tokens of a tensor in which they stand in their own order."""
    start, stop = group.queries
    return x.narrow(dim, start, stop - start) if cut.query_order is None else x.index_select(dim, cut.query_order[start:stop])


def _put(result: Tensor, part: Tensor, group: Group, cut: Plan, dim: int) -> None:
    """Writes a group's tokens to their places in the result."""
    start, stop = group.queries
    if cut.query_order is None:
        result.narrow(dim, start, stop - start).copy_(part)
    else:
        result.index_copy_(dim, cut.query_order[start:stop], part)


def _sorted(x: Tensor, order: Tensor | None, dim: int) -> Tensor:
    return x if order is None else x.index_select(dim, order)


def _joined(x: Tensor, pieces: tuple[Piece, ...], dim: int, order: Tensor | None = None) -> Tensor:
    """The keys of some pieces, of sorted keys or of keys that `order` sorts."""
    if order is not None:
        return x.index_select(dim, torch.cat([order[start:stop] for start, stop in pieces]))
    parts = [x.narrow(dim, start, stop - start) for start, stop in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _zeroed(values: Tensor, pieces: tuple[Piece, ...], dim: int) -> Tensor:
    values = values.clone()
    for start, stop in pieces:
        values.narrow(dim, start, stop - start).zero_()
    return values
