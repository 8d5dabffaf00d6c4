"""Attention written out, against which masked attention is held."""

from __future__ import annotations

from typing import Any

import torch
from maskprompt.attention.chain import Call, Row
from maskprompt.attention.moment import Moment


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, C] to [B, heads, N, C / heads]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, allowed: torch.Tensor, renormalise: bool = False) -> torch.Tensor:
    """Equation 2: softmax(QK^T / sqrt(d)) times the mask `allowed` [B, N, M], times V; or, renormalised, divided by what is left."""
    a = split(q, heads) @ split(k, heads).transpose(-1, -2) / (q.shape[-1] / heads) ** 0.5
    a = a.softmax(-1) * allowed[:, None]
    if renormalise:
        a = a / a.sum(-1, keepdim=True)
    return (a @ split(v, heads)).transpose(1, 2).flatten(2)


def plain(heads: int) -> Any:
    return lambda q, k, v: dense(q, k, v, heads, torch.ones(q.shape[0], q.shape[1], k.shape[1]))


def call_of(kind: Any, height: int, width: int, heads: int, batch: int, images: int, is_plain: bool = True) -> Call:
    rows = tuple(Row(index // images, index % images, (0, 0, height, width)) for index in range(batch))
    return Call(kind, ("input", 1, 0), heads, (height, width), (height, width), rows, Moment(1.0), is_plain)
