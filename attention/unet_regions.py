"""Prompt Region on UNets: the regions' words stand behind the prompt's, and each layer's queries see their own.

One pass: cross-attention gets more words, and self-attention stays as it is but where regions are kept apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import groups, prompt_regions
from .arguments import Arguments
from .chain import EVERYWHERE, Call, Inner, Kind, Patch, Scope
from .groups import Where
from .layers import Layer, layers_of
from .layout import Layout, Lengths, Span, spans_of, with_texts
from .moment import Moment
from .prompt_regions import PromptRegion
from .rows import PROMPT, VIEW, rows_of


@dataclass(frozen=True)
class RegionAttention:
    """The regions' rule on a layer, for one run of the UNet. `texts` are the lengths of the texts of each row."""

    regions: tuple[PromptRegion, ...]
    texts: tuple[Lengths, ...]
    layers: tuple[Layer, ...]
    plans: dict[Any, Any] = field(compare=False, repr=False)
    kind: Kind = "cross"
    scope: Scope = EVERYWHERE

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, inner: Inner) -> Tensor:
        if len(q) != len(call.rows):
            raise RuntimeError(
                f"another node runs layer {call.layer} on {len(q)} rows where the batch has {len(call.rows)} (attention couple and the "
                "like), so it is not known which row has which words. Bypass that node, or Prompt Region."
            )
        parts: dict[Hashable, list[int]] = {}
        for number, row in enumerate(call.rows):
            masks = tuple(region.mask.index(row.image) for region in self.regions)
            parts.setdefault((min(row.half, 1), masks, row.window, self.texts[number]), []).append(number)
        if len(parts) == 1:
            return self._part(q, k, v, 0, call, inner, None)
        result = torch.empty_like(q)
        for rows in parts.values():
            if call.plain and rows == list(range(rows[0], rows[-1] + 1)):
                near = slice(rows[0], rows[-1] + 1)
                result[near] = self._part(q[near], k[near], v[near], rows[0], call, inner, None)
            elif call.plain:
                result[rows] = self._part(q[rows], k[rows], v[rows], rows[0], call, inner, None)
            else:
                result[rows] = self._part(q, k, v, rows[0], call, inner, rows)
        return result

    def _keys(self, cells: int, keys: int) -> tuple[Span, ...]:
        """What the keys are: words, or the picture's cells and what another node put behind them, which all cells see (a reference)."""
        if self.kind == "cross":
            return spans_of(("words", keys))
        further = keys - cells
        return spans_of(("cells", cells), ("other", further)) if further > 0 else spans_of(("cells", cells))

    def _part(self, q: Tensor, k: Tensor, v: Tensor, first: int, call: Call, inner: Inner, rows: list[int] | None) -> Tensor:
        """The rows alike to row `first`: those given, or `rows` of them where a patch beneath must see all."""
        grid = (1, *call.grid)
        cells = spans_of(("cells", q.shape[1]))
        layout = Layout(cells, self._keys(q.shape[1], k.shape[1]), grid)
        rule = prompt_regions.rule(self.regions, call.rows[first], call.latent, grid, self.layers.index(call.layer), len(self.layers))
        texts = _as_attended(self.texts[first], k.shape[1]) if self.kind == "cross" else self.texts[first]
        key = ("unet", layout, texts, rule.key, q.device)
        if key not in self.plans:
            self.plans[key] = groups.plan(with_texts(layout, (texts,)), (rule,), q.device)
        cut = self.plans[key]
        if self.kind == "self" and not call.plain:
            attended = _with_all_tokens(q, k, v, cut, inner)
        else:
            attended = groups.attend(q, k, v, cut, lambda q, k, v, _mask: inner(q, k, v), Where(1, 1), whole=not call.plain)
        return attended if rows is None else attended[rows]


def _as_attended(texts: Lengths, keys: int) -> Lengths:
    """The lengths of the texts in a layer's keys, where another node may have halved the words (CLIP NegPip: every second is a weight).

    RuntimeError where what it left out is not known.
    """
    total = sum(count for _, count in texts)
    if keys >= total:
        return texts
    parts = total // keys
    if keys * parts != total or any(count % parts for _, count in texts):
        raise RuntimeError(
            f"another node leaves {keys} of {total} words in the attention, so it is not known which are the region's. Bypass that node, "
            "or Prompt Region."
        )
    return tuple((number, count // parts) for number, count in texts)


def _with_all_tokens(q: Tensor, k: Tensor, v: Tensor, cut: groups.Plan, inner: Inner) -> Tensor:
    """Self-attention by a plan over another node's replacement of the layer, which may count tokens, or give their values alone.

    It gets all keys in their own order each time. Values that a group does not see are zero, and attending to ones gives the weight that is
    left.
    """
    if cut.free:
        return inner(q, k, v)
    result = torch.zeros_like(q)
    keys = torch.arange(k.shape[1], device=q.device) if cut.key_order is None else cut.key_order
    queries = torch.arange(q.shape[1], device=q.device) if cut.query_order is None else cut.query_order
    for group in cut.groups:
        here = queries[slice(*group.queries)]
        for view in group.views:
            seen = v.new_zeros(1, k.shape[1], 1)
            seen[:, torch.cat([keys[slice(*piece)] for piece in view.keys])] = 1
            attended = inner(q, k, v * seen)[:, here]
            left = inner(q, k, seen.expand_as(v).contiguous())[:, here]
            result[:, here] += view.weight * attended / left.clamp(min=1e-6)
    return result


def joined(
    patches: Sequence[Any], unet: Any, arguments: Arguments, moment: Moment, plans: dict[Any, Any]
) -> tuple[Arguments, tuple[Patch, ...]]:
    """The call with the words of all regions that act now, and the chain's patches with the regions' own beneath all others."""
    others = tuple(patch for patch in patches if not isinstance(patch, PromptRegion))
    options: Mapping[str, Any] = arguments.get("transformer_options", {})
    x: Tensor = arguments.get("x")
    _, rows = rows_of(dict(options), x.shape[0], (x.shape[-2], x.shape[-1]))
    regions = tuple(region for region in prompt_regions.active(patches, moment) if any(prompt_regions.acts_on(region, row) for row in rows))
    if not regions:
        return arguments, others
    context: Tensor = arguments.get("context")
    words = [part for (part,) in prompt_regions.further_words(regions, rows, unet, None, (context,))]
    counts = [part.shape[1] for part in words]
    texts = tuple(
        prompt_regions.lengths(regions, counts, own, context.shape[1], row)
        for own, row in zip(own_lengths(options, len(rows), context.shape[1]), rows, strict=True)
    )
    layers = layers_of(unet)
    own: list[Patch] = [RegionAttention(regions, texts, layers, plans)]
    apart = frozenset(layer for number, layer in enumerate(layers) if any(region.apart_on(number, len(layers)) for region in regions))
    if apart:
        own.append(RegionAttention(regions, texts, layers, plans, "self", Scope(apart)))
    told = {**options, PROMPT: context.shape[1]}
    return arguments.having(context=torch.cat([context, *words], dim=1), transformer_options=told), (*own, *others)


def own_lengths(options: Mapping[str, Any], rows: int, prompt: int) -> list[int]:
    """How long each row's own text is: ComfyUI repeats a text beside a longer one until both are alike."""
    view, uuids = options.get(VIEW), options.get("uuids") or []
    lengths = [view.texts.get(uuid, prompt) for uuid in uuids] if view is not None else []
    if not lengths or rows % len(lengths):
        return [prompt] * rows
    whole = [length if prompt % length == 0 else prompt for length in lengths]
    return [length for length in whole for _ in range(rows // len(lengths))]
