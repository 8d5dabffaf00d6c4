"""Lens: the picture, then the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..arguments import Arguments
from ..layers import Layer
from . import reader
from .reader import OneStream, Scene, Seen


@dataclass(frozen=True)
class Lens(OneStream):
    name: str = "Lens"
    outer: bool = False
    counts_words: bool = False
    filled_in_front: bool = False
    unpads: ClassVar[bool] = True

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, "comfy.ldm.lens.model", "LensTransformer2DModel")

    def layers(self, model: Any) -> tuple[Layer, ...]:
        return reader.numbered("double", len(model.transformer_blocks))

    def patch_of(self, model: Any) -> int:
        return 1

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        """Its latents are of patches already."""
        return Scene(arguments.get("context").shape[1], reader.grid_of(arguments.get("x"), 1))

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        layers = self.layers(model)
        layer: Layer = (str(options.get("block_type")), int(options.get("block_index", -1)), 0)
        if queries != keys or layer not in layers:
            reader.refuse("a layer", queries, keys, "those of one of its blocks")
        cells = reader.cells_in(scene.grid)
        layout = reader.layout_of(scene.grid, keys, f"layer {layer[1]}", ("cells", cells), ("words", scene.words))
        return Seen(layer, layers.index(layer), len(layers), layout)


FAMILY = Lens()
