"""A UNet's cross-attention layers under IP-Adapter's numbers, and their widths.

IP-Adapter counts all attention layers, self and cross in turn, first down, then up, then the middle; so the cross-attentions have the odd
numbers 1, 3, 5, …, and the middle's come last.
"""

from __future__ import annotations

from typing import Any

from .layers import Layer, layers_of

_ORDER = {"input": 0, "output": 1, "middle": 2}


def numbered(unet: Any) -> dict[int, Layer]:
    """IP-Adapter's number of every layer. Raises TypeError for a model that is no UNet."""
    ordered = sorted(layers_of(unet), key=lambda layer: _ORDER[layer[0]])
    return {2 * position + 1: layer for position, layer in enumerate(ordered)}


def cross_attention(unet: Any) -> dict[int, Any]:
    """The cross-attention module (with `to_k` and `to_v`) of every number."""
    return {number: _module(unet, layer).attn2 for number, layer in numbered(unet).items()}


def widths(unet: Any) -> tuple[dict[int, int], int]:
    """Each layer's width by number, and the width of the text."""
    found = cross_attention(unet)
    return {number: int(module.to_k.out_features) for number, module in found.items()}, int(found[1].to_k.in_features)


def _module(unet: Any, layer: Layer) -> Any:
    name, block, index = layer
    modules = unet.middle_block if name == "middle" else getattr(unet, f"{name}_blocks")[block]
    return next(module.transformer_blocks[index] for module in modules if hasattr(module, "transformer_blocks"))
