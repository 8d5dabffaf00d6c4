"""Reading what words a transformer's picture looks at, without keeping whole maps and without changing its attention.

Of the softmax over all tokens (words, cells, references) that each cell of the picture sees, the wanted words' columns alone are kept, as
the mean over heads. Rules of the pack (regions of text, Masked Attention) count: a word that a cell does not see has no share there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from . import groups
from .chain import EVERYWHERE, Row, Scope
from .groups import Plan, Where
from .layout import Layout, Span
from .maps import Readings
from .probe import AT_ONCE, Group, check_wanted

BY_HEADS = Where(2, 2)
"""Tokens are in the third dimension of [B, heads, tokens, ...]."""


@dataclass(frozen=True)
class JointProbe:
    """Reads the maps of some words of the positive prompt on a transformer; the attention gives what it gives, to the bit.

    `wanted` are groups of columns of the prompt's CONDITIONING, each in 0..`tokens` - 1: one list for all pictures of a batch, or one for
    each in turn, equally many groups. Every latent frame of a video counts as a picture.
    """

    wanted: tuple[tuple[Group, ...], ...]
    tokens: int
    readings: Readings
    scope: Scope = EVERYWHERE
    kind: Literal["probe"] = "probe"

    def __post_init__(self) -> None:
        check_wanted(self.wanted, self.tokens)

    def readout(self, rows: Sequence[Row], layout: Layout, prompt: Sequence[int], in_front: bool) -> Tensor:
        """One where a key of a layout belongs to a group: float32 [rows, keys, groups].

        `prompt` is how many words the model gets of the prompt in each stream; columns count on from one stream to the next. Further words
        than `tokens` fill up, before the words if `in_front`. Raises RuntimeError if the model gets fewer.
        """
        if sum(prompt) < self.tokens:
            raise RuntimeError(
                f"the prompt has {self.tokens} tokens but the model gets {sum(prompt)}: another node takes tokens away, so it is not known "
                "which are the words'. Bypass that node to read attention maps."
            )
        before = [sum(prompt[:stream]) - (prompt[0] - self.tokens if in_front else 0) for stream in range(len(prompt))]
        found = torch.zeros(len(rows), layout.keys[-1].stop, len(self.wanted[0]))
        for span in layout.keys:
            if span.kind != "words":
                continue
            first = before[span.stream]
            for number, row in enumerate(rows):
                for group, columns in enumerate(self.wanted[row.image % len(self.wanted)]):
                    here = [span.start + column - first for column in columns if 0 <= column - first < prompt[span.stream]]
                    found[number, here, group] = 1
        return found


def cells_of(layout: Layout) -> tuple[Span, ...]:
    """The queries of the picture, if they see words too; none otherwise."""
    words = any(span.kind == "words" for span in layout.keys)
    return tuple(span for span in layout.queries if span.kind == "cells") if words else ()


def shares(call: Mapping[str, Any], cells: Sequence[Span], readout: Tensor, cut: Plan | None) -> Tensor:
    """What cells attend to some columns, mean over heads: float32 [B, cells, wanted] in 0..1.

    `call` has ComfyUI's arguments of an attention call, `readout` [B, keys, wanted] is one where a key counts towards a wanted one, `cut`
    says who sees whom (None: everybody all).
    """
    q, k = (_by_heads(call[name], call) for name in ("q", "k"))
    mask = call.get("mask")
    values = readout.to(q.device)[:, None]
    scale = call.get("scale") or q.shape[-1] ** -0.5

    def attention(q: Tensor, k: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return _weighed(q, k, values, mask, scale)

    with torch.autocast(q.device.type, enabled=False):
        if cut is not None and not cut.free:
            return _only(groups.attend(q, k, values, cut, attention, BY_HEADS, mask), cells, 2)[:, 0]
        if mask is not None and mask.ndim > 1 and mask.shape[-2] > 1:
            mask = _only(mask, cells, -2)
        return attention(_only(q, cells, 2), k, values, mask)[:, 0]


def _only(x: Tensor, spans: Sequence[Span], dim: int) -> Tensor:
    """The tokens of some spans; of one span without a copy."""
    parts = [x.narrow(dim, span.start, span.count) for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _weighed(q: Tensor, k: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The mean over heads of softmax(QK^T · scale + mask) V: [B, 1, N, wanted]. A part of the queries is held at a time.

    q [B, heads, N, d], k [B, heads of keys, M, d], values [B, 1, M, wanted].
    """
    keys = k.float()
    if keys.shape[1] != q.shape[1]:
        keys = keys.repeat_interleave(q.shape[1] // keys.shape[1], dim=1)
    if mask is not None:
        mask = _over_heads(mask)
    count = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * keys.shape[2]))
    parts: list[Tensor] = []
    for first in range(0, q.shape[2], count):
        scores = q[:, :, first : first + count].float() @ keys.mT * scale
        if mask is not None:
            rows = mask if mask.shape[-2] == 1 else mask[..., first : first + count, :]
            scores = scores.masked_fill(~rows, float("-inf")) if rows.dtype == torch.bool else scores + rows
        parts.append(scores.softmax(-1).mean(1, keepdim=True) @ values)
    return torch.cat(parts, 2)


def _over_heads(mask: Tensor) -> Tensor:
    """A mask of an attention call, [N or 1, M], [B, N, M] or [B, H, N, M], for scores [B, H, N, M]."""
    if mask.ndim == 3:
        return mask[:, None]
    return mask[None] if mask.ndim == 1 else mask


def _by_heads(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """q or k of a call as [B, heads, tokens, d]."""
    if call.get("skip_reshape"):
        return x
    width = call["q"].shape[-1] // call["heads"]
    return x.unflatten(2, (-1, width)).transpose(1, 2)


def over_frames(rows: Sequence[Row], frames: int, maps: Tensor) -> tuple[tuple[Row, ...], Tensor]:
    """Rows and maps [rows, frames · cells, wanted] with each latent frame as a picture of its own: [rows · frames, cells, wanted]."""
    if frames == 1 and all(row.frames is None for row in rows):
        return tuple(rows), maps
    found: list[Row] = []
    for row in rows:
        shown, total = row.frames or (tuple(range(frames)), frames)
        found += [replace(row, image=row.image * total + frame, frames=None) for frame in shown]
    return tuple(found), maps.unflatten(1, (frames, -1)).flatten(0, 1)
