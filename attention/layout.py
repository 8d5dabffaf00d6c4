"""What each token of an attention call is: words and whose, cells of the picture being painted, references, others.

A reader (`families/`, or the chain for UNets) tells the layout of a call; rules (`visibility.py`) read it, and know no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Grid = tuple[int, int, int]
"""Frames, height and width in cells; a picture has one frame. Tokens run in this order, the last index fastest."""

SpanKind = Literal["words", "cells", "reference", "caption", "other"]
Counted = tuple[SpanKind, int] | tuple[SpanKind, int, int] | tuple[SpanKind, int, int, int]
"""Kind and count of the tokens of a span, and what of its `number` and `stream` is not 0."""
Lengths = tuple[tuple[int, int], ...]
"""(number, count) of texts in the order in which they are joined."""

UNUSED = -1
"""The number of words that belong to no text: they fill rows whose texts are shorter than another row's."""


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` (not included) of one kind.

    `number` counts within the kind. Of words 0 is the prompt, 1 and up are the texts of regions, UNUSED is filling; of references it is
    their order.
    A caption is what belongs to the reference of its number and is no part of its picture: a text of its own, or filling.
    `stream` tells the encoder of words, for models that see each text as the words of several, one after the other.
    """

    kind: SpanKind
    start: int
    stop: int
    number: int = 0
    stream: int = 0

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """The spans of queries and keys, in the order of the tokens, without gaps. In self and joint attention both are the same.

    Cells stand in `grid` order. Raises ValueError for gaps, overlaps, or cells that do not fill the grid.
    """

    queries: tuple[Span, ...]
    keys: tuple[Span, ...]
    grid: Grid

    def __post_init__(self) -> None:
        for spans in (self.queries, self.keys):
            ends = [0, *(span.stop for span in spans)]
            if [span.start for span in spans] != ends[:-1] or any(span.count < 0 for span in spans):
                raise ValueError(f"spans must follow one another without gaps, not {spans}")
            cells = sum(span.count for span in spans if span.kind == "cells")
            if cells not in (0, self.grid[0] * self.grid[1] * self.grid[2]):
                raise ValueError(f"{cells} cells do not fill a grid of {self.grid}")

    @property
    def joint(self) -> bool:
        """Whether queries and keys are the same tokens."""
        return self.queries == self.keys


def spans_of(*counted: Counted) -> tuple[Span, ...]:
    """Spans one after the other. Those without tokens are left out."""
    spans: list[Span] = []
    start = 0
    for kind, count, *more in counted:
        if count:
            spans.append(Span(kind, start, start + count, *more))
        start += count
    return tuple(spans)


def cells_before(spans: Sequence[Span]) -> list[int]:
    """How many cells stand before each span: a picture may lie in several, with other tokens between its rows."""
    counts = [span.count if span.kind == "cells" else 0 for span in spans]
    return [sum(counts[:number]) for number in range(len(counts))]


def with_texts(layout: Layout, texts: Sequence[Lengths]) -> Layout:
    """The layout with its words told apart: `texts` are the lengths of the texts, for each stream of words.

    Words after all of these (a model's own padding) belong to the prompt.
    """
    return replace(layout, queries=_told_apart(layout.queries, texts), keys=_told_apart(layout.keys, texts))


def _told_apart(spans: tuple[Span, ...], texts: Sequence[Lengths]) -> tuple[Span, ...]:
    parts: list[Span] = []
    for span in spans:
        if span.kind != "words":
            parts.append(span)
            continue
        start = span.start
        for number, count in texts[span.stream]:
            stop = min(start + count, span.stop)
            if stop > start:
                parts.append(Span("words", start, stop, number, span.stream))
            start = stop
        if start < span.stop:
            parts.append(Span("words", start, span.stop, 0, span.stream))
    return tuple(parts)
