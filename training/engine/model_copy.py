"""Copies of a ComfyUI MODEL or CLIP that a training may change: their own weights, everything else as on the given one."""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

log = logging.getLogger(__name__)

COMPILED = "torch.compile"
"""The key of ComfyUI's wrapper that runs a compiled UNet in place of the model's own."""


def twin(model: Any) -> Any:
    """A MODEL (or a CLIP's patcher) of its own weights that equals the given one: same LoRAs, options, wrappers. Never loaded piecemeal.

    Left out, as they hold on to the given one's own layers: a compiled UNet, patched layers, and LoRAs in bypass mode (a warning).
    """
    from comfy.model_patcher import ModelPatcher, create_model_options_clone

    own = ModelPatcher(network_of(model), model.load_device, model.offload_device)
    own.patches = {key: list(patches) for key, patches in model.patches.items()}
    own.object_patches = {name: value for name, value in model.object_patches.items() if not name.startswith("diffusion_model")}
    own.weight_wrapper_patches = dict(model.weight_wrapper_patches)
    own.model_options = create_model_options_clone(model.model_options)
    own.wrappers = {kind: {key: list(found) for key, found in keyed.items() if key != COMPILED} for kind, keyed in model.wrappers.items()}
    left_out = [*model.injections, *(model.object_patches.keys() - own.object_patches.keys())]
    if left_out:
        log.warning(
            "The training does not see what these put into the model: %s. (LoRAs loaded in bypass mode are such; load them without.)",
            ", ".join(map(str, left_out)),
        )
    return own


def network_of(model: Any) -> Any:
    """A patcher's network (a MODEL's is a `comfy.model_base.BaseModel`) once more, without what LoRAs have put into its weights."""
    if getattr(model, "is_dynamic", bool)():
        # Its layers are bound to ComfyUI's dynamic memory, which knows no gradients: the file is read again, as ComfyUI does for hooks.
        if model.cached_patcher_init is None:
            raise ValueError(
                "this model cannot be copied for training, as the node that loaded it does not say from which file. Load it with a loader "
                "of ComfyUI's own, such as Load Checkpoint, or start ComfyUI with --disable-dynamic-vram."
            )
        load, given, *place = model.cached_patcher_init
        loaded = load(*given, disable_dynamic=True)
        return (loaded[place[0]] if place else loaded).model
    unload(model)
    # The configuration is shared (it cannot be copied); who sampled with the original last is not of interest. CLIP and VAE have neither.
    shared = getattr(model.model, "model_config", None)
    last = getattr(model.model, "current_patcher", None)
    return copy.deepcopy(model.model, {id(shared): shared, id(last): None})


def unload(model: Any) -> None:
    """Takes a MODEL and its clones off their device and what LoRAs have put into their weights out of them."""
    from comfy import model_management

    others = [loaded for loaded in model_management.current_loaded_models if loaded.model is None or not loaded.model.is_clone(model)]
    model_management.free_memory(1e30, model.load_device, others)
    model_management.soft_empty_cache()


def compute_dtype(model: Any) -> torch.dtype:
    """What a MODEL learns in: float32 on a CPU, else bfloat16, or float32 again where the device knows no bfloat16.

    float16 is left out: its small gradients vanish without a loss scale.
    """
    from comfy import model_management

    device = model.load_device
    if model_management.is_device_cpu(device) or not model_management.should_use_bf16(device, model_params=0):
        return torch.float32
    return torch.float32 if model.model.get_dtype_inference() == torch.float32 else torch.bfloat16


def checkpoint_blocks(unet: nn.Module) -> None:
    """Makes a UNet's blocks keep their inputs only and compute the rest again for the gradient."""
    for module in blocks_of(unet):
        module.forward = functools.partial(_recomputed, module.forward)


def blocks_of(unet: nn.Module) -> list[Any]:
    """The residual and transformer blocks of a UNet."""
    from comfy.ldm.modules.attention import BasicTransformerBlock
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    return [module for module in unet.modules() if isinstance(module, (BasicTransformerBlock, ResBlock))]


def without_sums_in_place(encoder: nn.Module) -> None:
    """Makes ComfyUI's CLIP text layers add their results to new tensors: what they add in place has no gradient."""
    from comfy.clip_model import CLIPLayer

    for module in encoder.modules():
        if isinstance(module, CLIPLayer):
            module.forward = functools.partial(_layer_of_text, module)


def _layer_of_text(layer: Any, x: Any, mask: Any = None, optimized_attention: Any = None) -> Any:
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    # The UNet writes the running block's name and grid into these options; the second computation must see today's.
    if isinstance(kwargs.get("transformer_options"), dict):
        kwargs["transformer_options"] = dict(kwargs["transformer_options"])
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)
