"""Where a patch works, as nodes ask for it: in which layers, in which part of the sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention import chain, layers
from ..images.masks import to_mask

log = logging.getLogger(__name__)

LIST = "list"
"""The choice of layers that are named in `layer_list`."""


def layer_list(default: str) -> io.String.Input:
    """The input that names layers."""
    return io.String.Input(
        "layer_list", default=default, optional=True, advanced=True,
        tooltip='Where in the model it acts, when layers is "list": block names, comma-separated, such as input 1, middle 0, output 3.',
    )  # fmt: skip


def part_of_sampling(what: str) -> list[io.Input]:
    """The inputs for when `what` acts."""
    return [
        io.Float.Input(
            "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
            tooltip=f"When the {what} begins to act: at 0 from the first step, while the layout forms; later, on what is painted after "
            "that part of the sampling.",
        ),
        io.Float.Input(
            "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
            tooltip=f"When the {what} stops acting: at 1 with the last step; earlier, and what is painted after that part of the sampling "
            "is free of it.",
        ),
    ]  # fmt: skip


def region_masks(mask: Tensor, empty: str, some_empty: str) -> Tensor:
    """The masks of a region on the CPU, [M, H, W] in 0..1.

    ValueError with the words `empty` if there is nothing in them; where some are empty a warning, `some_empty` with how many of how many.
    """
    masks = to_mask(mask).cpu()
    dark = (masks < 0.5).flatten(1).all(1)
    if bool(dark.all()):
        raise ValueError(empty)
    if bool(dark.any()):
        log.warning(some_empty, int(dark.sum()), len(masks))
    return masks


def check_part(start: float, end: float, what: str) -> None:
    """Raises ValueError if that part of the sampling ends before it starts."""
    if start > end:
        raise ValueError(f"start_percent ({start:g}) is after end_percent ({end:g}), so the {what} would never act.")


def there(find: Callable[[str], Any], *names: str | None) -> bool | str:
    """For `validate_inputs`: True where `find` finds every file, else in words why not. A name that comes through a link is still None."""
    try:
        for name in names:
            if name is not None:
                find(name)
    except ValueError as error:
        return str(error)
    return True


def check_model(model: Any, patches: list[Any]) -> None:
    """ValueError in the artist's words if the patches cannot act on a MODEL."""
    try:
        chain.check_model(model, patches)
    except TypeError as error:
        raise ValueError(str(error)) from None


def layers_of(model: Any) -> tuple[layers.Layer, ...]:
    """The attention layers of a UNet MODEL; ValueError in the artist's words if it has none."""
    try:
        return layers.layers_of(model.get_model_object("diffusion_model"))
    except TypeError as error:
        raise ValueError(str(error)) from None


def known_layers(model: Any) -> tuple[layers.Layer, ...]:
    """The attention layers of a MODEL, a UNet or a known transformer; ValueError in the artist's words for any other."""
    from ..attention import families

    try:
        return families.layers_of(model.get_model_object("diffusion_model"))
    except TypeError as error:
        raise ValueError(str(error)) from None


def is_unet(model: Any) -> bool:
    """Whether a MODEL is a UNet."""
    return layers.is_unet(model.get_model_object("diffusion_model"))


def latent_pixels(model: Any) -> int:
    """How many pixels of a picture are one of a MODEL's latents: 8, or 16 for FLUX.2."""
    latents = getattr(getattr(model, "model", None), "latent_format", None)
    return int(getattr(latents, "spacial_downscale_ratio", 8) or 8)
