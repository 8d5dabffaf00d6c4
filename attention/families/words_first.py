"""Families with the words before the picture, and references behind it: Flux.1 and 2, Chroma, Qwen-Image, Krea 2.

All of them tell their block in the options, and how many tokens each reference has. Under core's Flux KV Cache the references run in the
first step alone; from then on their keys and values of that step are still there, and they ask nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..arguments import Arguments
from ..layers import Layer
from ..layout import Counted
from . import reader
from .reader import OneStream, Scene, Seen, Words

FILLED = 512
"""How many words Flux.2 is given at least."""
OF_FLUX_2 = [3]
"""The axes of the words' places by which Flux.2 is told from Flux.1, which has none, and from Ovis and LongCat."""


@dataclass(frozen=True)
class WordsFirst(OneStream):
    """`blocks` are the names of its kinds of blocks (`block_type`) and of their lists.

    `restarts`: the model counts its words, so that joined texts are given the places that they would have alone.
    """

    name: str
    module: str
    classes: tuple[str, ...]
    blocks: tuple[tuple[str, str], ...]
    patch: str = "patch_size"
    restarts: bool = False
    outer: bool = False
    counts_words: bool = False
    filled_in_front: bool = False
    unpads: ClassVar[bool] = True

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, self.module, *self.classes)

    def layers(self, model: Any) -> tuple[Layer, ...]:
        return tuple(layer for kind, name in self.blocks for layer in reader.numbered(kind, len(getattr(model, name))))

    def patch_of(self, model: Any) -> int:
        return int(getattr(model, self.patch))

    def joined(self, model: Any, arguments: Arguments, words: Words, counts: Sequence[int]) -> Arguments:
        prompt = arguments.get("context").shape[1]
        joined = super().joined(model, arguments, words, counts)
        if not self.restarts or not _has_places(model):
            return joined
        return reader.with_patch(joined, "post_input", reader.texts_restarting(prompt, counts))

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        return Scene(arguments.get("context").shape[1], reader.grid_of(arguments.get("x"), getattr(model, self.patch)))

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        layers = self.layers(model)
        layer: Layer = (str(options.get("block_type")), int(options.get("block_index", -1)), 0)
        lengths: Sequence[int] = options.get("reference_image_num_tokens", ())
        if layer not in layers or queries not in (keys, keys - sum(lengths)):
            reader.refuse("a layer", queries, keys, "those of one of its blocks")
        references: list[Counted] = [("reference", length, number) for number, length in enumerate(lengths)]
        cells = reader.cells_in(scene.grid)
        what = f"layer {layer[0]} {layer[1]}"
        layout = reader.layout_of(scene.grid, keys, what, ("words", scene.words), ("cells", cells), *references)
        if queries < keys:
            layout = replace(layout, queries=tuple(span for span in layout.queries if span.kind != "reference"))
        return Seen(layer, layers.index(layer), len(layers), layout)


@dataclass(frozen=True)
class Flux(WordsFirst):
    """Flux.1 counts no words and fills none up. Flux.2 sees 512 words or more, their filling among them, whatever a text's attention mask
    says: klein's texts come with it, dev's, which are shorter, are filled up in front by the call.
    """

    unpads: ClassVar[bool] = False

    def words(self, model: Any, text: Tensor, options: Mapping[str, Any]) -> Words:
        missing = FILLED - text.shape[1] if list(model.params.txt_ids_dims) == OF_FLUX_2 else 0
        return (F.pad(text, (0, 0, missing, 0)) if missing > 0 else text,)


@dataclass(frozen=True)
class Krea(WordsFirst):
    """Krea 2 first fuses the layers of its text encoder, word by word, then lets the words see each other, then joins the picture."""

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        apart, among = len(model.txtfusion.layerwise_blocks), len(model.txtfusion.refiner_blocks)
        if "block_index" in options:
            return super().seen(model, scene, options, count, queries, keys)
        if count < apart and queries == keys == model.txtlayers:
            return None
        if count >= apart + among or queries != keys:
            reader.refuse("the words", queries, keys, f"{scene.words} of text")
        layout = reader.layout_of(scene.grid, keys, "the words", ("words", scene.words))
        return Seen(("text", count - apart, 0), 0, len(self.layers(model)), layout)


def _has_places(model: Any) -> bool:
    """Whether words have places at all: Flux.1's have none, and a patch in its way would hold the picture's first tokens to the end."""
    axes = getattr(getattr(model, "params", None), "txt_ids_dims", None)
    return axes is None or len(axes) > 0


FLUX = Flux(
    "Flux.1, Fill, Kontext and Flux.2", "comfy.ldm.flux.model", ("Flux",), (("double", "double_blocks"), ("single", "single_blocks")),
    restarts=True, filled_in_front=True,
)  # fmt: skip

CHROMA = WordsFirst("Chroma", "comfy.ldm.chroma.model", ("Chroma",), (("double", "double_blocks"), ("single", "single_blocks")))

QWEN_IMAGE = WordsFirst(
    "Qwen-Image and Qwen-Image-Edit", "comfy.ldm.qwen_image.model", ("QwenImageTransformer2DModel",), (("double", "transformer_blocks"),),
    restarts=True,
)  # fmt: skip

KREA = Krea("Krea 2", "comfy.ldm.krea2.model", ("SingleStreamDiT",), (("single", "blocks"),), patch="patch")

FAMILIES = (FLUX, CHROMA, QWEN_IMAGE, KREA)
