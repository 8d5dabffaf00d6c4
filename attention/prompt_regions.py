"""Prompt Region: a further text that acts in a mask's cells only, beside the prompt, in the same pass.

The text's words are joined to the prompt's when the model runs, and a rule (`visibility.TextsByRegion`) says who sees them. So the prompt's
CONDITIONING, its ControlNets, references and areas stay as they are, and no text runs in a pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from . import chain
from .chain import Row, Scope
from .families.reader import Words
from .grid import RegionMask, Size
from .layout import UNUSED, Grid, Lengths
from .moment import Moment
from .visibility import MOST_REGIONS, RegionOfText, TextsByRegion

BESIDE_PROMPT = Scope(half="positive")


@dataclass(frozen=True)
class PromptRegion:
    """One text of a CONDITIONING, [1 or B, T, width] and its options, in the white of a mask.

    `strength` 1 is a prompt like the other, 0 is off, up to 2 is more. `replaces` takes the prompt out of the cells. `apart` in 0..1 is the
    share of the layers, evenly spread, in which they and the cells of other regions do not see each other. It stands beside
    the prompt of its `scope.half`. For the share `own_pass` of the sampling, 0..1, it has a pass of its own (`region_passes`).
    """

    text: Tensor
    mask: RegionMask
    strength: float = 1.0
    replaces: bool = False
    apart: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)
    scope: Scope = BESIDE_PROMPT
    own_pass: float = 0.0
    kind: Literal["region"] = "region"
    _ready: dict[Any, Words] = field(default_factory=dict, compare=False, repr=False)

    def words(self, model: Any, family: Any, like: Words) -> Words:
        """The text as the model takes it, [1 or B, n, ...] like the prompt it is joined to. Raises ValueError for another encoder's."""
        place = (id(model), like[0].device, like[0].dtype)
        if place not in self._ready:
            words: Words = (self.text,) if family is None else family.words(model, self.text.to(like[0]), self.options)
            for given, own in zip(words, like, strict=True):
                if given.shape[2:] != own.shape[2:]:
                    raise ValueError(
                        f"Prompt Region: the region's text comes from another text encoder than the prompt ({_numbers(given)} numbers for "
                        f"each word where the prompt has {_numbers(own)}). Encode both with the CLIP that belongs to the model."
                    )
            self._ready[place] = tuple(given.to(own) for given, own in zip(words, like, strict=True))
        return self._ready[place]

    @cached_property
    def everywhere(self) -> PromptRegion:
        """The same text alone in the whole picture, for a pass of its own."""
        mask = RegionMask(torch.ones_like(self.mask.masks[:1]))
        return replace(self, mask=mask, strength=1.0, replaces=True, apart=0.0, own_pass=0.0)

    def release(self, *_: Any) -> None:
        """Drops what was made ready for a device, after each sampling."""
        self._ready.clear()

    def apart_on(self, number: int, layers: int) -> bool:
        """Whether its cells are kept apart on layer `number` of so many."""
        return int((number + 1) * self.apart + 1e-6) > int(number * self.apart + 1e-6) if layers else False


def _numbers(words: Tensor) -> int:
    """How many numbers there are for each word."""
    return math.prod(words.shape[2:])


def install(model: Any, *regions: PromptRegion) -> Any:
    """A clone of the MODEL with the regions at the end of its chain. Raises ValueError for too many."""
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    clone = chain.install(model, *regions)
    (whole,) = clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, chain.KEY)
    count = sum(isinstance(patch, PromptRegion) for patch in whole.patches)
    if count > MOST_REGIONS:
        raise ValueError(f"a picture can have {MOST_REGIONS} regions, this model has {count} with this one. Join some of them into one.")
    for region in regions:
        clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, chain.KEY, region.release)
    return clone


def active(patches: Sequence[Any], moment: Moment) -> tuple[PromptRegion, ...]:
    """The regions of a chain that act at a point of the sampling, in the graph's order."""
    regions = (patch for patch in patches if isinstance(patch, PromptRegion))
    return tuple(region for region in regions if region.scope.holds_at(moment) and region.strength != 0)


def acts_on(region: PromptRegion, row: Row) -> bool:
    """Whether a region acts on a row of the batch, by its half of CFG."""
    return region.scope.half == "both" or (min(row.half, 1) == 0) == (region.scope.half == "positive")


def further_words(regions: Sequence[PromptRegion], rows: Sequence[Row], model: Any, family: Any, prompt: Words) -> list[Words]:
    """The regions' words, [B, n, ...] for all rows of a batch, for each region."""
    found: list[Words] = []
    for region in regions:
        words = region.words(model, family, prompt)
        found.append(tuple(part[[row.image % len(part) for row in rows]] for part in words))
    return found


def lengths(regions: Sequence[PromptRegion], counts: Sequence[int], own: int, prompt: int, row: Row) -> Lengths:
    """How many words of which text a row has, in order (`layout.with_texts`): of the prompt's `prompt` the first `own` are the row's own.

    ComfyUI repeats a short prompt beside a longer one; the repeats are left out, so that they do not outweigh a region's words.
    """
    numbers = [number + 1 if acts_on(region, row) else UNUSED for number, region in enumerate(regions)]
    if all(number == UNUSED for number in numbers):
        own = prompt
    return ((0, own), (UNUSED, prompt - own), *zip(numbers, counts, strict=True))


def rule(regions: Sequence[PromptRegion], row: Row, latent: Size, grid: Grid, number: int, layers: int) -> TextsByRegion:
    """Who sees whom in a row, in layer `number` of `layers`. Regions that do not act on the row have no cells there."""
    here: list[RegionOfText] = []
    for region in regions:
        key, cells = (id(region), "none"), torch.zeros(grid[0] * grid[1] * grid[2], dtype=torch.bool)
        if acts_on(region, row):
            key, cells = place(region.mask, row, latent, grid)
        here.append(RegionOfText(cells, key, region.strength, region.replaces, region.apart_on(number, layers)))
    return TextsByRegion(tuple(here))


def place(mask: RegionMask, row: Row, latent: Size, grid: Grid) -> tuple[Hashable, Tensor]:
    """A mask's cells for a row, bool [cells] on the CPU, and a key for them. Of a video each frame may have a mask of its own."""
    if grid[0] == 1 and row.frames is None:
        index = mask.index(row.image)
        cells = mask.cells(index, latent, row.window, grid[1:], torch.device("cpu")).inside
        return (id(mask), index, row.window, latent, grid), cells
    shown, total = row.frames or (tuple(range(grid[0])), grid[0])
    if len(shown) != grid[0]:
        raise RuntimeError(
            f"the model sees {grid[0]} frames where a context window names {len(shown)}, so a mask cannot be placed in time. Bypass that "
            "node, or MaskPrompt's."
        )
    frames = mask.over_frames(total)
    found = [frames.cells(frame % len(frames.masks), latent, row.window, grid[1:], torch.device("cpu")).inside for frame in shown]
    return (id(mask), row.frames, row.window, latent, grid), torch.cat(found)
