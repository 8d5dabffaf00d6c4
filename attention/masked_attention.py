"""DreamCom's masked attention (Lu et al., "DreamCom", sections 4.2 and 4.3).

Cross-attention: text reaches the foreground's queries only. Self-attention: foreground and background do not see each other.
Both multiply the attention map AFTER its softmax, without renormalising (equation 2). No map is ever built here: a map's
zeros are zeros in V, and queries are split into the two regions, which is exact and costs what plain attention costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .chain import EVERYWHERE, Call, Inner, Kind, Scope
from .grid import Cells, RegionMask

SelfMode = Literal["paper", "renormalised"]


@dataclass(frozen=True)
class Region:
    """Rows of the batch that share one mask on this layer's grid."""

    rows: list[int]
    cells: Cells


def regions(mask: RegionMask, call: Call, device: torch.device) -> list[Region]:
    """The batch's rows by what the mask is for them (one region for the usual single mask)."""
    found: dict[tuple[int, tuple[int, int, int, int]], list[int]] = {}
    for number, row in enumerate(call.rows):
        found.setdefault((mask.index(row.image), row.window), []).append(number)
    return [Region(rows, mask.cells(index, call.latent, window, call.grid, device)) for (index, window), rows in found.items()]


def _check_rows(q: Tensor, call: Call, parts: list[Region]) -> None:
    if q.shape[0] != len(call.rows) and len(parts) > 1:
        raise RuntimeError(
            f"another node runs this layer on {q.shape[0]} rows where the batch has {len(call.rows)}; with one mask for each picture it "
            "is not known which row is whose. Use one mask for the whole batch, or bypass that node."
        )


@dataclass(frozen=True)
class MaskedCrossAttention:
    """Equation 2 for text: the attended text, times the mask. What is outside gets zero (and the output layer's bias)."""

    mask: RegionMask
    scope: Scope = EVERYWHERE
    kind: Kind = "cross"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, inner: Inner) -> Tensor:
        parts = regions(self.mask, call, q.device)
        _check_rows(q, call, parts)
        if all(len(part.cells.background) == 0 for part in parts):
            return inner(q, k, v)
        if len(parts) == 1:
            return inner(q, k, v) * parts[0].cells.inside[None, :, None].to(q.dtype)
        inside = torch.empty(q.shape[:2], dtype=torch.bool, device=q.device)
        for part in parts:
            inside[part.rows] = part.cells.inside
        return inner(q, k, v) * inside[:, :, None].to(q.dtype)


@dataclass(frozen=True)
class MaskedSelfAttention:
    """Foreground and background attend apart.

    paper: section 4.3 with equation 2 to the letter. A query's weights still sum over all keys; those of the other region
    are then dropped, so the result is smaller than an average.
    renormalised: each region attends as if the other were not there.
    """

    mask: RegionMask
    mode: SelfMode = "paper"
    scope: Scope = EVERYWHERE
    kind: Kind = "self"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, inner: Inner) -> Tensor:
        parts = regions(self.mask, call, q.device)
        _check_rows(q, call, parts)
        if len(parts) == 1:
            return self._apart(q, k, v, parts[0].cells, call, inner)
        result = torch.empty_like(q)
        for part in parts:
            rows = part.rows
            if call.plain:
                result[rows] = self._apart(q[rows], k[rows], v[rows], part.cells, call, inner)
            else:
                result[rows] = self._apart(q, k, v, part.cells, call, inner)[rows]
        return result

    def _apart(self, q: Tensor, k: Tensor, v: Tensor, cells: Cells, call: Call, inner: Inner) -> Tensor:
        """Both regions' queries, for rows that share one mask."""
        if not cells.divided:
            return inner(q, k, v)
        sides = ((cells.foreground, cells.inside), (cells.background, ~cells.inside))
        attended = [self._side(q, k, v, place, side[None, :, None].to(v.dtype), call, inner) for place, side in sides]
        result = torch.empty_like(q)  # only now: the masked copy of V is gone, so both are never held at once
        for (place, _), part in zip(sides, attended, strict=True):
            result[:, place] = part
        return result

    def _side(self, q: Tensor, k: Tensor, v: Tensor, place: Tensor, seen: Tensor, call: Call, inner: Inner) -> Tensor:
        """The queries at `place`, which see the keys where `seen` [1, N, 1] is one.

        Keys that another node put behind the picture's own are a reference's (reference-only control), which both sides see.
        """
        keys = place
        own, count = seen.shape[1], k.shape[1]
        if count > own:
            keys = torch.cat([place, torch.arange(own, count, device=place.device)])
            seen = torch.cat([seen, seen.new_ones(1, count - own, 1)], 1)
        if not call.plain:
            return self._with_all_tokens(q, k, v, seen, inner)[:, place]
        if self.mode == "paper":
            return inner(q[:, place], k, v * seen)
        return inner(q[:, place], k[:, keys], v[:, keys])

    def _with_all_tokens(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, inner: Inner) -> Tensor:
        """The same where another patch lies beneath, which may count tokens. Attending to ones gives the weight that is left."""
        attended = inner(q, k, v * seen)
        if self.mode == "paper":
            return attended
        return attended / inner(q, k, seen.expand_as(v).contiguous()).clamp(min=1e-6)
