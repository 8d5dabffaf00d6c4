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

from . import families, prompt_regions
from .arguments import Arguments
from .grid import Size
from .prompt_regions import PromptRegion
from .rows import Row, rows_of

ABOUT_SIZE = (0, 1280, 1536)
"""How many numbers about the picture's size stand behind a text's pooled words in a model's `y`: none, SDXL refiner's, SDXL's."""


def run(chain: Any, executor: Any, model: Any, arguments: Arguments) -> Tensor:
    """One call of a diffusion model under a chain, with further passes for the regions that have their own at this point of the sampling.

    What the passes predict is averaged cell by cell: a region's counts by its strength, the prompt's 1, or in a region that replaces it
    what that leaves of 1.
    """
    if not any(isinstance(patch, PromptRegion) and patch.own_pass > 0 for patch in chain.patches):
        return chain.once(executor, model, arguments)
    options = arguments.get("transformer_options", {})
    moment = chain.moment(options)
    x: Tensor = arguments.get("x")
    latent, rows = rows_of(options, x.shape[0], (x.shape[-2], x.shape[-1]))
    regions: list[tuple[PromptRegion, list[int], Arguments]] = []
    for region in prompt_regions.active(chain.patches, moment):
        chunks = arguments.chunks(lambda row, region=region: prompt_regions.acts_on(region, rows[row]))
        if moment.before(region.own_pass) and chunks:
            # Before any pass: models write into their options and take a ControlNet's parts out of its lists.
            here = arguments.rows_of_chunks(chunks)
            regions.append((region, here, with_pooled(region, arguments.of_chunks(chunks), [rows[row] for row in here])))
    if not regions:
        return chain.once(executor, model, arguments)
    own = [region for region, _, _ in regions]
    others = tuple(patch for patch in chain.patches if all(patch is not region for region in own))
    base = replace(chain, patches=others).once(executor, model, arguments)
    # Regions that share the pass with the prompt, and what reads the prompt's maps, have no part in another text's pass.
    beside = tuple(patch for patch in others if not isinstance(patch, PromptRegion) and not hasattr(patch, "readings"))
    weights = torch.ones_like(base[:, :1])
    counts = [region.strength * inside(region, [rows[row] for row in here], latent, base) for region, here, _ in regions]
    for (region, here, _), count in zip(regions, counts, strict=True):
        if region.replaces:
            weights[here] *= 1 - count.clamp(max=1)
    result = base * weights
    for (region, here, given), count in zip(regions, counts, strict=True):
        result[here] += count * alone(replace(chain, patches=beside), executor, model, given, region, [rows[row] for row in here])
        weights[here] += count
    return result / weights


def alone(chain: Any, executor: Any, model: Any, given: Arguments, region: PromptRegion, rows: Sequence[Row]) -> Tensor:
    """One pass of these rows that reads the region's text in place of the prompt; in a UNet behind the prompt, which is hidden."""
    family = families.find(model)
    if family is None:
        return replace(chain, patches=(*chain.patches, region.everywhere)).once(executor, model, given)
    (words,) = prompt_regions.further_words([region], rows, model, family, family.text(given))
    return chain.once(executor, model, family.alone(given, words))


def with_pooled(region: PromptRegion, given: Arguments, rows: Sequence[Row]) -> Arguments:
    """The call with the region's own pooled words, [1 or B, width], where `y` begins with the prompt's; other calls as they are."""
    y = given.get("y")
    pooled = region.options.get("pooled_output")
    if not isinstance(y, Tensor) or not isinstance(pooled, Tensor) or y.shape[-1] - pooled.shape[-1] not in ABOUT_SIZE:
        return given
    own = y.clone()
    own[:, : pooled.shape[-1]] = pooled[[row.image % len(pooled) for row in rows]].to(y)
    return given.having(y=own)


def inside(region: PromptRegion, rows: Sequence[Row], latent: Size, like: Tensor) -> Tensor:
    """1 in a region's cells of the latent, else 0, for these rows: [rows, 1, (T,) h, w] on the device of `like` [B, C, (T,) h, w]."""
    frames = like.shape[2] if like.ndim == 5 else 1
    grid = (frames, like.shape[-2], like.shape[-1])
    cells = torch.stack([prompt_regions.place(region.mask, row, latent, grid)[1] for row in rows])
    return cells.unflatten(1, like.shape[2:])[:, None].to(like)
