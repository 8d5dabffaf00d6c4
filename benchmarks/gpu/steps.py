"""Whole steps of UNets of real size, CFG's two rows at once: each patch against the plain step, dense masks, and torch.compile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import figures as results
from ..speed import measure as bench
from . import shapes
from .checks import Check, Setting, figure, release
from .layers import IMAGE_TOKENS
from .shapes import Shape

BARS: dict[str, float] = {"MECA, one region": 1.0, "MECA, two regions": 1.0}
"""Against the same adapters without regions (DESIGN.md)."""


class Step:
    """A UNet of random weights on the device, and how to run one step of it under patches."""

    def __init__(self, shape: Shape, setting: Setting, dtype: torch.dtype) -> None:
        import comfy.ops
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
        from comfy.patcher_extension import WrappersMP
        from maskprompt.attention import chain, grid, ip_adapter_layers, layers, masked_attention, meca

        self.chain, self.masked, self.meca, self.grid, self.layers = chain, masked_attention, meca, grid, layers
        self.unet: Any = UNetModel(**shape.config, dtype=dtype, device=setting.device, operations=comfy.ops.manual_cast).eval()
        shapes.fill(self.unet)
        self.inputs = shapes.unet_inputs(shape, setting, dtype)
        self.wrapper = WrappersMP.DIFFUSION_MODEL
        pixels = torch.zeros(1, 8 * shape.latent, 8 * shape.latent)
        pixels[:, :, : 4 * shape.latent] = 1
        self.sides = (self.grid.RegionMask(pixels), self.grid.RegionMask(1 - pixels))
        widths, numbered = ip_adapter_layers.widths(self.unet)[0], ip_adapter_layers.numbered(self.unet)
        generator = torch.Generator().manual_seed(2)

        def numbers(width: int) -> Tensor:
            return torch.randn(2, IMAGE_TOKENS, width, generator=generator)

        def stored() -> Any:
            return meca.StoredKeys({numbered[number]: (numbers(width), numbers(width)) for number, width in widths.items()})

        self.images = (stored(), stored())

    def patches(self) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Patches by name, each with those that it is compared with: none, or the same adapters without regions."""
        left = self.sides[0]
        paper = self.chain.Scope(self.layers.preset("paper", self.layers.layers_of(self.unet)))
        text, image = self.meca.TextOutside, self.meca.ImagePrompt
        whole = tuple(image(keys, None, 1.0, "global") for keys in self.images)
        regions = tuple(image(keys, side) for keys, side in zip(self.images, self.sides, strict=True))
        texts = tuple(text(side) for side in self.sides)
        return {
            "masked, paper": ((self.masked.MaskedCrossAttention(left), self.masked.MaskedSelfAttention(left, "paper", paper)), ()),
            "masked, renormalised, all layers": (
                (self.masked.MaskedCrossAttention(left), self.masked.MaskedSelfAttention(left, "renormalised")),
                (),
            ),
            "MECA, one region": ((texts[0], regions[0]), whole[:1]),
            "MECA, two regions": ((*texts, *regions), whole),
        }

    def run(self, patches: tuple[Any, ...] = (), unet: Any = None, **options: Any) -> Tensor:
        """One step under these patches; `options` are further transformer options."""
        wrappers = {self.wrapper: {self.chain.KEY: [self.chain.Chain(patches)]}} if patches else {}
        given = {"sigmas": torch.tensor([5.0]), "cond_or_uncond": [1, 0], "wrappers": wrappers, **options}
        with torch.inference_mode():
            return (self.unet if unet is None else unet)(transformer_options=given, **self.inputs)


def times(shape: Shape, dtype: torch.dtype) -> Callable[[Setting], list[results.Figure]]:
    """Time and peak memory of a step with each patch against the step without it."""

    def run(setting: Setting) -> list[results.Figure]:
        step, found = Step(shape, setting, dtype), []
        label = f"a step of {shape.name}, {str(dtype).removeprefix('torch.')}"
        for name, (ours, theirs) in step.patches().items():
            taken = bench.in_turns(lambda ours=ours: step.run(ours), lambda theirs=theirs: step.run(theirs), max(2, setting.rounds // 2))
            against = "without regions" if theirs else "the plain step"
            found.append(
                results.ratio(f"{label}: {name}, time against {against}", *taken, at_most=BARS.get(name) if setting.decides else None)
            )
            if setting.device.type == "cuda":  # elsewhere counting is slow, and the layers' own check has it
                held = bench.peak(lambda ours=ours: step.run(ours)) / max(1, bench.peak(lambda theirs=theirs: step.run(theirs)))
                found.append(figure(f"{label}: {name}, peak memory against {against}", held))
        found += _dense(step, label, setting)
        return found

    return run


def _dense(step: Step, label: str, setting: Setting) -> list[results.Figure]:
    """`renormalised` in all layers against masks of N x N in every self-attention, the way of other packs; and that both agree."""
    from comfy.ldm.modules.attention import attention_pytorch

    masks: dict[int, Tensor] = {}

    def override(_function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
        tokens = q.shape[1]
        if k.shape[1] == tokens:
            if tokens not in masks:
                half = torch.arange(tokens, device=q.device) % round(tokens**0.5) < round(tokens**0.5) // 2
                masks[tokens] = (half[:, None] == half[None, :])[None, None]
            mask = masks[tokens]
        kwargs.pop("transformer_options", None)
        return attention_pytorch(q, k, v, heads, mask=mask, **kwargs)

    patch = (step.masked.MaskedSelfAttention(step.sides[0], "renormalised"),)
    ours, theirs = step.run(patch), step.run(optimized_attention_override=override)
    far = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    if not far < 0.03:
        raise RuntimeError(f"{label}: the step under masks of N x N differs by {far:.3f} of its largest value")
    taken = bench.in_turns(lambda: step.run(patch), lambda: step.run(optimized_attention_override=override), max(2, setting.rounds // 2))
    return [
        results.ratio(f"{label}: masked, renormalised, time against dense masks", *taken),
        figure(f"{label}: masked, renormalised, largest difference to dense masks", far),
    ]


def compiled(shape: Shape, dtype: torch.dtype) -> Callable[[Setting], list[results.Figure]]:
    """The step under torch.compile, plain and masked: that it runs, gives what it gave, and what it costs.

    Toys are traced only (backend `eager`), as a C++ compiler may be missing.
    """

    def run(setting: Setting) -> list[results.Figure]:
        step, found = Step(shape, setting, dtype), []
        label = f"a step of {shape.name}, {str(dtype).removeprefix('torch.')}, torch.compile"
        backend = "eager" if setting.small else "inductor"
        patches = step.patches()["masked, paper"][0]
        wanted = {name: step.run(given) for name, given in (("plain", ()), ("masked", patches))}
        network = torch.compile(step.unet, backend=backend)
        started = time.perf_counter()
        for name, given in (("plain", ()), ("masked", patches)):
            result = step.run(given, network)
            far = float((result.float() - wanted[name].float()).abs().max() / wanted[name].float().abs().max())
            found.append(figure(f"{label}: {name}, largest difference to the step that is not compiled", far, 0.03))
        found.append(figure(f"{label}: seconds until both had run once", time.perf_counter() - started))
        taken = bench.in_turns(lambda: step.run(patches, network), lambda: step.run((), network), max(2, setting.rounds // 2))
        found.append(results.ratio(f"{label}: masked, time against the plain step", *taken))
        gain = bench.in_turns(lambda: step.run(patches, network), lambda: step.run(patches), max(2, setting.rounds // 2))
        found.append(results.ratio(f"{label}: masked, time against the same not compiled", *gain))
        torch._dynamo.reset()
        release()
        return found

    return run


def checks(setting: Setting) -> list[Check]:
    named = shapes.shapes(setting)
    return [Check(f"steps: {shape.name}", times(shape, setting.dtypes[0]), 12) for shape in named]


def compile_checks(setting: Setting) -> list[Check]:
    """Apart, as they take longest and run last."""
    shape = shapes.compiled(setting)
    return [Check(f"steps under torch.compile: {shape.name}", compiled(shape, setting.dtypes[0]), 120)]
