"""SD 3 and 3.5: words, then picture; some blocks of 3.5-medium let the picture see itself once more.

Its model asks no DIFFUSION_MODEL wrappers and tells no block, so the chain stands around `apply_model`, and blocks are counted.
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

TEXT = "c_crossattn"


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

    def seen(self, model: Any, scene: Scene, options: Mapping[str, Any], count: int, queries: int, keys: int) -> Seen | None:
        calls = [(index, whole) for index, block in enumerate(model.joint_blocks) for whole in _calls(block)]
        if count >= len(calls) or queries != keys:
            reader.refuse("a layer", queries, keys, f"{len(calls)} calls in all")
        index, joint = calls[count]
        words: tuple[Counted, ...] = (*scene.before, ("words", scene.words)) if joint else ()
        cells = reader.cells_in(scene.grid)
        layout = reader.layout_of(scene.grid, keys, f"layer joint {index}", *words, ("cells", cells))
        return Seen(("joint", index, 0), index, len(model.joint_blocks), layout)


def _calls(block: Any) -> tuple[bool, ...]:
    """A block's calls of attention: with the words, and in some blocks a second one without."""
    return (True, False) if block.x_block.x_block_self_attn else (True,)


FAMILY = SD3()
