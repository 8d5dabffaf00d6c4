"""Every patch on single attention layers of real shapes: against its dense formula, and against the unmasked layer and a dense mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import figures as results
from ..speed import measure as bench
from . import dense, shapes
from .checks import Check, Setting, figure
from .shapes import Layer, Shape

WORDS, IMAGE_TOKENS = 77, 16
WORSE = 2.0
"""A patch may be so many times as far from its formula in float32 as plain attention is from its own, in the same precision."""
TIMES: dict[str, float] = {"self, paper": 1.05, "self, renormalised": 0.60}
"""Bars on time against the unmasked layer with half of the picture masked (DESIGN.md)."""
MEMORY: dict[str, float] = {"self, paper": 1.0}


class Bench:
    """A layer's random queries, text and image keys, a mask of half of the picture, and the patches with their formulas."""

    def __init__(self, layer: Layer, setting: Setting, dtype: torch.dtype) -> None:
        from maskprompt.attention import chain, grid, maps, meca, probe
        from maskprompt.attention import masked_attention as masked

        self.chain = chain
        generator = torch.Generator().manual_seed(0)
        tokens, side, heads = layer.side**2, layer.side, layer.heads

        def numbers(count: int) -> Tensor:
            return torch.randn(2, count, layer.channels, generator=generator).to(setting.device, dtype)

        self.layer, self.heads = layer, heads
        self.q, self.k, self.v = (numbers(tokens) for _ in range(3))
        self.text = (numbers(WORDS), numbers(WORDS))
        image = (numbers(IMAGE_TOKENS), numbers(IMAGE_TOKENS))
        pixels = torch.zeros(1, 8 * side, 8 * side)
        pixels[:, :, : 4 * side] = 1
        half = torch.zeros(side, side, dtype=torch.bool)
        half[:, : side // 2] = True
        inside = half.flatten().to(setting.device)
        rows = tuple(self.chain.Row(0, number, (0, 0, side, side)) for number in range(2))
        place = ("input", 1, 0)
        self.call = self.chain.Call(
            "self", place, heads, (side, side), (side, side), rows, self.chain.Moment(1.0), True, {"n_heads": heads}
        )
        region, (q, k, v), text = grid.RegionMask(pixels), (self.q, self.k, self.v), self.text
        # One image for all rows; the last of the stored ones is the unconditional's, which no row here asks for.
        stored = meca.StoredKeys({place: (image[0][:1].repeat(2, 1, 1), image[1][:1].repeat(2, 1, 1))})
        keys = (image[0][:1].expand(2, -1, -1), image[1][:1].expand(2, -1, -1))
        self.readings = maps.Readings()
        self.patches: dict[str, tuple[tuple[Any, ...], tuple[Tensor, Tensor], Callable[[], Tensor]]] = {
            "cross, paper": ((masked.MaskedCrossAttention(region),), text, lambda: dense.paper_cross(q, *text, heads, inside)),
            "self, paper": ((masked.MaskedSelfAttention(region, "paper"),), (k, v), lambda: dense.paper_self(q, k, v, heads, inside)),
            "self, renormalised": (
                (masked.MaskedSelfAttention(region, "renormalised"),), (k, v), lambda: dense.renormalised_self(q, k, v, heads, inside),
            ),
            "MECA, region": (
                (meca.TextOutside(region), meca.ImagePrompt(stored, region)), text,
                lambda: dense.meca(q, text, keys, heads, inside, "region"),
            ),
            "MECA, query": (
                (meca.TextOutside(region, 1.0, "query"), meca.ImagePrompt(stored, region, 1.0, "query")), text,
                lambda: dense.meca(q, text, keys, heads, inside, "query"),
            ),
            "MECA, global": (
                (meca.ImagePrompt(stored, region, 1.0, "global"),), text, lambda: dense.meca(q, text, keys, heads, inside, "global"),
            ),
        }  # fmt: skip
        self.probe = probe.Probe((((3, 4),),), WORDS, self.readings)
        self.whole = (meca.ImagePrompt(stored, None, 1.0, "global"),)

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.chain.attention(q, k, v, {"n_heads": self.heads})

    def run(self, patches: tuple[Any, ...], k: Tensor, v: Tensor) -> Tensor:
        """The layer under these patches, the first one lowest, as the chain composes them."""
        beneath: Any = self.plain
        call = self.call
        for patch in patches:
            beneath = _over(patch, call, beneath)
            call = dataclasses.replace(call, plain=False)
        with torch.inference_mode():
            return beneath(self.q, k, v)


def _over(patch: Any, call: Any, inner: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: patch.attend(q, k, v, call, inner)


def _far(found: Tensor, wanted: Tensor) -> float:
    """The root of the mean squared difference, over that of what is wanted."""
    return float((found.float() - wanted.float()).square().mean().sqrt() / wanted.float().square().mean().sqrt())


def correct(shape: Shape, dtype: torch.dtype) -> Callable[[Setting], list[results.Figure]]:
    """Each patch's worst error over a UNet's layers, in multiples of plain attention's own error in that precision."""

    def run(setting: Setting) -> list[results.Figure]:
        worst: dict[str, float] = {}
        for layer in shape.layers:
            one = Bench(layer, setting, dtype)
            for name, (patches, (k, v), formula) in one.patches.items():
                usual = _far(one.plain(one.q, k, v), dense.attended(one.q, k, v, one.heads))
                off = _far(one.run(patches, k, v), formula())
                worst[name] = max(worst.get(name, 0.0), off / max(usual, 1e-7))
            k, v = one.text
            untouched = one.run((one.probe,), k, v)
            if not torch.equal(untouched, one.run((), k, v)):
                raise RuntimeError("the probe changed the attention that it reads")
            read = one.readings.all()[-1].maps
            off = float((read - dense.columns(one.q, k, one.heads, (3, 4))).abs().max())
            worst["probe, largest difference"] = max(worst.get("probe, largest difference", 0.0), off)
        label = f"{shape.name}, {str(dtype).removeprefix('torch.')}"
        bars = {"probe, largest difference": 2e-3 if dtype != torch.float32 else 1e-5}
        return [figure(f"{label}: {name}, error against its formula", value, bars.get(name, WORSE)) for name, value in worst.items()]

    return run


def quick(shape: Shape, dtype: torch.dtype) -> Callable[[Setting], list[results.Figure]]:
    """On a UNet's largest layer, half masked: time and peak memory against the unmasked layer, and time against a dense mask."""

    def run(setting: Setting) -> list[results.Figure]:
        one = Bench(shape.layers[0], setting, dtype)
        label, found = f"{shape.name}, {str(dtype).removeprefix('torch.')}", []
        for name, (patches, (k, v), _) in one.patches.items():
            image = name.startswith("MECA")
            beside = one.whole if image else ()
            times = bench.in_turns(
                lambda p=patches, k=k, v=v: one.run(p, k, v), lambda b=beside, k=k, v=v: one.run(b, k, v), setting.rounds
            )
            bar = (1.0 if image else TIMES.get(name)) if setting.decides else None
            against = "the same adapter without a region" if image else "the unmasked layer"
            found.append(results.ratio(f"{label}: {name}, time against {against}", *times, at_most=bar))
            given = sum(part.numel() * part.element_size() for part in (one.q, k, v))
            held = (given + bench.peak(lambda p=patches, k=k, v=v: one.run(p, k, v))) / (
                given + bench.peak(lambda b=beside, k=k, v=v: one.run(b, k, v))
            )
            found.append(figure(f"{label}: {name}, peak memory against {against}", held, MEMORY.get(name) if setting.decides else None))
        found.append(_against_a_dense_mask(one, label, setting))
        return found

    return run


def _against_a_dense_mask(one: Bench, label: str, setting: Setting) -> results.Figure:
    """`renormalised` against PyTorch's attention with a mask of N x N that says the same."""
    side = one.layer.side
    half = (torch.arange(side * side, device=setting.device) % side) < side // 2
    mask = half[:, None] == half[None, :]
    patches, (k, v), _ = one.patches["self, renormalised"]

    def masked() -> Tensor:
        parts = [x.unflatten(2, (one.heads, -1)).transpose(1, 2) for x in (one.q, k, v)]
        with torch.inference_mode():
            return torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)

    times = bench.in_turns(lambda: one.run(patches, k, v), masked, setting.rounds)
    bar = 0.7 if setting.decides else None
    return results.ratio(f"{label}: self, renormalised, time against a dense mask", *times, at_most=bar)


def checks(setting: Setting) -> list[Check]:
    found = []
    for shape in shapes.shapes(setting):
        for dtype in setting.dtypes:
            name = f"{shape.name}, {str(dtype).removeprefix('torch.')}"
            found.append(Check(f"layers against their formulas: {name}", correct(shape, dtype), 8))
        found.append(Check(f"layers, time and peak: {shape.name}", quick(shape, setting.dtypes[0]), 8))
    return found
