"""Joint attention by groups against the same attention without a mask, and against a dense mask: one layer, and a whole small Flux.

Both sides have the same words. What the groups add is sorting; what they save is what their queries need not see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..figures import Figure, ratio
from .measure import device, in_turns, peak, small_flux

WORDS = 128
"""Of each text."""


def quarters(count: int, side: int) -> list[torch.Tensor]:
    """`count` masks [1, H, W] of a picture of `side` cells along an axis: its corners, all inside a border of ground."""
    pixels = side * 16
    third = pixels * 3 // 8
    corners = [(0, 0), (1, 1), (0, 1), (1, 0)][:count]
    masks = []
    for top, left in corners:
        mask = torch.zeros(1, pixels, pixels)
        rows, columns = (slice(pixels - third, pixels) if end else slice(0, third) for end in (top, left))
        mask[:, rows, columns] = 1
        masks.append(mask)
    return masks


def dense_mask(count: int, side: int, masks: list[torch.Tensor]) -> torch.Tensor:
    """Who sees whom as a bool [N, N], written without the pack: words of the prompt, words of each region, cells."""
    cells = side * side
    inside = [torch.nn.functional.avg_pool2d(mask[None], 16)[0, 0].flatten() >= 0.5 for mask in masks]
    total = WORDS * (count + 1) + cells
    seen = torch.zeros(total, total, dtype=torch.bool)
    first = WORDS * (count + 1)
    seen[first:, first:] = True
    seen[:WORDS, :WORDS] = True
    seen[:WORDS, first:] = True
    seen[first:, :WORDS] = True
    for number, place in enumerate(inside):
        words = slice(WORDS * (number + 1), WORDS * (number + 2))
        seen[words, words] = True
        seen[words, first:] = place
        seen[first:, words] = place[:, None]
    return seen


def _with_its_own(run: Callable[..., Any], *given: torch.Tensor) -> int:
    """The most bytes that a call holds at once, the tensors it is given included."""
    return peak(lambda: run(*[tensor.clone() for tensor in given]))


def layer(rounds: int = 15) -> list[Figure]:
    """One layer of 8 heads of 64: 1,024 and 4,096 cells, two and four regions."""
    from comfy.ldm.modules.attention import optimized_attention
    from maskprompt.attention import grid, groups, joint, layout, prompt_regions
    from maskprompt.attention.chain import Row

    figures = []
    for side, count in ((64, 2), (64, 4), (32, 2), (32, 4)):
        cells = side * side
        masks = quarters(count, side)
        tokens = WORDS * (count + 1) + cells
        q, k, v = (torch.randn(1, 8, tokens, 64, device=device()) for _ in range(3))
        regions = [prompt_regions.PromptRegion(torch.zeros(1, WORDS, 8), grid.RegionMask(mask)) for mask in masks]
        size = (side * 2, side * 2)
        row = Row(0, 0, (0, 0, *size))
        rule = prompt_regions.rule(regions, row, size, (1, side, side), 0, 1)
        texts: list[tuple[layout.SpanKind, int, int]] = [("words", WORDS, number) for number in range(count + 1)]
        spans = layout.spans_of(*texts, ("cells", cells))
        cut = groups.plan(layout.Layout(spans, spans, (1, side, side)), (rule,), q.device)
        seen = dense_mask(count, side, masks).to(q.device)

        def ours(q: Any = q, k: Any = k, v: Any = v, cut: Any = cut) -> torch.Tensor:
            call = {"q": q, "k": k, "v": v, "heads": 8, "skip_reshape": True}
            return joint.attend(call, cut, groups.Where(2, 1), optimized_attention)

        def dense(q: Any = q, k: Any = k, v: Any = v, seen: Any = seen) -> torch.Tensor:
            return optimized_attention(q, k, v, 8, mask=seen, skip_reshape=True)

        def unmasked(q: Any = q, k: Any = k, v: Any = v) -> torch.Tensor:
            return optimized_attention(q, k, v, 8, skip_reshape=True)

        torch.testing.assert_close(ours(), dense(), atol=1e-4, rtol=1e-4)
        wide = side == 64 and count == 2
        name = f"a layer, {tokens} tokens, {count} regions"
        turns = rounds if side == 64 else 4 * rounds
        times = in_turns(ours, unmasked, turns)
        figures.append(ratio(f"{name}: time against no mask", *times, at_most=1.0 if wide else None))
        bar = (0.9 if q.device.type == "cpu" else 0.7) if wide else None
        times = in_turns(ours, dense, turns)
        figures.append(ratio(f"{name}: time against a dense mask", *times, at_most=bar))
        held = [_with_its_own(ours, q, k, v) / _with_its_own(unmasked, q, k, v)]
        figures.append(ratio(f"{name}: peak memory against no mask", held, [1.0]))
    return figures


def model(rounds: int = 7) -> list[Figure]:
    """A Flux of width 256 with 2 double and 4 single blocks, 4,096 cells: the words come with the call on both sides."""
    from comfy.patcher_extension import WrappersMP
    from maskprompt.attention import chain, grid, prompt_regions

    flux = small_flux()
    figures = []
    for count in (2, 4):
        masks = quarters(count, 64)
        x = torch.randn(1, 16, 128, 128, device=device())
        text = torch.randn(1, WORDS * (count + 1), 64, device=device())
        parts = text.split(WORDS, 1)
        regions = tuple(prompt_regions.PromptRegion(part, grid.RegionMask(mask)) for part, mask in zip(parts[1:], masks, strict=True))
        ours = {"wrappers": {WrappersMP.DIFFUSION_MODEL: {chain.KEY: [chain.Chain(regions)]}}}
        seen = dense_mask(count, 64, masks).to(x.device)

        def masked(func: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, seen: Any = seen, **more: Any) -> torch.Tensor:
            return func(q, k, v, heads, mask=seen, **more)

        def run(words: Any, options: dict[str, Any], x: Any = x) -> torch.Tensor:
            with torch.inference_mode():
                given = {"sigmas": torch.tensor([0.7]), "cond_or_uncond": [0], **options}
                return flux(
                    x, torch.full((1,), 0.7, device=x.device), words, torch.zeros(1, 32, device=x.device), transformer_options=given
                )

        def by_groups(run: Any = run, parts: Any = parts, ours: Any = ours) -> torch.Tensor:
            return run(parts[0], ours)

        def unmasked(run: Any = run, text: Any = text) -> torch.Tensor:
            return run(text, {})

        def dense(run: Any = run, text: Any = text, masked: Any = masked) -> torch.Tensor:
            return run(text, {"optimized_attention_override": masked})

        torch.testing.assert_close(by_groups(), dense(), atol=1e-4, rtol=1e-4)
        name = f"a step of a small Flux, 4096 cells, {count} regions"
        times = in_turns(by_groups, unmasked, rounds)
        figures.append(ratio(f"{name}: time against no mask", *times, at_most=1.0 if count == 2 else None))
        figures.append(
            ratio(f"{name}: time against a dense mask", *in_turns(by_groups, dense, rounds), at_most=0.9 if count == 2 else None)
        )
        held = [peak(by_groups) / peak(unmasked)]
        figures.append(ratio(f"{name}: peak memory against no mask", held, [1.0], at_most=1.05))
    return figures


def unet(rounds: int = 7) -> list[Figure]:
    """The tiny UNet of random weights at 512 px in ComfyUI's sampler, CFG: two Prompt Regions against none, and against core's Set Mask.

    In one pass, and each region in a pass of its own, as UNets have it by default.
    """
    import comfy.sample
    import comfy.sd
    from maskprompt.attention import grid, prompt_regions

    from demo import registration, tiny_model

    registration.register()
    state = {
        f"model.diffusion_model.{name}": torch.randn_like(value) * 0.02 for name, value in tiny_model.build_unet(9).state_dict().items()
    }
    plain = comfy.sd.load_diffusion_model_state_dict(state)
    texts = torch.randn(4, 77, 128).split(1)
    masks = quarters(2, 32)
    regions = [prompt_regions.PromptRegion(text, grid.RegionMask(mask)) for text, mask in zip(texts[2:], masks, strict=True)]
    patched = prompt_regions.install(plain, *regions)
    by_passes = prompt_regions.install(plain, *(replace(region, own_pass=1.0) for region in regions))
    noise = torch.randn(1, 4, 64, 64)
    masked = [
        [text, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}] for text, mask in zip(texts[2:], masks, strict=True)
    ]

    def run(model: Any, positive: list[Any]) -> None:
        comfy.sample.sample(
            model, noise, 3, 5.0, "euler", "normal", positive, [[texts[1], {}]], torch.zeros_like(noise), seed=1, disable_pbar=True
        )

    def ours() -> None:
        run(patched, [[texts[0], {}]])

    def passes() -> None:
        run(by_passes, [[texts[0], {}]])

    def none() -> None:
        run(plain, [[texts[0], {}]])

    def core() -> None:
        run(plain, [[texts[0], {}], *masked])

    name = "three steps of the tiny UNet, 512 px, two regions"
    return [
        ratio(f"{name}: time against none", *in_turns(ours, none, rounds), at_most=1.05),
        ratio(f"{name}: time against core's Set Mask", *in_turns(ours, core, rounds), at_most=0.5),
        ratio(f"{name} in passes of their own: time against none", *in_turns(passes, none, rounds)),
        ratio(f"{name} in passes of their own: time against core's Set Mask", *in_turns(passes, core, rounds)),
    ]


def joint() -> list[Figure]:
    return [*layer(), *model(), *unet()]
