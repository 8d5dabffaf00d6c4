"""Rules of who sees whom: which queries may see which keys, said of tokens of a layout, on any model.

A rule gives every token a label, and says of two labels whether the one sees the other. So it speaks of a handful of labels and never of
N x N tokens. Several rules meet in `groups.plan`: a query sees a key if all of them let it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .layout import UNUSED, Grid, Span, cells_before

Seen = Callable[[int, int], bool]
"""Whether a query of one label sees a key of another."""

MOST_REGIONS = 48
_UNUSED, _OTHER, _CELLS = 998, 999, 1000


def _always(_query: int, _key: int) -> bool:
    return True


def _never(_query: int, _key: int) -> bool:
    return False


@dataclass(frozen=True)
class Look:
    """One way to look, and its weight in the result: what a query `sees`, and of that what counts as zero after the softmax."""

    weight: float = 1.0
    sees: Seen = _always
    zeroes: Seen = _never


class Rule(Protocol):
    """Who sees whom in one call, for rows of the batch that share it."""

    @property
    def key(self) -> Hashable:
        """What it depends on beside the layout: plans are kept by it."""
        ...

    def labels(self, spans: tuple[Span, ...], grid: Grid) -> Tensor:
        """A label for each token, int64 [N] on the CPU."""
        ...

    def looks(self) -> tuple[Look, ...]:
        """The result is the sum of what these give, by their weights, which sum to one."""
        ...


@dataclass(frozen=True)
class RegionOfText:
    """A text that acts in some cells: bool [cells] on the CPU, and a key that tells these cells from others.

    `strength` 1 gives the cells the text as one more prompt, 0 none of it, between them the mean of both. `replaces` takes the prompt
    out of the cells. `apart` keeps them from seeing the cells of other regions, and these from seeing them.
    """

    cells: Tensor
    key: Hashable
    strength: float = 1.0
    replaces: bool = False
    apart: bool = False


@dataclass(frozen=True)
class TextsByRegion:
    """The text number n + 1 acts in the cells of region n; the prompt (number 0) in all others, and in these unless it is replaced.

    Every text sees itself and its own cells. Cells see each other, but for regions kept apart. References see the prompt, the picture and
    each other. Where regions of different strength overlap, the result is the Lovász extension of what each set of them gives: it is linear
    between the strengths, and needs one look for each different strength.
    """

    regions: tuple[RegionOfText, ...]

    def __post_init__(self) -> None:
        if len(self.regions) > MOST_REGIONS:
            raise ValueError(f"at most {MOST_REGIONS} regions, not {len(self.regions)}")

    @property
    def key(self) -> Hashable:
        return tuple((region.key, region.strength, region.replaces, region.apart) for region in self.regions)

    def labels(self, spans: tuple[Span, ...], grid: Grid) -> Tensor:
        parts: list[Tensor] = []
        for span, first in zip(spans, cells_before(spans), strict=True):
            if span.kind == "cells":
                bits = torch.full((span.count,), _CELLS)
                for number, region in enumerate(self.regions):
                    bits += region.cells[first : first + span.count].to(torch.int64) << number
                parts.append(bits)
            elif span.kind == "words":
                parts.append(torch.full((span.count,), _UNUSED if span.number == UNUSED else span.number))
            else:
                parts.append(torch.full((span.count,), _OTHER))
        return torch.cat(parts)

    def looks(self) -> tuple[Look, ...]:
        levels = sorted({region.strength for region in self.regions} - {0.0}, reverse=True)
        if not levels:
            return (Look(1.0, self._sees(frozenset())),)
        looks = [(1 - levels[0], frozenset[int]())]
        for level, lower in zip(levels, [*levels[1:], 0.0], strict=True):
            looks.append((level - lower, self._at_least(level)))
        return tuple(Look(weight, self._sees(active)) for weight, active in looks if weight)

    def _at_least(self, level: float) -> frozenset[int]:
        return frozenset(number for number, region in enumerate(self.regions) if region.strength >= level)

    def _sees(self, active: frozenset[int]) -> Seen:
        """What is seen if only the regions `active` are there."""

        def members(label: int) -> frozenset[int]:
            return frozenset(number for number in range(len(self.regions)) if (label - _CELLS) >> number & 1)

        def reads(text: int, cell: int, regions: frozenset[int]) -> bool:
            if text == 0:
                return not any(self.regions[number].replaces for number in members(cell) & active)
            return text - 1 in members(cell) & regions

        def apart(one: int, other: int) -> bool:
            here, there = members(one), members(other)
            kept = any(self.regions[number].apart for number in here | there)
            return bool(kept and here and there and not here & there)

        def sees(query: int, key: int) -> bool:
            if _UNUSED in (query, key):
                return False
            if query >= _CELLS:
                if key >= _CELLS:
                    return not apart(query, key)
                return key == _OTHER or reads(key, query, active)
            if query == _OTHER:
                return key >= _OTHER or key == 0
            if key >= _CELLS:
                return reads(query, key, frozenset(range(len(self.regions))))
            return key in (query, _OTHER)

        return sees


@dataclass(frozen=True)
class Masked:
    """Words and a mask's outside do not see each other; nor, with `divided`, do its inside and outside (DreamCom, equation 2).

    `paper` zeroes what is not seen after the softmax; else it is left out before. `inside` is bool [cells] on the CPU.
    """

    inside: Tensor
    mask_key: Hashable
    words: bool = True
    words_paper: bool = True
    divided: bool = False
    divided_paper: bool = True

    @property
    def key(self) -> Hashable:
        return (self.mask_key, self.words, self.words_paper, self.divided, self.divided_paper)

    def labels(self, spans: tuple[Span, ...], grid: Grid) -> Tensor:
        parts = [
            self.inside[first : first + span.count].to(torch.int64)
            if span.kind == "cells"
            else torch.full((span.count,), 2 if span.kind == "words" else 3)
            for span, first in zip(spans, cells_before(spans), strict=True)
        ]
        return torch.cat(parts)

    def looks(self) -> tuple[Look, ...]:
        def hidden(query: int, key: int, paper: bool) -> bool:
            pair = {query, key}
            by_words = self.words and self.words_paper == paper and pair == {0, 2}
            return by_words or (self.divided and self.divided_paper == paper and pair == {0, 1})

        return (Look(1.0, lambda query, key: not hidden(query, key, False), lambda query, key: hidden(query, key, True)),)
