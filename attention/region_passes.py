"""Regions that are painted in passes of their own while the picture's layout is decided, then in one pass with the prompt.

In one pass a model that is asked for one thing in each region may paint only one of them: what it decides first, it decides for the whole
picture. In a pass of its own a region's text is all that the model reads; what it predicts counts inside of the mask alone, as with
ComfyUI's Conditioning (Set Mask). Only the rows of the batch on which a region acts run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import prompt_regions
from .arguments import Arguments
from .grid import Size
from .prompt_regions import PromptRegion
from .rows import Row, rows_of


def run(chain: Any, executor: Any, model: Any, arguments: Arguments) -> Tensor:
    """One call of a diffusion model under a chain, with further passes for the regions that have their own at this noise level."""
    options = arguments.get("transformer_options", {})
    sigma = float(options["sigmas"].max()) if "sigmas" in options else float("inf")
    regions = [region for region in prompt_regions.active(chain.patches, sigma) if sigma > region.own_until]
    x: Tensor = arguments.get("x")
    latent, rows = rows_of(options, x.shape[0], (x.shape[-2], x.shape[-1])) if regions else ((0, 0), ())
    regions = [region for region in regions if any(prompt_regions.acts_on(region, row) for row in rows)]
    if not regions:
        return chain.once(executor, model, arguments)
    others = tuple(patch for patch in chain.patches if all(patch is not region for region in regions))
    # Of its own options: models write into them as they run.
    base = replace(chain, patches=others).once(executor, model, arguments.having(transformer_options={**options}))
    # Regions that share the pass with the prompt, and what reads the prompt's maps, have no part in another text's pass.
    beside = tuple(patch for patch in others if not isinstance(patch, PromptRegion) and not hasattr(patch, "readings"))
    weights = base_weights(regions, rows, latent, base)
    result = base * weights
    for region in regions:
        chunks = arguments.chunks(lambda row, region=region: prompt_regions.acts_on(region, rows[row]))
        own = replace(chain, patches=(*beside, region.everywhere)).once(executor, model, arguments.of_chunks(chunks))
        here = arguments.rows_of_chunks(chunks)
        counts = region.strength * inside(region, [rows[row] for row in here], latent, base)
        result[here] += counts * own
        weights[here] += counts
    return result / weights


def base_weights(regions: Sequence[PromptRegion], rows: Sequence[Row], latent: Size, like: Tensor) -> Tensor:
    """How much the prompt's own pass counts, [B, 1, (T,) h, w]: 0 in the cells of regions that replace it, else 1."""
    found = torch.ones_like(like[:, :1])
    for region in regions:
        here = [number for number, row in enumerate(rows) if prompt_regions.acts_on(region, row)]
        if region.replaces and here:
            found[here] *= 1 - inside(region, [rows[number] for number in here], latent, like)
    return found


def inside(region: PromptRegion, rows: Sequence[Row], latent: Size, like: Tensor) -> Tensor:
    """1 in a region's cells of the latent, else 0, for these rows: [rows, 1, (T,) h, w] on the device of `like` [B, C, (T,) h, w]."""
    frames = like.shape[2] if like.ndim == 5 else 1
    grid = (frames, like.shape[-2], like.shape[-1])
    cells = torch.stack([prompt_regions.place(region.mask, row, latent, grid)[1] for row in rows])
    return cells.unflatten(1, like.shape[2:])[:, None].to(like)
