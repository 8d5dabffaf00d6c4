"""Reference Region: a reference picture that is seen from its region of the picture only, and only by the part of it that may be shown.

The reference travels in the CONDITIONING in ComfyUI's own form (`reference_latents`), and who sees it travels beside it, under a key of
ours. When the model runs, the chain finds it there by the very tensor (`of_conditioning`), and a rule says who sees which token.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .grid import RegionMask, Size
from .layout import Grid, Span, cells_before
from .visibility import Look, Seen

if TYPE_CHECKING:
    from .chain import Scope
    from .moment import Moment
    from .rows import Row

REFERENCES = "reference_latents"
"""ComfyUI's key of a conditioning for its reference latents."""
REGIONS = "maskprompt_references"
"""Our key: a list of ReferenceRegion."""
MOST_REFERENCES = 48
_ELSE, _HIDDEN, _CELLS = 0, 998, 1000
_NUMBERS = itertools.count()


@dataclass(frozen=True, eq=False)
class ReferenceRegion:
    """Who sees the reference `latent`, which is the very tensor in the CONDITIONING.

    `tokens` are those that may be seen, bool [M, tokens] on the CPU, for the pictures of a batch in turn. `mask` is where in the picture it
    acts, None everywhere. `strength` 1 is as the model does it, 0 is not there, up to 2 is more. It is there from the share `start` of the
    sampling, 0..1, to `end`.
    """

    latent: Tensor
    tokens: Tensor
    mask: RegionMask | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    number: int = field(default_factory=_NUMBERS.__next__, repr=False)
    """Which no other has, also after this one is gone: what is kept of it is kept by its number."""

    def index(self, image: int) -> tuple[int, int]:
        """Which of its shown parts and which of its masks belong to a picture of the batch."""
        return image % len(self.tokens), 0 if self.mask is None else self.mask.index(image)


@dataclass(frozen=True)
class Listener:
    """What a MODEL's chain holds so that the references of a prompt find their regions. It changes nothing by itself."""

    scope: Scope
    kind: Literal["references"] = "references"


def install(model: Any) -> Any:
    """A MODEL that hears of the regions of references; the given one if it does already. Raises TypeError for an unknown model."""
    from comfy.patcher_extension import WrappersMP

    from . import chain

    wholes = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, chain.KEY)
    if any(isinstance(patch, Listener) for whole in wholes for patch in whole.patches):
        return model
    return chain.install(model, Listener(chain.EVERYWHERE))


def with_reference(conditioning: Sequence[Any], latent: Tensor, region: ReferenceRegion | None) -> list[Any]:
    """A CONDITIONING with one more reference behind those that it has, and who sees it; None if all see all of it."""
    found: list[Any] = []
    for words, options in conditioning:
        more = {**options, REFERENCES: [*(options.get(REFERENCES) or ()), latent]}
        if region is not None:
            more[REGIONS] = [*(options.get(REGIONS) or ()), region]
        found.append([words, more])
    return found


def of_conditioning(conditioning: Mapping[str, Any]) -> tuple[ReferenceRegion | None, ...]:
    """Who sees each reference of a conditioning, in order; empty if it says nothing of any. Raises RuntimeError for one that is lost."""
    regions: Sequence[ReferenceRegion] = conditioning.get(REGIONS) or ()
    if not regions:
        return ()
    latents: Sequence[Tensor] = conditioning.get(REFERENCES) or ()
    lost = [region for region in regions if not any(region.latent is latent for latent in latents)]
    if lost:
        raise RuntimeError(
            f"{len(lost)} of the reference pictures that Reference Region gave to the prompt are no longer in it as they were: a node "
            "after it changes the prompt's reference latents, so it is not known where they act. Put that node before Reference Region."
        )
    return tuple(next((region for region in regions if region.latent is latent), None) for latent in latents)


@dataclass(frozen=True)
class PlacedReference:
    """A reference in a call: its tokens that may be seen, bool [tokens], and the cells that see it, bool [cells], None for all of all."""

    tokens: Tensor
    cells: Tensor | None
    key: Hashable
    strength: float = 1.0


@dataclass(frozen=True)
class ReferencesByRegion:
    """References that are seen from their own region, None where one is seen by all.

    Hidden tokens see nothing and are seen by nobody. A reference with a region is seen by itself and by the region's cells, and by nothing
    that would carry it elsewhere (words, other references); it sees itself, these cells, the words, and the references without a region.
    One without a region is seen as the model does it, by its tokens that may be. References of different strength add up as regions of
    text do (`visibility.TextsByRegion`).
    """

    references: tuple[PlacedReference | None, ...]

    def __post_init__(self) -> None:
        if len(self.references) > MOST_REFERENCES:
            raise ValueError(f"at most {MOST_REFERENCES} references, not {len(self.references)}")

    @property
    def key(self) -> Hashable:
        return ("references", tuple(None if one is None else (one.key, one.strength) for one in self.references))

    def labels(self, spans: tuple[Span, ...], grid: Grid) -> Tensor:
        parts: list[Tensor] = []
        for span, first in zip(spans, cells_before(spans), strict=True):
            placed = self.references[span.number] if span.kind in ("reference", "caption") else None
            label = torch.full((span.count,), _ELSE)
            if span.kind == "cells":
                label += _CELLS
                for number, one in enumerate(self.references):
                    if one is not None and one.cells is not None:
                        label += one.cells[first : first + span.count].to(torch.int64) << number
            elif placed is not None:
                label += span.number + 1 if bool(placed.tokens.any()) else _HIDDEN
                if span.kind == "reference":
                    label[~placed.tokens] = _HIDDEN
            parts.append(label)
        return torch.cat(parts)

    def looks(self) -> tuple[Look, ...]:
        strengths = {one.strength for one in self.references if one is not None}
        levels = sorted(strengths - {0.0}, reverse=True)
        if not levels:
            return (Look(1.0, self._sees(frozenset())),)
        looks = [(1 - levels[0], frozenset[int]())]
        for level, lower in zip(levels, [*levels[1:], 0.0], strict=True):
            there = (number for number, one in enumerate(self.references) if one is not None and one.strength >= level)
            looks.append((level - lower, frozenset(there)))
        return tuple(Look(weight, self._sees(there)) for weight, there in looks if weight)

    def _sees(self, there: frozenset[int]) -> Seen:
        """What is seen if only the references `there` are there."""

        def shown_to(number: int, label: int) -> bool:
            one = self.references[number]
            if one is None or one.cells is None:
                return True
            return label >= _CELLS and bool((label - _CELLS) >> number & 1)

        def sees(query: int, key: int) -> bool:
            if _HIDDEN in (query, key):
                return False
            if query == key:
                return True
            if _ELSE < key < _HIDDEN:
                return key - 1 in there and shown_to(key - 1, query)
            if _ELSE < query < _HIDDEN and key >= _CELLS:
                return shown_to(query - 1, key)
            return True

        return sees


def rule(row: Row, latent: Size, grid: Grid, moment: Moment) -> ReferencesByRegion | None:
    """Who sees the references of a row; None where all see all of them. One whose part of the sampling it is not is hidden."""
    found = tuple(None if region is None else _placed(region, row, latent, grid, moment) for region in row.references)
    return ReferencesByRegion(found) if any(found) else None


def _placed(region: ReferenceRegion, row: Row, latent: Size, grid: Grid, moment: Moment) -> PlacedReference | None:
    """A reference in a row; None if it is seen as if nothing had been said of it."""
    from .prompt_regions import place

    part, _ = region.index(row.image)
    tokens = region.tokens[part]
    if region.strength == 0 or not moment.within(region.start, region.end):
        return PlacedReference(torch.zeros_like(tokens), None, "off")
    cells, cells_key = None, None
    if region.mask is not None:
        cells_key, cells = place(region.mask, row, latent, grid)
        if bool(cells.all()):
            cells, cells_key = None, None
    if cells is None and region.strength == 1 and bool(tokens.all()):
        return None
    return PlacedReference(tokens, cells, (region.number, part, cells_key), region.strength)


def check(references: Sequence[ReferenceRegion | None], spans: Sequence[Span]) -> None:
    """Raises RuntimeError if the references of a call, which has cells, are not those of its prompt."""
    counts = {span.number: span.count for span in spans if span.kind == "reference"}
    if not counts:
        raise RuntimeError(
            "Reference Region: this model takes no notice of the prompt's reference pictures. Use an edit model, or tell it how to take "
            "them (Edit Model Reference Method between Reference Region and the sampler)."
        )
    wanted = {number: region.tokens.shape[1] for number, region in enumerate(references) if region is not None}
    if len(counts) != len(references) or any(counts.get(number) != count for number, count in wanted.items()):
        raise RuntimeError(
            f"Reference Region: the model sees references of {list(counts.values())} tokens where the prompt brings {len(references)}, "
            f"those with a region of {list(wanted.values())}: another node changes them on the way. Bypass that node, or Reference Region."
        )
