"""Reading attention maps: which cells look at which words of the prompt, with gradients and without keeping whole maps.

Used for the cross-attention losses of MCGM (Skaik et al., equations 2 and 3) and for looking on. Of the softmax over all M
columns of a prompt the wanted ones alone are kept, as the mean over heads; the rest lives for a part of the queries at a time
and is computed again for the gradient. The attention itself stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .chain import EVERYWHERE, Call, Inner, Kind, Scope
from .grid import Size, halved
from .layers import Layer, levels_of
from .maps import Reading, Readings
from .rows import PROMPT

Group = tuple[int, ...]
"""Columns of a prompt that are read together: their weights are added up (the tokens of a word)."""

AT_ONCE = 2**22
"""So many weights of a softmax are held at once: 16 MB in float32."""


def layers_near(unet: Any, latent: Size, side: int = 16) -> frozenset[Layer]:
    """The encoder's and decoder's layers whose grid is nearest to `side` x `side` cells for a latent (height, width).

    The 16 x 16 ones are those that Break-a-Scene and MCGM compare with masks: 5 in SD 1.5 and 2.1 at 512 and at 256 px. SDXL has
    none so coarse at 1024 px, and gives its 32 x 32 ones. The middle is left out, as there. Of two sizes equally near the finer.
    """
    levels = {layer: level for layer, level in levels_of(unet).items() if layer[0] != "middle"}
    best = min(set(levels.values()), key=lambda level: (abs(math.log2(_side(latent, level) / side)), level))
    return frozenset(layer for layer, level in levels.items() if level == best)


def _side(latent: Size, level: int) -> float:
    return math.sqrt(halved(latent[0], level) * halved(latent[1], level))


class _Columns(torch.autograd.Function):
    """softmax(QK^T / sqrt(d)), mean over heads, times a readout of its columns; the weights are not kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, readout: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(q, k, readout)
        ctx.heads = heads
        with torch.autocast(q.device.type, enabled=False):
            parts = [weights.mean(1) @ readout for _, _, weights in _softmax(q, _heads(k, heads), heads)]
            return torch.cat(parts, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, readout = ctx.saved_tensors
        grad = grads[0]
        heads = ctx.heads
        keys = _heads(k, ctx.heads)
        q_grads = []
        k_grad = torch.zeros_like(keys)
        with torch.autocast(q.device.type, enabled=False):
            for first, part, weights in _softmax(q, keys, heads):
                wanted = (grad[:, first : first + part.shape[2]] @ readout.mT)[:, None] / heads
                inner = (wanted * weights).sum(-1, keepdim=True)
                scores = weights.mul_(wanted - inner).mul_(part.shape[-1] ** -0.5)
                q_grads.append(scores @ keys)
                k_grad += scores.mT @ part
        return _joined(torch.cat(q_grads, 2)).to(q.dtype), _joined(k_grad).to(k.dtype), None, None


def _softmax(q: Tensor, keys: Tensor, heads: int) -> Any:
    """For some queries after the other: the number of the first, they [B, H, n, d] and their weights [B, H, n, M]."""
    count = max(1, AT_ONCE // (q.shape[0] * heads * keys.shape[2]))
    for first in range(0, q.shape[1], count):
        part = _heads(q[:, first : first + count], heads)
        yield first, part, (part @ keys.mT * part.shape[-1] ** -0.5).softmax(-1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] as [B, H, N, C / H], in float32 at least."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def columns(q: Tensor, k: Tensor, heads: int, readout: Tensor) -> Tensor:
    """What queries q [B, N, C] attend to some columns of k [B, M, C], mean over heads: [B, N, wanted] in 0..1, float32 or finer.

    `readout` [M, wanted] or [B, M, wanted] is one where a column counts towards a wanted one (or a weight; it gets no gradient).
    """
    work = torch.promote_types(q.dtype, torch.float32)
    found: Any = _Columns.apply(q, k, readout.expand(q.shape[0], *readout.shape[-2:]).to(q.device, work), heads)
    return found


@dataclass(frozen=True)
class Probe:
    """Reads the maps of some columns of the positive prompt; the attention beneath gives what it gives, to the bit.

    `wanted` are groups of column numbers, each in 0..`tokens` - 1: one list for all pictures of a batch, or one for each in turn, equally
    many groups. `tokens` is the prompt's length, as ComfyUI may repeat it to the length of another (the repeats are added up as well). The
    maps are of the q and k that come to the layer: what patches and other packs beneath do with them is not seen.
    """

    wanted: tuple[tuple[Group, ...], ...]
    tokens: int
    readings: Readings
    scope: Scope = EVERYWHERE
    kind: Kind = "cross"

    def __post_init__(self) -> None:
        check_wanted(self.wanted, self.tokens)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, inner: Inner) -> Tensor:
        rows = [number for number, row in enumerate(call.rows) if row.half == 0]
        if rows:
            prompt = call.options.get(PROMPT, k.shape[1])
            _check(q, k, call, self.tokens, prompt)
            everything = len(rows) == len(q)
            groups = [self.wanted[call.rows[row].image % len(self.wanted)] for row in rows]
            readout = torch.stack([self._readout(each, prompt, k.shape[1]) for each in groups])
            maps = columns(q if everything else q[rows], k if everything else k[rows], call.heads, readout)
            self.readings.add(Reading(call.layer, call.grid, call.latent, tuple(call.rows[row] for row in rows), maps))
        return inner(q, k, v)

    def _readout(self, groups: Sequence[Group], prompt: int, count: int) -> Tensor:
        """One where a column [count] belongs to a group; those from `prompt` on are the words of regions, and belong to none."""
        own = torch.zeros(self.tokens, len(groups))
        for number, group in enumerate(groups):
            own[list(group), number] = 1
        return torch.cat([own.repeat(prompt // self.tokens, 1), own.new_zeros(count - prompt, len(groups))])


def check_wanted(wanted: Sequence[Sequence[Group]], tokens: int) -> None:
    """Raises ValueError where a probe is asked for no columns, or for some that a prompt of so many tokens does not have."""
    counts = {len(groups) for groups in wanted}
    if len(counts) != 1 or counts == {0} or any(not group for groups in wanted for group in groups):
        raise ValueError(f"every picture needs equally many groups of columns, at least one, none of them empty, not {wanted}")
    outside = sorted({column for groups in wanted for group in groups for column in group if not 0 <= column < tokens})
    if outside:
        raise ValueError(f"the prompt has the columns 0 to {tokens - 1}, not {', '.join(map(str, outside))}")


def _check(q: Tensor, k: Tensor, call: Call, tokens: int, prompt: int) -> None:
    if len(q) != len(call.rows) or len(k) != len(call.rows):
        raise RuntimeError(
            f"another node runs layer {call.layer} on {len(q)} rows where the batch has {len(call.rows)} (attention couple, for "
            "instance), so it is not known which row is whose. Bypass that node to read attention maps."
        )
    if prompt % tokens or prompt > k.shape[1]:
        raise RuntimeError(
            f"the prompt has {tokens} tokens but layer {call.layer} gets {k.shape[1]}: another node adds or removes tokens, so it is not "
            "known which are the words'. Bypass that node to read attention maps."
        )
