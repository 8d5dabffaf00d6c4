"""Word maps of a transformer, read by the pack and written out as a dense softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from maskprompt.attention import chain
from maskprompt.attention.joint_probe import JointProbe
from maskprompt.attention.maps import Readings
from torch import Tensor

from .tiny_transformers import Tiny
from .transformer_texts import TEXTS

WANTED = ((1, 2), (5,))
SIZE = (9, 11)


def installed(model: Any, wanted: Any = (WANTED,), **scope: Any) -> tuple[Any, Readings]:
    """The model with a probe of these columns, and what it reads."""
    readings = Readings()
    return chain.install(model, JointProbe(wanted, TEXTS[0], readings, chain.Scope(**scope))), readings


def by_heads(x: Tensor, width: int, call: dict[str, Any]) -> Tensor:
    return x if call.get("skip_reshape") else x.unflatten(2, (-1, width)).transpose(1, 2)


def watching(model: Any, tiny: Tiny, wanted: Any, references: tuple[int, ...] = ()) -> tuple[Any, list[Tensor]]:
    """The model with an override that writes each call's softmax out and keeps [pictures, cells, wanted] of the positive rows."""
    told: Callable[..., Any] = tiny.tokens(TEXTS[:1], SIZE, references)
    seen: list[Tensor] = []

    def watch(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, *args: Any, **call: Any) -> Tensor:
        width = q.shape[-1] if call.get("skip_reshape") else q.shape[-1] // heads
        queries, keys = by_heads(q, width, call), by_heads(k, width, call)
        tokens = told(queries.shape[2], keys.shape[2], call["transformer_options"])
        cells = [] if tokens is None else [number for number, token in enumerate(tokens[0]) if token[0] == "cells"]
        words = [] if tokens is None else [number for number, token in enumerate(tokens[1]) if token == ("words", 0)]
        if cells and words:
            halves = call["transformer_options"]["cond_or_uncond"]
            pictures = len(q) // len(halves)
            positive = [chunk * pictures + number for chunk, half in enumerate(halves) if half == 0 for number in range(pictures)]
            keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
            scores = queries.float() @ keys.float().transpose(2, 3) / width**0.5
            if mask is not None:
                scores = scores + (mask if mask.ndim == 4 else mask[:, None])
            weights = scores.softmax(-1).mean(1)[positive][:, cells]
            first = max(0, tiny.padded - TEXTS[0])
            columns = [[[words[first + column] for column in group] for group in picture] for picture in wanted]
            seen.append(
                torch.stack(
                    [
                        torch.stack([row[:, group].sum(1) for group in columns[number % len(columns)]], 1)
                        for number, row in enumerate(weights)
                    ]
                )
            )
        return func(q, k, v, heads, mask, *args, **call)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = watch
    return clone, seen


def check(found: Readings, seen: list[Tensor], frames: int) -> None:
    assert len(found.all()) == len(seen) > 0
    for reading, wanted in zip(found.all(), seen, strict=True):
        pictures = wanted.unflatten(1, (frames, -1)).flatten(0, 1)
        assert [row.image for row in reading.rows] == list(range(len(pictures)))
        assert reading.grid[0] * reading.grid[1] == reading.maps.shape[1]
        torch.testing.assert_close(reading.maps, pictures, atol=1e-6, rtol=1e-4)
