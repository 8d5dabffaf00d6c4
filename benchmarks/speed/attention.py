"""Masked attention against plain, as ratios of time and memory: one layer of self-attention, and a whole sampling step."""

from __future__ import annotations

import gc
from typing import Any

import torch

from demo import tiny_model

from ..figures import Figure, ratio
from .measure import SD15, device, in_turns, peak


def attention(rounds: int = 15) -> list[Figure]:
    """Masked self-attention of 4096 tokens (SD 1.5 at 512 px), 8 heads of 40, CFG's two rows."""
    from maskprompt.attention import chain, grid
    from maskprompt.attention.masked_attention import MaskedSelfAttention, SelfMode
    from maskprompt.attention.moment import Moment

    q, k, v = (torch.randn(2, 4096, 320, device=device()) for _ in range(3))
    rows = tuple(chain.Row(half, 0, (0, 0, 64, 64)) for half in (0, 1))
    call = chain.Call("self", ("input", 1, 0), 8, (64, 64), (64, 64), rows, Moment(1.0), True)
    figures = []

    def inner(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return chain.attention(q, k, v, {"n_heads": 8})

    for share, side in (("a quarter", 256), ("half", 362)):
        mask = torch.zeros(1, 512, 512)
        mask[:, 50 : 50 + side, 50 : 50 + side] = 1
        bars: dict[SelfMode, float | None] = {"paper": 1.10, "renormalised": 0.65 if share == "half" else None}
        for mode, bar in bars.items():
            patch = MaskedSelfAttention(grid.RegionMask(mask), mode)
            times = in_turns(lambda patch=patch: patch.attend(q, k, v, call, inner), lambda: inner(q, k, v), rounds)
            figures.append(ratio(f"self-attention, {mode}, {share} masked: time", *times, at_most=bar))
            given = 3 * q.numel() * q.element_size()
            held = [(given + peak(lambda patch=patch: patch.attend(q, k, v, call, inner))) / (given + peak(lambda: inner(q, k, v)))]
            figures.append(ratio(f"self-attention, {mode}, {share} masked: peak memory", held, [1.0], at_most=1.05))
    return figures


def step(rounds: int = 3) -> list[Figure]:
    """One evaluation of a UNet of random weights with CFG's two rows, masked (paper) against plain.

    The tiny one, and SD 1.5's size at 512 px.
    """
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.patcher_extension import WrappersMP
    from maskprompt.attention import chain, grid, layers
    from maskprompt.attention.masked_attention import MaskedCrossAttention, MaskedSelfAttention

    figures = []
    for name, config, size, context, many in (("tiny", tiny_model.UNET, 16, 128, 20), ("SD 1.5", SD15, 64, 768, 1)):
        unet = UNetModel(**config, dtype=torch.float32, device=device(), operations=comfy.ops.disable_weight_init)
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        mask = torch.zeros(1, size * 8, size * 8)
        mask[:, size * 2 : size * 6, size * 2 : size * 6] = 1
        region = grid.RegionMask(mask)
        scope = chain.Scope(layers.preset("paper", layers.layers_of(unet)))
        patches = (MaskedCrossAttention(region), MaskedSelfAttention(region, "paper", scope))
        x = torch.randn(2, 9, size, size, device=device())
        text = torch.randn(2, 77, context, device=device())

        def run(wrappers: dict[str, Any], unet: Any = unet, x: torch.Tensor = x, text: torch.Tensor = text, many: int = many) -> None:
            with torch.inference_mode():
                for _ in range(many):
                    options = {"sigmas": torch.tensor([5.0]), "cond_or_uncond": [1, 0], "wrappers": wrappers}
                    unet(x, torch.full((2,), 500.0, device=x.device), text, transformer_options=options)

        ours = {WrappersMP.DIFFUSION_MODEL: {chain.KEY: [chain.Chain(patches)]}}
        times = in_turns(lambda ours=ours, run=run: run(ours), lambda run=run: run({}), rounds if many == 1 else 3 * rounds)
        time_bar, memory_bar = (1.03, 1.05) if name == "SD 1.5" else (None, None)
        figures.append(ratio(f"a sampling step, {name}, {size * 8} px, masked: time", *times, at_most=time_bar))
        held = [peak(lambda ours=ours, run=run: run(ours)) / peak(lambda run=run: run({}))]
        figures.append(ratio(f"a sampling step, {name}, {size * 8} px, masked: peak memory", held, [1.0], at_most=memory_bar))
        del unet
        gc.collect()
    return figures
