"""A control network's weights and configuration in `diffusers`' layout (its ControlNetModel), and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

HINT = "controlnet_cond_embedding"
ZERO = "controlnet_down_blocks"
MIDDLE = "controlnet_mid_block"
LATENT = 4
HINT_WIDTH = 256
"""Channels of the latent and within the hint's embedding: the widest of those in ControlNet's embedding of pictures."""
SHAPE = (
    "model_channels", "num_res_blocks", "channel_mult", "transformer_depth", "transformer_depth_middle", "context_dim", "num_heads",
    "num_head_channels", "use_linear_in_transformer", "num_classes", "adm_in_channels", "attn_precision",
)  # fmt: skip
"""What of a UNet's configuration, as ComfyUI names it, makes the shape of its control network."""
HEADS = ("num_heads", "num_head_channels")
"""Of these two, one is told, and -1 says that it is the other one."""

Shape = dict[str, Any]
"""A part of ComfyUI's `unet_config`."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Of the control network for a UNet of this configuration. ValueError, in plain words, if it is none that this method knows."""
    given = {name: value for name in SHAPE if (value := config.get(name)) is not None and not (name in HEADS and value == -1)}
    found = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in given.items()}
    if not isinstance(found.get("transformer_depth"), list) or "context_dim" not in found:
        raise ValueError("a control network for latent hints needs a UNet with cross-attention: SD 1.5, SD 2.1 or SDXL.")
    if not _regular(found):
        raise ValueError(
            "a control network for latent hints needs a UNet with the blocks of SD 1.5, SD 2.1 or SDXL; of this one some were left out, as "
            "in SSD-1B or KOALA."
        )
    return found


def names(shape: Shape) -> dict[str, str]:
    """ComfyUI's name of each weight by `diffusers`' name."""
    from comfy.utils import unet_to_diffusers

    counts: list[int] = shape["num_res_blocks"]
    table = unet_to_diffusers({**shape, "transformer_depth_output": [0] * sum(count + 1 for count in counts)})
    ours = {theirs: own for theirs, own in table.items() if own.startswith(("input_blocks.", "middle_block.", "time_embed."))}
    if "adm_in_channels" in shape:
        ours |= {theirs: own for theirs, own in table.items() if theirs.startswith("add_embedding.")}
    for part in ("weight", "bias"):
        for number in range(sum(counts) + len(counts)):
            ours[f"{ZERO}.{number}.{part}"] = f"zero_convs.{number}.0.{part}"
        ours |= {f"{MIDDLE}.{part}": f"middle_block_out.0.{part}", f"{HINT}.conv_in.{part}": f"input_hint_block.0.{part}",
                 f"{HINT}.conv_out.{part}": f"input_hint_block.2.{part}"}  # fmt: skip
    return ours


def to_diffusers(state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """ComfyUI's state under `diffusers`' names."""
    table = {own: theirs for theirs, own in names(shape).items()}
    return {table[name]: value for name, value in state.items()}


def from_diffusers(state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The other way; names that are not a control network's of this shape stay as they are."""
    table = names(shape)
    return {table.get(name, name): value for name, value in state.items()}


def config_of(shape: Shape) -> dict[str, Any]:
    """The configuration of `diffusers`' ControlNetModel, for a shape that `shape_of` gives."""
    channels = [shape["model_channels"] * times for times in shape["channel_mult"]]
    depths = _depths(shape)
    per_head = shape.get("num_head_channels")
    heads = [count // per_head for count in channels] if per_head else shape["num_heads"]
    config: dict[str, Any] = {
        "_class_name": "ControlNetModel",
        "in_channels": LATENT,
        "conditioning_channels": LATENT,
        "conditioning_embedding_out_channels": [HINT_WIDTH],
        "block_out_channels": channels,
        "layers_per_block": shape["num_res_blocks"][0],
        "down_block_types": ["CrossAttnDownBlock2D" if level[0] else "DownBlock2D" for level in depths],
        "transformer_layers_per_block": [*(max(1, level[0]) for level in depths[:-1]), shape["transformer_depth_middle"]],
        "attention_head_dim": heads,
        "cross_attention_dim": shape["context_dim"],
        "use_linear_projection": bool(shape.get("use_linear_in_transformer", False)),
        "upcast_attention": shape.get("attn_precision") == torch.float32,
    }
    if "adm_in_channels" in shape:
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                   "projection_class_embeddings_input_dim": shape["adm_in_channels"]}  # fmt: skip
    return config


def shape_of_config(config: Mapping[str, Any]) -> Shape:
    """The other way. ValueError in plain words for a configuration that is no latent hint's, KeyError for one that is not whole."""
    if config.get("conditioning_channels") != LATENT or list(config.get("conditioning_embedding_out_channels", ())) != [HINT_WIDTH]:
        raise ValueError("its hint is a picture, not a latent: load it with Load ControlNet Model")
    try:
        shape = _shape_of_config(config)
        known = _regular(shape)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise KeyError(str(error)) from error
    if not known:
        raise KeyError("its blocks are not those of SD 1.5, SD 2.1 or SDXL")
    return shape


def _shape_of_config(config: Mapping[str, Any]) -> Shape:
    channels: list[int] = list(config["block_out_channels"])
    count = int(config["layers_per_block"])
    levels = len(channels)
    given = config.get("transformer_layers_per_block", 1)
    layers: list[int] = list(given) if isinstance(given, (list, tuple)) else [int(given)] * levels
    kinds = zip(channels, config["down_block_types"], layers, strict=True)
    depths = [depth if kind == "CrossAttnDownBlock2D" else 0 for _, kind, depth in kinds]
    shape: Shape = {
        "model_channels": channels[0],
        "num_res_blocks": [count] * levels,
        "channel_mult": [one // channels[0] for one in channels],
        "transformer_depth": [depth for depth in depths for _ in range(count)],
        "transformer_depth_middle": layers[-1],
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": bool(config.get("use_linear_projection", False)),
        **_heads(config.get("num_attention_heads") or config["attention_head_dim"], channels),
    }
    if config.get("projection_class_embeddings_input_dim"):
        shape |= {"num_classes": "sequential", "adm_in_channels": config["projection_class_embeddings_input_dim"]}
    if config.get("upcast_attention"):
        shape["attn_precision"] = torch.float32
    return shape


def _heads(heads: Any, channels: Sequence[int]) -> Shape:
    """What `diffusers` calls attention_head_dim is how many heads there are, in all levels or in each."""
    if not isinstance(heads, (list, tuple)):
        return {"num_heads": int(heads)}
    widths = {count / number for count, number in zip(channels, heads, strict=True)}
    if len(widths) == 1:
        return {"num_head_channels": int(widths.pop())}
    if len(set(heads)) == 1:
        return {"num_heads": int(heads[0])}
    raise ValueError(f"attention heads {heads}")


def _depths(shape: Shape) -> list[list[int]]:
    """How many transformer blocks stand behind each residual block, level by level."""
    rest = list(shape["transformer_depth"])
    return [[rest.pop(0) for _ in range(count)] for count in shape["num_res_blocks"]]


def _regular(shape: Shape) -> bool:
    """Whether a level's blocks are alike and the middle block has as many transformer blocks as the last level, if that has any."""
    depths = _depths(shape)
    middle = shape["transformer_depth_middle"]
    alike = len(set(shape["num_res_blocks"])) == 1 and all(len(set(level)) == 1 for level in depths)
    return alike and middle > 0 and depths[-1][0] in (0, middle)
