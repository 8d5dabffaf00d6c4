"""The transformers that are known, a reader for each family: where in a call are the words, the cells, the references.

A reader reads lengths, sizes and names from the call itself. What does not add up it refuses in words (UnreadableError); it never guesses.
"""

from __future__ import annotations

import math
from typing import Any

from ..layers import Layer, is_unet
from ..layers import layers_of as layers_of_unet
from ..layers import levels_of as levels_of_unet
from .reader import Family, Scene, Seen, UnreadableError

__all__ = ["Family", "Scene", "Seen", "UnreadableError", "find", "known", "layers_of", "levels_of", "of"]


def known() -> tuple[Family, ...]:
    """All families, in the order in which they are tried."""
    from . import cosmos, hidream, lens, lumina, sd3, wan, words_first

    return (*words_first.FAMILIES, lumina.FAMILY, *cosmos.FAMILIES, sd3.FAMILY, wan.FAMILY, hidream.FAMILY, lens.FAMILY)


def find(model: Any) -> Family | None:
    """The family of a diffusion model, None if it is of no family that is known."""
    return next((family for family in known() if family.fits(model)), None)


def of(model: Any) -> Family:
    """The family of a diffusion model. Raises TypeError in words if it is unknown."""
    family = find(model)
    if family is None:
        names = ", ".join(family.name for family in known())
        raise TypeError(
            f"this model ({type(model).__name__}) is neither a UNet nor a transformer that MaskPrompt can read. It takes SD 1.5, SD 2.1 "
            f"and SDXL, and: {names}."
        )
    return family


def layers_of(model: Any) -> tuple[Layer, ...]:
    """Every attention layer of a UNet or a known transformer, in the order in which they run. Raises TypeError for any other model."""
    return layers_of_unet(model) if is_unet(model) else of(model).layers(model)


def levels_of(model: Any) -> dict[Layer, int]:
    """How often each layer's grid is the latent's halved, of a UNet or a known transformer. Raises TypeError for any other model."""
    if is_unet(model):
        return levels_of_unet(model)
    family = of(model)
    return dict.fromkeys(family.layers(model), round(math.log2(family.patch_of(model))))
