"""Wan 2.1 and 2.2: in each block the video sees itself, then (image to video) a picture's CLIP tokens, then the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arguments import Arguments
from ..layers import Layer
from ..layout import SpanKind
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
        clip = arguments.get("clip_fea")
        before: tuple[tuple[SpanKind, int], ...] = () if clip is None else (("other", clip.shape[-2]),)
        return Scene(arguments.get("context").shape[1], reader.grid_of(arguments.get("x"), tuple(model.patch_size)), before)

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        """Without a CLIP picture, a model that takes one lets the words pass where it would be."""
        with_picture = hasattr(model.blocks[0].cross_attn, "k_img")
        step = count % (3 if with_picture else 2)
        if with_picture and step == 1 and scene.before:
            return None
        return self_then_cross(self.layers(model), "block", scene, options, step > 0, queries, keys)


FAMILY = Wan()
