"""SD 3 and 3.5: words, then picture; some blocks of 3.5-medium let the picture see itself once more.

Its model asks no DIFFUSION_MODEL wrappers, so the chain stands around `apply_model`. It tells no block, and nodes leave some out (Skip
Layer Guidance), so each block that runs is made to tell which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..arguments import Arguments
from ..layers import Layer
from ..layout import Counted
from . import reader
from .reader import OneStream, Scene, Seen

TEXT = "c_crossattn"
BLOCK = "maskprompt_block"
"""The option by which a block tells its number."""
SLOT = "double_block"
"""The name under which ComfyUI looks for a block's replacement."""


@dataclass(frozen=True)
class SD3(OneStream):
    name: str = "SD 3 and 3.5"
    outer: bool = True
    counts_words: bool = False
    filled_in_front: bool = False
    argument: ClassVar[str] = TEXT

    def fits(self, model: Any) -> bool:
        return reader.is_class(model, "comfy.ldm.modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper")

    def layers(self, model: Any) -> tuple[Layer, ...]:
        return reader.numbered("joint", len(model.joint_blocks))

    def patch_of(self, model: Any) -> int:
        return int(model.patch_size)

    def scene(self, model: Any, arguments: Arguments) -> Scene:
        registers = model.register_length
        grid = reader.grid_of(arguments.get("x"), int(model.patch_size))
        return Scene(arguments.get(TEXT).shape[1], grid, (("other", registers),) if registers else ())

    def announced(self, model: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
        replacements = options.get("patches_replace", {})
        blocks = dict(replacements.get("dit", {}))
        for number in range(len(model.joint_blocks)):
            blocks[SLOT, number] = Told(number, blocks.get((SLOT, number)))
        return {**options, "patches_replace": {**replacements, "dit": blocks}}

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        number = options.get(BLOCK)
        cells = reader.cells_in(scene.grid)
        if number is None or queries != keys:
            reader.refuse("a layer", queries, keys, f"those of one of {len(model.joint_blocks)} blocks that tell their number")
        words: tuple[Counted, ...] = () if queries == cells else (*scene.before, ("words", scene.words))
        layout = reader.layout_of(scene.grid, keys, f"layer joint {number}", *words, ("cells", cells))
        return Seen(("joint", number, 0), number, len(model.joint_blocks), layout)


@dataclass(frozen=True)
class Told:
    """What ComfyUI calls in place of a block: the block, or another node's replacement of it, told its number."""

    number: int
    beneath: Callable[..., Any] | None

    def __call__(self, given: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
        def block(given: Mapping[str, Any]) -> Any:
            options = {**given["transformer_options"], BLOCK: self.number}
            return more["original_block"]({**given, "transformer_options": options})

        return block(given) if self.beneath is None else self.beneath(given, {**more, "original_block": block})


FAMILY = SD3()
