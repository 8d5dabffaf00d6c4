"""Image Prompt Region with regions against the same IP-Adapter without, as ratios of time and memory.

Both sides in one run on the same machine, taken in turns; with two regions against two adapters without regions too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from demo import tiny_model

from ..figures import Figure, ratio
from .measure import device, in_turns, peak

MIDDLING: dict[str, Any] = {**tiny_model.UNET, "model_channels": 128, "num_heads": 8, "num_head_channels": -1, "context_dim": 768}
"""SD 1.5's blocks and text at 128 channels."""


def left_half(side: int) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, :, : side // 2] = 1
    return mask


def stored(widths: dict[Any, int], tokens: int) -> Any:
    """Random keys of an image prompt for each layer."""
    from maskprompt.attention import meca

    return meca.StoredKeys({layer: (torch.randn(2, tokens, width), torch.randn(2, tokens, width)) for layer, width in widths.items()})


def patches(image: Any) -> list[Any]:
    from maskprompt.attention import meca

    return [image] if image.mode == "global" else [meca.TextOutside(image.region, image.weight, image.mode, image.scope), image]


def layer(rounds: int = 25) -> list[Figure]:
    """One cross-attention layer of SD 1.5 at 512 px: 4096 tokens, 8 heads of 40, CFG's two rows, 77 words, 16 image tokens."""
    from maskprompt.attention import chain, grid, meca
    from maskprompt.attention.moment import Moment

    where = ("input", 1, 0)
    target = device()
    q = torch.randn(2, 4096, 320, device=target)
    k = torch.randn(2, 77, 320, device=target)
    v = torch.randn(2, 77, 320, device=target)
    rows = tuple(chain.Row(half, 0, (0, 0, 64, 64)) for half in (0, 1))
    call = chain.Call("cross", where, 8, (64, 64), (64, 64), rows, Moment(1.0), True)
    keys = stored({where: 320}, 16)
    region = grid.RegionMask(left_half(512))

    def inner(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return chain.attention(q, k, v, {"n_heads": 8})

    def over(patch: Any, below: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return patch.attend(q, k, v, call, below)

    def run(*images: Any) -> None:
        found = [patch for image in images for patch in patches(image)]
        texts = [patch for patch in found if isinstance(patch, meca.TextOutside)]
        beneath: Any = inner
        for patch in texts + [patch for patch in found if patch not in texts]:
            beneath = partial(over, patch, beneath)
        with torch.inference_mode():
            beneath(q, k, v)

    whole = meca.ImagePrompt(keys, None, 1.0, "global")
    figures = []
    for mode in ("region", "query"):
        half = meca.ImagePrompt(keys, region, 1.0, mode)
        times = in_turns(lambda half=half: run(half), lambda: run(whole), rounds)
        figures.append(ratio(f"MECA, {mode}, half the picture, one layer: time", *times, at_most=1.03))
        given = sum(part.numel() * part.element_size() for part in (q, k, v))
        held = [(given + peak(lambda half=half: run(half))) / (given + peak(lambda: run(whole)))]
        figures.append(ratio(f"MECA, {mode}, half the picture, one layer: peak memory", held, [1.0], at_most=1.05))
    return figures


def step(rounds: int = 9) -> list[Figure]:
    """One evaluation of a middling UNet of random weights (SD 1.5's blocks at 128 channels) at 512 px with CFG's two rows."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.patcher_extension import WrappersMP
    from maskprompt.attention import chain, grid, meca
    from maskprompt.attention.ip_adapter_layers import numbered, widths

    target = device()
    unet = UNetModel(**MIDDLING, dtype=torch.float32, device=target, operations=comfy.ops.disable_weight_init)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    widths_of = widths(unet)[0]
    layers = numbered(unet)
    x = torch.randn(2, 9, 64, 64, device=target)
    text = torch.randn(2, 77, 768, device=target)
    left = left_half(512)
    keys = [stored({layers[number]: width for number, width in widths_of.items()}, 16) for _ in range(2)]

    def run(*images: Any) -> None:
        found = [patch for image in images for patch in patches(image)]
        ordered = sorted(found, key=lambda patch: isinstance(patch, meca.ImagePrompt))
        wrappers = {WrappersMP.DIFFUSION_MODEL: {"maskprompt": [chain.Chain(tuple(ordered))]}}
        options = {"sigmas": torch.tensor([1.0]), "cond_or_uncond": [1, 0], "wrappers": wrappers}
        with torch.inference_mode():
            unet(x, torch.tensor([500.0, 500.0], device=target), context=text, transformer_options=options)

    whole = [meca.ImagePrompt(one, None, 1.0, "global") for one in keys]
    sides = [meca.ImagePrompt(one, grid.RegionMask(mask)) for one, mask in zip(keys, (left, 1 - left), strict=True)]
    figures = []
    for name, count in (("one region", 1), ("two regions", 2)):
        times = in_turns(lambda count=count: run(*sides[:count]), lambda count=count: run(*whole[:count]), rounds)
        figures.append(ratio(f"a sampling step, middling UNet, 512 px, MECA with {name}: time", *times, at_most=1.03))
    return figures


def meca() -> list[Figure]:
    """One layer, and a whole sampling step."""
    return [*layer(), *step()]
