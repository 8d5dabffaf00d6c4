"""The patches' formulas with whole attention maps, head by head in single precision: slow, large, and independent of the pack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def attended(
    q: Tensor, k: Tensor, v: Tensor, heads: int, change: Callable[[Tensor], Tensor] | None = None, seen: Tensor | None = None
) -> Tensor:
    """softmax(QK^T / sqrt(d)) V for q [B, N, C] and k, v [B, M, C], in float32.

    `seen` [N, M] bool is applied before the softmax; `change` takes each head's map [B, N, M] after it.
    """
    parts = []
    for head in range(heads):
        width = q.shape[2] // heads
        own = slice(head * width, (head + 1) * width)
        scores = q[..., own].float() @ k[..., own].float().transpose(1, 2) / width**0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        weights = scores.softmax(-1)
        parts.append((weights if change is None else change(weights)) @ v[..., own].float())
    return torch.cat(parts, -1)


def paper_cross(q: Tensor, k: Tensor, v: Tensor, heads: int, inside: Tensor) -> Tensor:
    """DreamCom's equation 2 for text: rows of the map outside the mask [N] are zero."""
    return attended(q, k, v, heads, lambda weights: weights * inside[:, None])


def paper_self(q: Tensor, k: Tensor, v: Tensor, heads: int, inside: Tensor) -> Tensor:
    """DreamCom's equation 2 within the picture: what joins inside and outside is taken out of the map, which is not normalised again."""
    alike = inside[:, None] == inside[None, :]
    return attended(q, k, v, heads, lambda weights: weights * alike)


def renormalised_self(q: Tensor, k: Tensor, v: Tensor, heads: int, inside: Tensor) -> Tensor:
    """Inside and outside do not see each other before the softmax."""
    return attended(q, k, v, heads, seen=inside[:, None] == inside[None, :])


def meca(q: Tensor, text: tuple[Tensor, Tensor], image: tuple[Tensor, Tensor], heads: int, inside: Tensor, mode: str) -> Tensor:
    """Equations 4 (global) and 6 (region on the results; query: on the queries, to the letter) of MECA at weight 1."""
    part = inside.float()[None, :, None]
    if mode == "global":
        return attended(q, *text, heads) + part * attended(q, *image, heads)
    if mode == "region":
        return (1 - part) * attended(q, *text, heads) + part * attended(q, *image, heads)
    return attended((1 - part) * q, *text, heads) + attended(part * q, *image, heads)


def columns(q: Tensor, k: Tensor, heads: int, wanted: tuple[int, ...]) -> Tensor:
    """What queries look at some columns, added up, as the mean over heads: [B, N, 1]."""
    total = torch.zeros(*q.shape[:2], 1, device=q.device)

    def note(weights: Tensor) -> Tensor:
        total.add_(weights[..., list(wanted)].sum(-1, keepdim=True) / heads)
        return weights

    attended(q, k, k, heads, note)
    return total
