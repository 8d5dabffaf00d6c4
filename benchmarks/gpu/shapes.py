"""The shapes that are measured: the UNets that people run with their attention layers, and toy ones of the same build."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from .checks import Setting

_COMMON: dict[str, Any] = {
    "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
    "use_temporal_resblock": False, "in_channels": 4,
}  # fmt: skip
_SD: dict[str, Any] = {
    **_COMMON, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "adm_in_channels": None,
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """An attention layer: the side of its grid, channels and heads."""

    side: int
    channels: int
    heads: int


@dataclass(frozen=True)
class Shape:
    """A UNet: its configuration as ComfyUI has it, the class of ComfyUI's model, the latent's side, and its attention layers."""

    name: str
    family: str
    config: dict[str, Any]
    latent: int
    layers: tuple[Layer, ...]

    @property
    def text(self) -> int:
        return int(self.config["context_dim"])


SD15 = Shape(
    "SD 1.5", "SD15", {**_SD, "context_dim": 768, "num_heads": 8, "num_head_channels": -1, "use_linear_in_transformer": False}, 64,
    (Layer(64, 320, 8), Layer(32, 640, 8), Layer(16, 1280, 8)),
)  # fmt: skip
SD21 = Shape(
    "SD 2.1", "SD20", {**_SD, "context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}, 64,
    (Layer(64, 320, 5), Layer(32, 640, 10), Layer(16, 1280, 20)),
)  # fmt: skip
SDXL = Shape(
    "SDXL", "SDXL",
    {
        **_COMMON, "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
        "context_dim": 2048, "num_heads": -1, "num_head_channels": 64, "num_classes": "sequential", "adm_in_channels": 2816,
    },
    128, (Layer(64, 640, 10), Layer(32, 1280, 20)),
)  # fmt: skip


def shapes(setting: Setting) -> tuple[Shape, ...]:
    """The UNets to measure: real ones, or toys with an SD's and SDXL's blocks."""
    return tuple(_toy(shape) for shape in (SD15, SDXL)) if setting.small else (SD15, SD21, SDXL)


def compiled(setting: Setting) -> Shape:
    """The UNet for torch.compile: SD 1.5, or a toy with its first two sizes and one block in each, as each is traced several times."""
    if not setting.small:
        return SD15
    blocks = {"num_res_blocks": [1] * 2, "channel_mult": [1, 2], "transformer_depth": [1] * 2, "transformer_depth_output": [1, 0] * 2}
    return _toy(replace(SD15, config={**SD15.config, **blocks}))


def _toy(shape: Shape) -> Shape:
    """The same blocks at 32 channels, one transformer where there are ten, an 8 x 8 latent."""
    heads: dict[str, Any] = {"num_heads": 4, "num_head_channels": -1} if shape.config["num_heads"] > 0 else {"num_head_channels": 16}
    depths = {name: [min(1, one) for one in shape.config[name]] for name in ("transformer_depth", "transformer_depth_output")}
    config = {**shape.config, "model_channels": 32, "context_dim": 48, "transformer_depth_middle": 1, **heads, **depths}
    return Shape(f"{shape.name}'s blocks, toy", shape.family, config, 8, (Layer(8, 32, 4), Layer(4, 64, 4)))


def model(shape: Shape, setting: Setting, dtype: torch.dtype, inpainting: bool = False) -> Any:
    """A MODEL of random weights that ComfyUI loads to the device when it is used."""
    import comfy.model_management as management
    import comfy.supported_models
    from comfy.model_patcher import CoreModelPatcher

    given = {**shape.config, "in_channels": 9} if inpainting else shape.config
    config = getattr(comfy.supported_models, shape.family)(dict(given))
    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, device=setting.device)
    if inpainting:
        base.set_inpaint()
    fill(base.diffusion_model)
    offload = management.unet_offload_device()
    return CoreModelPatcher(base, management.get_torch_device(), offload)


@torch.no_grad()
def fill(network: torch.nn.Module, seed: int = 0) -> None:
    """Random weights in which signals neither die nor grow; no layer is zero."""
    generators: dict[torch.device, torch.Generator] = {}
    for value in network.parameters():
        if value.ndim < 2:
            value.fill_(0.5)
            continue
        if value.device not in generators:
            generators[value.device] = torch.Generator(value.device).manual_seed(seed)
        bound = (3 / value[0].numel()) ** 0.5
        value.uniform_(-bound, bound, generator=generators[value.device])


def unet_inputs(shape: Shape, setting: Setting, dtype: torch.dtype, channels: int | None = None) -> dict[str, torch.Tensor]:
    """What the UNet takes for one step with CFG's two rows: x, timesteps, context and, for SDXL, y."""
    generator = torch.Generator().manual_seed(1)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(setting.device, dtype)

    given = {
        "x": numbers(2, channels or shape.config["in_channels"], shape.latent, shape.latent),
        "timesteps": torch.full((2,), 500.0, device=setting.device),
        "context": numbers(2, 77, shape.text),
    }
    if shape.config.get("adm_in_channels"):
        given["y"] = numbers(2, shape.config["adm_in_channels"])
    return given
