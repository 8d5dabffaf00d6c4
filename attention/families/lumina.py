"""Lumina 2 and Z-Image: the words are refined, the picture is refined, then both meet, the picture last.

Z-Image fills words and pictures up to multiples of 32. References come with captions of their own, before the prompt and the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..arguments import Arguments
from ..layers import Layer
from ..layout import Counted
from . import reader
from .reader import OneStream, Scene, Seen


@dataclass(frozen=True)
class Lumina(OneStream):
    name: str = "Z-Image and Lumina 2"
    outer: bool = False
    counts_words: bool = True
    filled_in_front: bool = False
    unpads: ClassVar[bool] = True

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, "comfy.ldm.lumina.model", "NextDiT")

    def layers(self, model: Any) -> tuple[Layer, ...]:
        return (*reader.numbered("refiner", len(model.noise_refiner)), *reader.numbered("double", len(model.layers)))

    def patch_of(self, model: Any) -> int:
        return int(model.patch_size)

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        """Words with their filling; before them the references' captions; after the cells their filling.

        `before` has the captions, then the pictures with their filling.
        """
        context, x = arguments.get("context"), arguments.get("x")
        grid = reader.grid_of(x, model.patch_size)
        captions: list[Counted] = []
        pictures: list[Counted] = []
        references = arguments.get("ref_latents", ())
        given = arguments.get("ref_contexts", ()) if references else ()
        if references and arguments.get("siglip_feats"):
            raise reader.UnreadableError(
                "MaskPrompt cannot place regions beside Z-Image's CLIP Vision references yet. Give the references without CLIP Vision."
            )
        for number, reference in enumerate(references):
            caption = given[number].shape[1] if number < len(given) and given[number] is not None else model.pad_tokens_multiple
            cells = reader.cells_in(reader.grid_of(reference, model.patch_size))
            captions.append(("caption", _filled(caption, model), number))
            pictures.append(("reference", cells, number))
            pictures.append(("caption", _filled(cells, model) - cells, number))
        after: tuple[Counted, ...] = tuple(("other", _filled(more.shape[1], model)) for more in given[len(references) :])
        return Scene(context.shape[1], grid, (*captions, *pictures), after)

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        layers, cells = self.layers(model), reader.cells_in(scene.grid)
        references = len(scene.before) // 3
        text: tuple[Counted, ...] = (*scene.before[:references], ("words", _filled(scene.words, model)), *scene.after)
        picture: tuple[Counted, ...] = (*scene.before[references:], ("cells", cells), ("other", _filled(cells, model) - cells))
        words = len(model.context_refiner)
        unseen, further = _unseen(model, references)
        index = options.get("block_index")
        if queries != keys:
            reader.refuse("a layer", queries, keys, "as many keys as queries")
        if index is not None:
            layer: Layer = ("double", int(index), 0)
            return Seen(
                layer, layers.index(layer), len(layers), reader.layout_of(scene.grid, keys, f"layer {index}", *text, *unseen, *picture)
            )
        if count < words:
            return Seen(("text", count, 0), 0, len(layers), reader.layout_of(scene.grid, keys, "the words", *text))
        if count < words + further:
            return None
        number = count - words - further
        layer = ("refiner", number, 0)
        return Seen(layer, number, len(layers), reader.layout_of(scene.grid, keys, "the picture's refiner", *picture))


def _unseen(model: Any, references: int) -> tuple[tuple[Counted, ...], int]:
    """The tokens that stand for pictures which no CLIP Vision saw, and how many layers they have of their own.

    A model for references (Omni) has as many for each of them, and for the painted picture, between the words and the pictures.
    """
    if not references or model.siglip_embedder is None or model.siglip_pad_token is None:
        return (), 0
    count = model.pad_tokens_multiple * (references + 1)
    return (("other", count),), len(model.siglip_refiner or ())


def _filled(count: int, model: Any) -> int:
    """A number of tokens with their filling."""
    multiple = model.pad_tokens_multiple or 1
    return -(-count // multiple) * multiple


FAMILY = Lumina()
