"""Where rules act on a transformer: around every call of ComfyUI's attention, whoever serves it.

`run` is what the chain does with a model that is no UNet: it reads the scene, joins the regions' words, and hands the model an
`optimized_attention_override` that wraps the one which is there. A call on which no rule acts is passed on as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import families, groups, joint_probe, prompt_regions, reference_regions
from .arguments import Arguments
from .chain import SLOTS
from .families import Family, Scene, Seen
from .grid import Size
from .groups import Plan, Where
from .joint_probe import JointProbe
from .layers import layers_of
from .layout import Layout, Lengths, with_texts
from .maps import Reading
from .moment import Moment
from .prompt_regions import PromptRegion
from .rows import VIEW, Row, rows_of
from .visibility import Rule

PARAMETERS = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
"""The arguments of ComfyUI's attention functions, in their order."""
MOST_PLANS = 1024
MOST_SHARES = 2
"""Into how many shares the heads of a call go at most, one after the other, so that less stands beside the call's own tensors."""
LEAST_ROWS = {"cpu": 1 << 12}
"""How many queries of a head a share has at least, all heads and pictures counted: fewer do not keep a device busy."""
LEAST_ROWS_ELSEWHERE = 1 << 16

Plans = dict[Hashable, Plan]


@dataclass(frozen=True)
class Part:
    """Rows of the batch that share all rules, and the lengths of their texts for each stream of words."""

    rows: tuple[int, ...]
    row: Row
    texts: tuple[Lengths, ...]


@dataclass
class Run:
    """One run of a transformer under a chain: made for it, and gone with it.

    `prompt` is how many words of each stream it gets of the prompt, without the regions'. `count` counts its calls of attention.
    """

    model: Any
    family: Family
    scene: Scene
    latent: Size
    moment: Moment
    rows: tuple[Row, ...]
    prompt: tuple[int, ...]
    parts: tuple[Part, ...]
    regions: tuple[PromptRegion, ...]
    patches: tuple[Any, ...]
    beneath: Callable[..., Tensor] | None
    plans: Plans
    count: int = 0

    def __call__(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """`optimized_attention_override`: called by ComfyUI around each of its attention functions."""

        def untouched(*args: Any, **kwargs: Any) -> Tensor:
            return function(*args, **kwargs) if self.beneath is None else self.beneath(function, *args, **kwargs)

        call = {**dict(zip(PARAMETERS, args, strict=False)), **kwargs}
        q, k = call["q"], call["k"]
        tokens = 2 if call.get("skip_reshape") else 1
        seen = self.family.seen(self.model, self.scene, call.get("transformer_options") or {}, self.count, q.shape[tokens], k.shape[tokens])
        self.count += 1
        if seen is None:
            return untouched(*args, **kwargs)
        cuts = [self._plan(part, seen, q.device) for part in self.parts]
        probes = [patch for patch in self.patches if isinstance(patch, JointProbe) and patch.scope.covers(seen.layer, self.moment)]
        free = all(cut is None or cut.free for cut in cuts)
        if free and not probes:
            return untouched(*args, **kwargs)
        if len(q) != len(self.rows):
            raise RuntimeError(
                f"another node runs layer {seen.layer} on {len(q)} rows where the batch has {len(self.rows)}, so it is not known which row "
                "is whose. Bypass that node, or MaskPrompt's."
            )
        for probe in probes:
            self._read(probe, call, seen, cuts)
        if free:
            return untouched(*args, **kwargs)
        _check_mask(call, q.shape[tokens], k.shape[tokens])
        where = Where(tokens, 2 if call.get("skip_output_reshape") else 1)
        if len(cuts) == 1:
            return attend(call, cuts[0], where, untouched)
        results = [
            attend({**call, **_rows_of(call, list(part.rows))}, cut, where, untouched) for part, cut in zip(self.parts, cuts, strict=True)
        ]
        order = [row for part in self.parts for row in part.rows]
        result = torch.cat(results)
        return result if order == sorted(order) else result[torch.argsort(torch.tensor(order)).to(q.device)]

    def _read(self, probe: JointProbe, call: Mapping[str, Any], seen: Seen, cuts: Sequence[Plan | None]) -> None:
        """Puts what a probe looks for in this call into its readings, for the rows of the positive prompt."""
        cells = joint_probe.cells_of(seen.layout)
        if not cells:
            return
        for part, cut in zip(self.parts, cuts, strict=True):
            if part.row.half != 0:
                continue
            rows = [self.rows[row] for row in part.rows]
            readout = probe.readout(rows, seen.layout, self.prompt, self.family.filled_in_front)
            maps = joint_probe.shares({**call, **_rows_of(call, list(part.rows))}, cells, readout, cut)
            pictures, maps = joint_probe.over_frames(rows, seen.layout.grid[0], maps)
            probe.readings.add(Reading(seen.layer, seen.layout.grid[1:], self.latent, pictures, maps))

    def _plan(self, part: Part, seen: Seen, device: torch.device) -> Plan | None:
        """How a layer is cut for some rows; None where no rule acts. Kept for all layers alike and all steps."""
        rules = self._rules(part, seen)
        if not rules:
            return None
        key = (seen.layout, part.texts, tuple(rule.key for rule in rules), device)
        if key not in self.plans:
            if len(self.plans) >= MOST_PLANS:
                self.plans.clear()
            self.plans[key] = groups.plan(self._layout(seen.layout, part), rules, device)
        return self.plans[key]

    def _layout(self, layout: Layout, part: Part) -> Layout:
        return with_texts(layout, part.texts)

    def _rules(self, part: Part, seen: Seen) -> tuple[Rule, ...]:
        found: list[Rule] = []
        grid = seen.layout.grid
        if self.regions:
            found.append(prompt_regions.rule(self.regions, part.row, self.latent, grid, seen.number, seen.layers))
        for patch in self.patches:
            if patch.kind == "rule":
                rule = patch.rule(part.row, self.latent, grid, seen.layer, self.moment)
                found += [] if rule is None else [rule]
        if any(part.row.references):
            if any(span.kind == "cells" for span in seen.layout.keys):
                reference_regions.check(part.row.references, seen.layout.keys)
            rule = reference_regions.rule(part.row, self.latent, grid, self.moment)
            found += [] if rule is None else [rule]
        return tuple(found)


def _check_mask(call: Mapping[str, Any], queries: int, keys: int) -> None:
    """RuntimeError where the call's own mask is not of all its tokens: core's for Apply Style Model leaves references out."""
    mask = call.get("mask")
    if mask is None or (mask.shape[-1] in (1, keys) and (mask.ndim == 1 or mask.shape[-2] in (1, queries))):
        return
    raise RuntimeError(
        "the prompt carries an attention mask of the picture (Apply Style Model with strength_type attn_bias) that knows nothing of the "
        "reference pictures. Choose strength_type multiply there, or leave the references out."
    )


def attend(call: Mapping[str, Any], cut: Plan | None, where: Where, attention: Callable[..., Tensor]) -> Tensor:
    """A call of ComfyUI's `attention`, given its arguments by name, by a plan; without one it is the call itself."""
    others = {name: value for name, value in call.items() if name not in ("q", "k", "v", "heads", "mask")}

    shares = 1 if cut is None or cut.free else _shares(call, where)

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attention(q, k, v, call["heads"] // shares, mask=mask, **others)

    mask = call.get("mask")
    if cut is None:
        return run(call["q"], call["k"], call["v"], mask)
    return groups.attend(call["q"], call["k"], call["v"], cut, run, where, mask, shares=shares)


def _shares(call: Mapping[str, Any], where: Where) -> int:
    """Into how many shares the heads of a call go: each has as many whole heads, of the keys too, and keeps the device busy."""
    q, k, heads = call["q"], call["k"], call["heads"]
    size = q.shape[3 - where.tokens] // heads
    of_keys = k.shape[3 - where.tokens] // size
    rows = len(q) * q.shape[where.tokens] * heads
    most = min(MOST_SHARES, max(1, rows // LEAST_ROWS.get(q.device.type, LEAST_ROWS_ELSEWHERE)))
    return max(count for count in range(1, most + 1) if math.gcd(heads, of_keys) % count == 0)


def _rows_of(call: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    """q, k, v and the mask of some rows of the batch; of neighbours without a copy."""
    batch = len(call["q"])
    which = slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else rows
    named = {name: call[name][which] for name in ("q", "k", "v")}
    mask = call.get("mask")
    if mask is not None:
        named["mask"] = mask[which] if mask.ndim > 2 and len(mask) == batch else mask
    return named


def run(chain: Any, executor: Any, model: Any, arguments: Arguments, plans: Plans) -> Any:
    """One run of a transformer `model` under a chain's patches; `executor` takes the arguments.

    Raises in words before the model runs where something cannot be placed.
    """
    if any(patch.kind in SLOTS for patch in chain.patches):
        layers_of(model)
    options = arguments.get("transformer_options", {})
    moment = chain.moment(options)
    patches = tuple(patch for patch in chain.patches if patch.scope.holds_at(moment))
    if not patches:
        return arguments.call(executor)
    family = families.of(model)
    x: Tensor = arguments.get("x")
    if VIEW not in options and arguments.get("ref_latents") and any(patch.kind == "references" for patch in patches):
        raise RuntimeError(
            "another node runs the model in a way that tells nothing of the prompts, so it is not known where the reference pictures act. "
            "Bypass that node, or Reference Region."
        )
    latent, rows = rows_of(options, x.shape[0], (x.shape[-2], x.shape[-1]))
    regions = tuple(region for region in prompt_regions.active(patches, moment) if any(prompt_regions.acts_on(region, row) for row in rows))
    with_regions = [any(prompt_regions.acts_on(region, row) for region in regions) for row in rows]
    if family.counts_words and any(with_regions) and not all(with_regions):
        return _by_halves(chain, executor, model, arguments, plans, with_regions)
    text = family.text(arguments)
    prompt = tuple(part.shape[1] for part in text)
    counts: list[tuple[int, ...]] = []
    if regions:
        words = prompt_regions.further_words(regions, rows, model, family, text)
        counts = [tuple(part.shape[1] for part in parts) for parts in words]
        further = tuple(torch.cat(parts, dim=1) for parts in zip(*words, strict=True))
        arguments = family.joined(model, arguments, further, [count[0] for count in counts])
    parts = _parts(rows, patches, regions, counts, prompt)
    options = arguments.get("transformer_options", {})
    beneath = options.get("optimized_attention_override")
    state = Run(model, family, family.scene(model, arguments), latent, moment, rows, prompt, parts, regions, patches, beneath, plans)
    options = {**family.announced(model, options), "optimized_attention_override": state}
    arguments = arguments.having(transformer_options=options)
    result = arguments.call(executor)
    if state.count:
        chain.came.add(type(model))
    elif type(model) not in chain.came:  # else another node answers a step by what it kept of an earlier one (TeaCache and the like)
        raise RuntimeError(
            f"the attention of this model ({type(model).__name__}) never came by MaskPrompt: another node replaces it, or this ComfyUI "
            "runs it in another way. A mask would not act; bypass that node, or MaskPrompt's."
        )
    return result


def _by_halves(chain: Any, executor: Any, model: Any, arguments: Arguments, plans: Plans, with_regions: Sequence[bool]) -> Tensor:
    """The rows with regions and those without in turn, for models in which further words move the picture's places."""
    parts: dict[bool, tuple[list[int], Tensor]] = {}
    for wanted in (True, False):
        chunks = arguments.chunks(lambda row, wanted=wanted: with_regions[row] == wanted)
        parts[wanted] = (arguments.rows_of_chunks(chunks), run(chain, executor, model, arguments.of_chunks(chunks), plans))
    order = torch.tensor([*parts[True][0], *parts[False][0]])
    return torch.cat([parts[True][1], parts[False][1]])[torch.argsort(order)]


def _parts(
    rows: Sequence[Row],
    patches: Sequence[Any],
    regions: Sequence[PromptRegion],
    counts: Sequence[tuple[int, ...]],
    prompt: tuple[int, ...],
) -> tuple[Part, ...]:
    """The batch's rows by what patches may say of them: half of CFG, masks, window, frames, references."""
    found: dict[Hashable, list[int]] = {}
    for number, row in enumerate(rows):
        masks = tuple(patch.mask.index(row.image) for patch in patches if hasattr(patch, "mask"))
        shown = tuple((id(region), region.index(row.image)) for region in row.references if region is not None)
        found.setdefault((min(row.half, 1), masks, row.window, row.frames, row.references, shown), []).append(number)

    def texts(row: Row) -> tuple[Lengths, ...]:
        streams = (([count[stream] for count in counts], own) for stream, own in enumerate(prompt))
        return tuple(prompt_regions.lengths(regions, further, own, own, row) for further, own in streams)

    return tuple(Part(tuple(numbers), rows[numbers[0]], texts(rows[numbers[0]])) for numbers in found.values())
