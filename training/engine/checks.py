"""What is checked before a training encodes or trains anything; every error is a ValueError in the artist's words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ...attention import ip_adapter_layers, layers
from ...conditioning import handles
from .learner import Learner

log = logging.getLogger(__name__)

SMALLEST_CROP = 64
ENLARGED = 2
"""A picture is enlarged to the crop's size by at most this much: what is learned is as blurred as the picture."""


def check_unet(model: Any) -> None:
    """ValueError unless MODEL is a UNet that takes latents (4 input channels), or an inpainting one (9)."""
    _check_precision(model)
    channels, found = _channels(model)
    if channels not in (4, 9):
        raise ValueError(
            f"a UNet model is needed, whose input has 4 channels, or 9 for inpainting; this one {found}. Load an SD 1.5, SD 2.1 or SDXL "
            "checkpoint."
        )


def check_inpainting(model: Any) -> None:
    """ValueError unless MODEL is an inpainting UNet (9 input channels)."""
    _check_precision(model)
    channels, found = _channels(model)
    if channels != 9:
        raise ValueError(
            f"Train a Subject needs an inpainting checkpoint, whose UNet takes 9 channels; this one {found}. Load one such as "
            "sd-v1-5-inpainting.safetensors, or SDXL's inpainting UNet."
        )


def check_parts(model: Any, clip: Any, vae: Any) -> None:
    """ValueError where the text encoder or the VAE is missing, or another model's. The MODEL's UNet must have been checked."""
    if clip is None:
        raise ValueError("no text encoder was given (the checkpoint holds none): wire the CLIP of the checkpoint, or Load CLIP.")
    if vae is None or getattr(vae, "first_stage_model", vae) is None:  # core hands on an empty one where a checkpoint holds none
        raise ValueError("no VAE was given (the checkpoint holds none): wire Load VAE.")
    channels = getattr(vae, "latent_channels", 4)
    if channels != 4:
        raise ValueError(f"the VAE makes latents of {channels} channels and the model takes 4: wire the VAE of the checkpoint.")
    given, (_, wanted) = sum(handles.widths_of(clip).values()), ip_adapter_layers.widths(model.get_model_object("diffusion_model"))
    if given != wanted:
        raise ValueError(
            f"the text encoder gives text of width {given} and the model takes {wanted}: wire the CLIP of the same checkpoint."
        )


def check_text(learner: Learner, text: Any) -> None:
    """ValueError if a CONDITIONING is of another width than the learner's text."""
    given, (_, wanted) = int(text[0][0].shape[-1]), ip_adapter_layers.widths(learner.network.diffusion_model)
    if given != wanted:
        raise ValueError(
            f"the text encoder gives text of width {given} and the model takes {wanted}: wire the CLIP of the same checkpoint."
        )


def _check_precision(model: Any) -> None:
    """ValueError for a checkpoint whose weights are numbers with scales beside them: their layers are no layers that learn."""
    network = getattr(model, "model", None)
    if getattr(getattr(network, "model_config", None), "quant_config", None):
        raise ValueError("this checkpoint is quantised (fp8 scaled, NVFP4, int8): load its fp16 or bf16 version, which can learn.")


def _channels(model: Any) -> tuple[int | None, str]:
    """How many channels a MODEL's UNet takes, None if it is no UNet, and the same in words."""
    unet = model.get_model_object("diffusion_model")
    try:
        layers.layers_of(unet)
    except TypeError:
        return None, f"is no UNet ({type(unet).__name__})"
    channels = getattr(unet, "in_channels", None)
    return channels, f"takes {channels} channels"


def check_size(size: int, sizes: Sequence[tuple[int, int]], node: str) -> None:
    """ValueError for crops of a size that the VAE cannot take, or pictures (height, width) much too small; one warning for small ones."""
    if size < SMALLEST_CROP or size % 8:
        raise ValueError(
            f"size is {size}: the side of the training crops is a multiple of 8 and at least {SMALLEST_CROP}. Use 512 for SD 1.5, 1024 "
            "for SDXL."
        )
    enlarged = []
    for number, (height, width) in enumerate(sizes, 1):
        short = min(height, width)
        if short * ENLARGED < size:
            raise ValueError(
                f"picture {number} is {width} x {height} pixels, too small for crops of {size}: it would be blurred, and so would what "
                f"is learned. Use a larger picture, or a `size` of at most {short * ENLARGED // 8 * 8}."
            )
        if short < size:
            enlarged.append((number, width, height))
    if len(enlarged) == 1:
        log.warning("%s: picture %d (%d x %d) is enlarged to crops of %d pixels.", node, *enlarged[0], size)
    elif enlarged:
        number, width, height = min(enlarged, key=lambda one: min(one[1:]))
        log.warning(
            "%s: %d of %d pictures are enlarged to crops of %d pixels, the most picture %d (%d x %d).",
            node, len(enlarged), len(sizes), size, number, width, height,
        )  # fmt: skip
