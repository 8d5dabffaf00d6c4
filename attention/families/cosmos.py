"""Cosmos Predict 2 and Anima: in each block the picture sees itself, then the words, as in a UNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import Arguments
from ..layers import Layer
from ..layout import Layout, spans_of
from . import reader
from .reader import OneStream, Scene, Seen, Words


@dataclass(frozen=True)
class Cosmos(OneStream):
    name: str
    module: str
    classes: tuple[str, ...]
    outer: bool = False
    counts_words: bool = False
    filled_in_front: bool = False

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, self.module, *self.classes)

    def layers(self, model: Any) -> tuple[Layer, ...]:
        return reader.numbered("block", len(model.blocks))

    def patch_of(self, model: Any) -> int:
        return int(model.patch_spatial)

    def words(self, model: Any, text: Tensor, options: Mapping[str, Any]) -> Words:
        """Anima's texts go through its own adapter first, with the ids that its tokenizer left in the CONDITIONING."""
        ids = options.get("t5xxl_ids")
        if ids is None or not hasattr(model, "preprocess_text_embeds"):
            return (text,)
        weights = options.get("t5xxl_weights")
        if weights is not None:
            weights = weights.to(text)[None, :, None]
        with torch.no_grad():
            return (model.preprocess_text_embeds(text, ids[None].to(text.device), t5xxl_weights=weights),)

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        patch = (model.patch_temporal, model.patch_spatial, model.patch_spatial)
        return Scene(arguments.get("context").shape[1], reader.grid_of(arguments.get("x"), patch))

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        return self_then_cross(self.layers(model), "block", scene, options, count % 2 == 1, queries, keys)


def self_then_cross(
    layers: tuple[Layer, ...], name: str, scene: Scene, options: Mapping[str, Any], cross: bool, queries: int, keys: int
) -> Seen:
    """A call of a block whose picture, and what stands around its cells, sees itself, or with `cross` the words.

    Raises UnreadableError if the lengths are others.
    """
    picture = spans_of(*scene.before, ("cells", reader.cells_in(scene.grid)), *scene.after)
    count = picture[-1].stop
    layer: Layer = (name, int(options.get("block_index", -1)), 0)
    if layer not in layers or (queries, keys) != (count, scene.words if cross else count):
        what = ", ".join(f"{span.count} of {span.kind}" for span in (*picture, *spans_of(("words", scene.words if cross else 0))))
        reader.refuse(f"layer {layer[0]} {layer[1]}", queries, keys, what)
    layout = Layout(picture, spans_of(("words", scene.words)) if cross else picture, scene.grid)
    return Seen(layer, layers.index(layer), len(layers), layout)


FAMILIES = (
    Cosmos("Anima", "comfy.ldm.anima.model", ("Anima",)),
    Cosmos("Cosmos Predict 2", "comfy.ldm.cosmos.predict2", ("MiniTrainDIT",)),
)
