"""What learns: a copy of a ComfyUI MODEL, with a LoRA, with all of its UNet's weights, or with an adapter beside it.

The copy runs through ComfyUI's own sampling code, wrappers and attention patches included, so the model that is trained is the
model that paints. The given MODEL is only read. What was learned leaves as core's LORA_MODEL.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...attention import chain
from .model_copy import checkpoint_blocks, compute_dtype, twin, unload
from .text_learner import TextLearner
from .trainable_weights import Adapted, Method

EVERYTHING = 10**20
"""More memory than any device has: asking for it takes every other model off the device."""


class Learner:
    """A copy of `model` that can learn, inside `with learner.loaded():`.

    lora: rank-`rank` adapters (core's `weight_adapter`) on every linear and convolution layer of the UNet; alpha is the rank.
    full: every weight, kept in float32.
    frozen: nothing; gradients pass through to what attention patches bring.
    `text` is a text encoder that learns with it: it is loaded and unloaded together with the copy.
    """

    def __init__(
        self, model: Any, method: Method, rank: int = 16, seed: int = 0, checkpointing: bool = True, text: TextLearner | None = None
    ) -> None:
        self.method: Method = method
        self.text = text
        with torch.inference_mode(False):
            self.patcher = twin(model)
            unet = self.network.requires_grad_(False).diffusion_model
            if checkpointing:
                checkpoint_blocks(unet)
            self.adapted = Adapted(self.patcher, method, _of_unet, rank=rank, seed=seed)
        self.compute = compute_dtype(self.patcher)
        self.patcher.set_model_compute_dtype(self.compute)

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def network(self) -> Any:
        """ComfyUI's model (`comfy.model_base.BaseModel`)."""
        return self.patcher.model

    @property
    def width(self) -> int:
        """The UNet's channels at full resolution: 320 in SD 1.5, SD 2.1 and SDXL."""
        return int(self.network.diffusion_model.model_channels)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns of the UNet, by the name it has in the state that is saved."""
        return self.adapted.parameters

    @contextmanager
    def loaded(self) -> Iterator[Learner]:
        """The copy on its device, ready to learn; afterwards, whatever happened, it holds no memory there."""
        with torch.inference_mode(False):
            try:
                self.load()
                for adapted in self._all_adapted:
                    adapted.unfreeze()
                yield self
            finally:
                self.network.current_patcher = None
                for adapted in self._all_adapted:
                    unload(adapted.patcher)
                    adapted.move(adapted.patcher.offload_device)

    def load(self) -> None:
        """Puts the copy on its device, wholly and alone: also after a preview, for which the VAE may have pushed it off."""
        from comfy import model_management

        patchers = [adapted.patcher for adapted in self._all_adapted]
        model_management.load_models_gpu(patchers, memory_required=EVERYTHING, force_full_load=True)
        self.network.current_patcher = self.patcher
        for adapted in self._all_adapted:
            adapted.move(adapted.patcher.load_device)

    @property
    def _all_adapted(self) -> list[Adapted]:
        return [self.adapted] if self.text is None else [self.adapted, self.text.adapted]

    @contextmanager
    def patched(self, *patches: chain.Patch) -> Iterator[Any]:
        """The copy with attention patches, for sampling. No clone: ComfyUI ejects adapters when any clone is collected."""
        before = self.patcher.wrappers
        self.patcher.wrappers = chain.with_patches(before, *patches)
        try:
            with self.precision():
                yield self.patcher
        finally:
            self.patcher.wrappers = before

    def precision(self) -> AbstractContextManager[Any]:
        """What the model runs in: its adapters and trained weights are float32, whatever the rest is."""
        return nullcontext() if self.compute == torch.float32 else torch.autocast(self.device.type, self.compute)

    def conditions(self, conditioning: Any, latents: Tensor, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """CONDITIONING as the model takes it for latents [B, C, h, w]; `values` are what a node would set on it."""
        from comfy.sampler_helpers import convert_cond
        from comfy.samplers import encode_model_conds

        entries = with_values(conditioning, values or {})
        extra = self.network.extra_conds
        return encode_model_conds(extra, convert_cond(entries), latents, self.device, "positive", latent_image=latents)

    def denoised(self, noisy: Tensor, sigmas: Tensor, conditions: list[dict[str, Any]], patches: tuple[chain.Patch, ...] = ()) -> Tensor:
        """The model's denoised latents [B, C, h, w], with gradients, under these attention patches on top of the model's own."""
        from comfy.patcher_extension import copy_nested_dicts, merge_nested_dicts
        from comfy.samplers import calc_cond_batch

        options = copy_nested_dicts(self.patcher.model_options)
        inner = options.setdefault("transformer_options", {})
        wrappers = merge_nested_dicts(inner.get("wrappers", {}), self.patcher.wrappers, copy_dict1=False)
        inner["wrappers"] = chain.with_patches(wrappers, *patches)
        inner["optimized_attention_override"] = _differentiable_attention
        with self.precision():
            return calc_cond_batch(self.network, [conditions], noisy, sigmas, options)[0]

    def learned(self) -> dict[str, Tensor]:
        """What was learned, as core's LORA_MODEL: half precision, on the CPU, for any stock LoRA loader."""
        return {name: value for adapted in self._all_adapted for name, value in adapted.learned().items()}


def _of_unet(name: str) -> bool:
    return name.startswith("diffusion_model.")


def with_values(conditioning: Any, values: dict[str, Any]) -> list[list[Any]]:
    """CONDITIONING with values set on it. Its tensors are cloned: those made in inference mode cannot take part in a gradient."""

    def clone(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    return [[clone(text), {**{key: clone(value) for key, value in options.items()}, **values}] for text, options in conditioning]


def with_gradients(network: torch.nn.Module) -> None:
    """Makes the attention layers of a network that core runs without transformer options (a ControlNet) use PyTorch's attention."""
    from comfy.ldm.modules.attention import CrossAttention

    for module in network.modules():
        if isinstance(module, CrossAttention):
            module.forward = functools.partial(_overridden, module.forward)


def _overridden(forward: Any, *args: Any, transformer_options: dict[str, Any] | None = None, **kwargs: Any) -> Tensor:
    options = {**(transformer_options or {}), "optimized_attention_override": _differentiable_attention}
    return forward(*args, transformer_options=options, **kwargs)


def _differentiable_attention(_attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's attention in place of the configured one: Sage has no gradient, and split attention cuts by free memory."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)
