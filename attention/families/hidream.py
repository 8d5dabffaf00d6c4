"""HiDream-I1 and E1: the picture, then the words of T5, then those of Llama twice: its last layer, and a layer of the block's own.

E1's reference stands to the right of the picture, so that each row of the picture is followed by a row of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import Arguments
from ..layers import Layer
from ..layout import Counted
from . import reader
from .reader import Scene, Seen, Words

LLAMA = "conditioning_llama3"
"""The key of a conditioning for Llama's words, [B, layers, T, width]."""
LLAMA_ARGUMENT = "encoder_hidden_states_llama3"


@dataclass(frozen=True)
class HiDream:
    name: str = "HiDream-I1 and E1"
    outer: bool = False
    counts_words: bool = False
    filled_in_front: bool = False

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, "comfy.ldm.hidream.model", "HiDreamImageTransformer2DModel")

    def layers(self, model: Any) -> tuple[Layer, ...]:
        double = reader.numbered("double", len(model.double_stream_blocks))
        return (*double, *reader.numbered("single", len(model.single_stream_blocks)))

    def patch_of(self, model: Any) -> int:
        return int(model.patch_size)

    def words(self, model: Any, text: Tensor, options: Mapping[str, Any]) -> Words:
        """T5's words [B, T, width], and Llama's [B, T, layers, width]. Raises ValueError for a text that has no Llama's."""
        llama = options.get(LLAMA)
        if llama is None:
            raise ValueError(
                "Prompt Region: the region's text comes from another text encoder than the prompt (it has no words of Llama). Encode both "
                "with the CLIP that belongs to HiDream."
            )
        return text, llama.to(text).movedim(1, 2)

    def text(self, arguments: Arguments) -> Words:
        llama = arguments.get(LLAMA_ARGUMENT)
        if llama is None:
            raise ValueError("the prompt comes from another text encoder than HiDream's (it has no words of Llama). Wire HiDream's CLIP.")
        return arguments.get("context"), llama.movedim(1, 2)

    def joined(self, model: Any, arguments: Arguments, words: Words, counts: Sequence[int]) -> Arguments:
        """Words have no places in this model, so the texts simply follow one another."""
        (_, llama) = self.text(arguments)
        longer = torch.cat([llama, words[1].to(llama)], dim=1).movedim(2, 1)
        return reader.with_words(arguments, words[0]).having(**{LLAMA_ARGUMENT: longer})

    def alone(self, arguments: Arguments, words: Words) -> Arguments:
        return reader.with_text(arguments, words[0]).having(**{LLAMA_ARGUMENT: words[1].movedim(2, 1)})

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        """`before` are the picture's rows, each with what of the reference stands beside it; `after` are Llama's words."""
        text, llama = self.text(arguments)
        x: Tensor = arguments.get("x")
        grid = reader.grid_of(x, self.patch_of(model))
        rows: tuple[Counted, ...] = (("cells", reader.cells_in(grid)),)
        beside = arguments.get("image_cond")
        if beside is not None:
            width = -(-(x.shape[-1] + beside.shape[-1]) // self.patch_of(model))
            row: tuple[Counted, Counted] = (("cells", grid[2]), ("other", width - grid[2]))
            rows = row * grid[1]
        words: Counted = ("words", llama.shape[1], 0, 1)
        return Scene(text.shape[1], grid, rows, (words, words))

    def announced(self, model: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return options

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        """Its blocks do not tell which they are, so they are counted."""
        layers = self.layers(model)
        if count >= len(layers) or queries != keys:
            reader.refuse("a layer", queries, keys, f"those of {len(layers)} calls in all")
        layer = layers[count]
        what = f"layer {layer[0]} {layer[1]}"
        layout = reader.layout_of(scene.grid, keys, what, *scene.before, ("words", scene.words), *scene.after)
        return Seen(layer, count, len(layers), layout)


FAMILY = HiDream()
