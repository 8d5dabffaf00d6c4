"""Flux.1, Fill, Kontext, Flux.2 and Chroma: words, picture, references; double blocks, then single ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..arguments import Arguments
from ..layers import Layer
from . import reader
from .reader import Scene, Seen


@dataclass(frozen=True)
class Flux:
    name: str
    module: str
    classes: tuple[str, ...]

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, self.module, *self.classes)

    def layers(self, model: Any) -> tuple[Layer, ...]:
        return (*reader.numbered("double", len(model.double_blocks)), *reader.numbered("single", len(model.single_blocks)))

    def words(self, model: Any, text: Tensor, options: Mapping[str, Any]) -> Tensor:
        return reader.unpadded(text, options)

    def joined(self, model: Any, arguments: Arguments, words: Tensor, counts: Sequence[int]) -> Arguments:
        """Flux.2 counts its words, and its prompts stand at the end of 512 places; so do the texts that are joined."""
        prompt = arguments.get("context").shape[1]
        joined = reader.with_words(arguments, words)
        if not getattr(getattr(model, "params", None), "txt_ids_dims", ()):
            return joined
        restarting = reader.texts_restarting((prompt, *counts), lambda whole, text: max(0, whole - text))
        return reader.with_patch(joined, "post_input", restarting)

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        return Scene(arguments.get("context").shape[1], reader.grid_of(arguments.get("x"), model.patch_size))

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        kind, index = options.get("block_type"), options.get("block_index")
        if kind not in ("double", "single") or index is None or queries != keys:
            reader.refuse("a layer", queries, keys, "double and single blocks")
        layers = self.layers(model)
        layer: Layer = (str(kind), int(index), 0)
        references = options.get("reference_image_num_tokens", ())
        layout = reader.joint_layout(scene, references, keys, f"layer {kind} {index}")
        return Seen(layer, layers.index(layer), len(layers), layout)


FLUX = Flux("Flux.1, Fill, Kontext and Flux.2", "comfy.ldm.flux.model", ("Flux",))
CHROMA = Flux("Chroma", "comfy.ldm.chroma.model", ("Chroma",))
