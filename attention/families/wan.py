"""Wan 2.1 and 2.2: in each block the video sees itself, then (image to video) a picture's CLIP tokens, then the words.

Reference pictures are further tokens of the video, which see what it sees: one before the cells where the model has a convolution for it
(Fun Control), whole frames (Phantom) and videos (in-context references) behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arguments import Arguments
from ..layers import Layer
from ..layout import Counted
from . import reader
from .cosmos import self_then_cross
from .reader import OneStream, Scene, Seen


@dataclass(frozen=True)
class Wan(OneStream):
    name: str = "Wan 2.1 and 2.2"
    outer: bool = False
    counts_words: bool = False
    filled_in_front: bool = False

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, "comfy.ldm.wan.model", "WanModel")

    def layers(self, model: Any) -> tuple[Layer, ...]:
        return reader.numbered("block", len(model.blocks))

    def patch_of(self, model: Any) -> int:
        return int(model.patch_size[1])

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        clip, reference, frames = (arguments.get(name) for name in ("clip_fea", "reference_latent", "time_dim_concat"))
        patch = tuple(model.patch_size)
        before: tuple[Counted, ...] = ()
        if reference is not None and getattr(model, "ref_conv", None) is not None:
            before = (("other", (reference.shape[-2] // patch[1]) * (reference.shape[-1] // patch[2])),)
        behind = [*(() if frames is None else (frames,)), *(arguments.get("context_latents") or ())]
        after: tuple[Counted, ...] = tuple(("other", reader.cells_in(reader.grid_of(latent, patch))) for latent in behind)
        grid = reader.grid_of(arguments.get("x"), patch)
        return Scene(arguments.get("context").shape[1], grid, before, after, 0 if clip is None else clip.shape[-2])

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        """Without a CLIP picture, a model that takes one lets the words pass where it would be."""
        with_picture = hasattr(model.blocks[0].cross_attn, "k_img")
        step = count % (3 if with_picture else 2)
        if with_picture and step == 1 and scene.aside:
            return None
        return self_then_cross(self.layers(model), "block", scene, options, step > 0, queries, keys)


FAMILY = Wan()
