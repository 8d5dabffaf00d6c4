"""References with regions on a small Flux: what a hidden half saves, and what two regions cost."""

from __future__ import annotations

import torch

from ..figures import Figure, ratio
from .joint import WORDS, quarters
from .measure import device, in_turns, peak, small_flux

SIDE = 64
"""Cells along an axis of the painted picture, and of a reference as large as it."""


def references(rounds: int = 7) -> list[Figure]:
    """A Flux of width 256 with 2 double and 4 single blocks, 4,096 cells, references of 4,096 tokens or two of 2,048."""
    from comfy.patcher_extension import WrappersMP
    from maskprompt.attention import chain, grid, rows
    from maskprompt.attention.reference_regions import Listener, ReferenceRegion

    flux = small_flux()
    latent = (2 * SIDE, 2 * SIDE)
    x = torch.randn(1, 16, *latent, device=device())
    text = torch.randn(1, WORDS, 64, device=device())
    whole = [torch.randn(1, 16, *latent, device=device())]
    halves = [torch.randn(1, 16, latent[0], SIDE, device=device()) for _ in range(2)]
    shown = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    shown[:, : SIDE // 2] = True
    every = torch.ones(1, SIDE * SIDE // 2, dtype=torch.bool)
    hidden = (ReferenceRegion(whole[0], shown.reshape(1, -1)),)
    placed = tuple(
        ReferenceRegion(one, every, grid.RegionMask(mask)) for one, mask in zip(halves, quarters(2, SIDE), strict=True)
    )  # fmt: skip
    wrapper = {"wrappers": {WrappersMP.DIFFUSION_MODEL: {chain.KEY: [chain.Chain((Listener(chain.EVERYWHERE),))]}}}

    def step(latents: list[torch.Tensor], said: tuple[ReferenceRegion, ...] = ()) -> torch.Tensor:
        view = rows.View(latent, {}, references={"prompt": said} if said else {})
        options = {"sigmas": torch.tensor([0.7]), "cond_or_uncond": [0], "uuids": ["prompt"], rows.VIEW: view, **(wrapper if said else {})}
        time = torch.full((1,), 0.7, device=x.device)
        with torch.inference_mode():
            return flux(x, time, text, torch.zeros(1, 32, device=x.device), ref_latents=latents, transformer_options=options)

    def half_hidden() -> torch.Tensor:
        return step(whole, hidden)

    def all_shown() -> torch.Tensor:
        return step(whole)

    def by_region() -> torch.Tensor:
        return step(halves, placed)

    def everywhere() -> torch.Tensor:
        return step(halves)

    name = f"a step of a small Flux, {SIDE * SIDE} cells"
    return [
        ratio(f"{name}, a reference of as many: half hidden against whole", *in_turns(half_hidden, all_shown, rounds), at_most=0.85),
        ratio(f"{name}, a reference of as many: peak memory, half hidden against whole", [peak(half_hidden) / peak(all_shown)], [1.0]),
        ratio(f"{name}, two references with regions against without", *in_turns(by_region, everywhere, rounds), at_most=1.0),
        ratio(f"{name}, two references: peak memory, with regions against without", [peak(by_region) / peak(everywhere)], [1.0]),
    ]
