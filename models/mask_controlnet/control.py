"""Mask-ControlNet as ComfyUI's CONTROL_NET, which the stock Apply ControlNet takes, and the adapter that makes its hint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from comfy.controlnet import ControlNet
from comfy.latent_formats import SD15
from torch import Tensor
from typing_extensions import override

from .. import sd_families, weights
from . import diffusers_layout
from . import file as mask_controlnet_file
from .adapter import MaskConcat
from .diffusers_layout import LATENT, Shape
from .file import About, Content
from .network import LatentControlNet, eager_layers

TOLD = ("model_channels", "channel_mult", "num_res_blocks", "transformer_depth", "context_dim", "adm_in_channels")
"""By these a base differs from another."""


class MaskControl(ControlNet):
    """ComfyUI's ControlNet whose hint is a picture that Apply ControlNet's VAE encodes. Says before sampling what does not fit."""

    def __init__(self, network: LatentControlNet | None, about: About, load_device: Any, manual_cast_dtype: torch.dtype | None) -> None:
        super().__init__(network, compression_ratio=1, latent_format=SD15(about.scale), load_device=load_device,
                         manual_cast_dtype=manual_cast_dtype)  # fmt: skip
        self.about = about

    @override
    def copy(self) -> MaskControl:
        other = MaskControl(None, self.about, self.load_device, self.manual_cast_dtype)
        other.control_model = self.control_model
        other.control_model_wrapped = self.control_model_wrapped
        self.copy_to(other)
        return other

    @override
    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        if self.vae is None:
            raise ValueError("Mask-ControlNet's hint goes through a VAE: connect the checkpoint's VAE to Apply ControlNet's vae input.")
        channels = getattr(self.vae, "latent_channels", LATENT)
        if channels != LATENT:
            raise ValueError(
                f"the VAE on Apply ControlNet makes latents of {channels} channels, Mask-ControlNet's hint has {LATENT}: connect the "
                "checkpoint's VAE."
            )
        check_base(self.network.shape, model)
        super().pre_run(model, percent_to_timestep_function)

    @override
    def get_control(self, x_noisy: Tensor, *args: Any, **kwargs: Any) -> Any:
        # ComfyUI's nearest pixel would tear the object; "area" averages what shrinks but repeats pixels where it should enlarge.
        hint = self.cond_hint_original
        larger = hint is not None and (hint.shape[-2] < 8 * x_noisy.shape[-2] or hint.shape[-1] < 8 * x_noisy.shape[-1])
        self.upscale_algorithm = "bilinear" if larger else "area"
        return super().get_control(x_noisy, *args, **kwargs)

    @property
    def network(self) -> LatentControlNet:
        network = self.control_model
        assert isinstance(network, LatentControlNet)
        return network


@dataclass(frozen=True)
class Adapter:
    """What Object Hint needs: the adapter layer, in float32 on the CPU, and whether it was trained with masks.

    One that was not reads the reference as its own object, as it did in training.
    """

    layer: MaskConcat
    masked: bool = True

    @torch.no_grad()
    def hint(self, image: Tensor, mask: Tensor) -> Tensor:
        """IMAGE [B, H, W, 3] and masks [B, H, W] of its objects to the hint, an IMAGE."""
        device = next(self.layer.parameters()).device
        marked = mask if self.masked else torch.ones_like(mask)
        return self.layer(image.to(device, torch.float32).movedim(-1, 1), marked.to(device, torch.float32)[:, None]).movedim(1, -1)


def load(path: str) -> tuple[MaskControl, Adapter]:
    """A file's control network and adapter (an untrained one where the file has none). ValueError in plain words for any other file."""
    return of_content(mask_controlnet_file.read(path), f"'{os.path.basename(path)}'")


def of_content(content: Content, title: str) -> tuple[MaskControl, Adapter]:
    """A control network and its adapter (an untrained one where there is none), as nodes hand them on. ValueError if they do not fit."""
    adapter = MaskConcat()
    if content.adapter is not None:
        weights.check_shapes(content.adapter, weights.shapes_of(adapter), title)
        adapter.load_state_dict(content.adapter)
    return of_weights(content, title), Adapter(adapter, content.about.masked)


def of_weights(content: Content, title: str) -> MaskControl:
    """A CONTROL_NET of these weights, in the precision that ComfyUI would load them in. ValueError if they are not such a network's."""
    from comfy import model_management, ops

    found = next(iter(content.control.values())).dtype if content.control else torch.float32
    dtype = model_management.unet_dtype(supported_dtypes=[torch.float16, torch.bfloat16, torch.float32], weight_dtype=found)
    device = model_management.get_torch_device()
    cast = model_management.unet_manual_cast(dtype, device)
    operations = ops.pick_operations(dtype, cast)
    try:
        wanted = LatentControlNet(content.shape, dtype, "meta", eager_layers())
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{title}: no control network can be made by its configuration ({error}). The file is damaged.") from None
    weights.check_shapes(content.control, weights.shapes_of(wanted), title)
    network = LatentControlNet(content.shape, dtype, model_management.unet_offload_device(), operations)
    network.load_state_dict(content.control)
    return MaskControl(network, content.about, device, cast)


def content_of(control: MaskControl, adapter: Adapter) -> Content:
    """What `mask_controlnet_file.save` writes."""
    network = control.network
    return Content(network.shape, network.state_dict(), adapter.layer.state_dict(), control.about)


def check_base(shape: Shape, model: Any) -> None:
    """ValueError if ComfyUI's model (`comfy.model_base.BaseModel`) is not of the family that the control network was made for."""
    config = getattr(getattr(model, "model_config", None), "unet_config", None) or {}
    try:
        given = diffusers_layout.shape_of(config)
    except ValueError as error:
        raise ValueError(f"Mask-ControlNet: {error}") from None
    apart = [name for name in TOLD if given.get(name) != shape.get(name)]
    if apart:
        made = in_words(shape)
        found = in_words(given)
        if made == found:
            made, found = (f"{made} whose {apart[0]} is {one.get(apart[0])}" for one in (shape, given))
        raise ValueError(
            f"this Mask-ControlNet was made for {made}, and the model is {found}: load a Mask-ControlNet for this "
            "model, or the checkpoint that it was trained on."
        )


def in_words(shape: Shape) -> str:
    """Says what a control network was made for: "a UNet of 320 channels with text of width 768 (SD 1.5)"."""
    return sd_families.unet(shape["model_channels"], shape["context_dim"])
