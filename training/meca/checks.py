"""What MECA cannot be trained on, said before anything is encoded."""

from __future__ import annotations

from typing import Any

from ...models.clip_vision import patch_input
from ..data.captions import Pictures
from ..engine.checks import check_parts, check_size, check_unet
from .options import Options


def check(model: Any, clip: Any, vae: Any, clip_vision: Any, options: Options, pictures: Pictures) -> None:
    """Refuses what cannot be trained: ValueError, in the artist's words."""
    check_unet(model)
    check_parts(model, clip, vae)
    if clip_vision is None:
        raise ValueError(
            "no CLIP vision model was given: wire Load CLIP Vision with the model that will encode your images later, such as ViT-H."
        )
    patch_input.describe(clip_vision)
    check_size(options.size, pictures.sizes, "Train Image Prompt Adapter")
