"""Mask-ControlNet's control network: the encoder half of a UNet, which reads a hint that a VAE has encoded (sections 3.1 and 3.2).

The network is ComfyUI's own class with another embedding of the hint, since a latent needs no shrinking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential
from torch import Tensor, nn
from typing_extensions import override

from .diffusers_layout import HINT_WIDTH, LATENT, Shape

ADDED = ("input_hint_block.", "zero_convs.", "middle_block_out.")
"""The parts that the base's encoder does not have, by the beginning of their names."""


class LatentControlNet(ControlNet):
    """[B, 4, h, w] noisy latents and a hint [B, 4, h, w] (a VAE's latents as the model scales them) to what is added in the decoder.

    The hint's embedding, two convolutions with SiLU between them of which the last begins at zero, is what `diffusers`'
    ControlNetModel makes for `conditioning_channels=4` and `conditioning_embedding_out_channels=(256,)`.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: Any, operations: Any) -> None:
        """Weights are not initialised. `operations` are ComfyUI's layers."""
        fixed = {"image_size": 32, "in_channels": LATENT, "hint_channels": LATENT, "use_spatial_transformer": True, "legacy": False}
        super().__init__(**fixed, **{name: value for name, value in shape.items() if value is not None}, dtype=dtype, device=device,
                         operations=operations)  # fmt: skip
        self.shape = dict(shape)
        made = {"dtype": dtype, "device": device}
        self.input_hint_block = TimestepEmbedSequential(
            operations.Conv2d(LATENT, HINT_WIDTH, 3, padding=1, **made),
            nn.SiLU(),
            operations.Conv2d(HINT_WIDTH, self.model_channels, 3, padding=1, **made),
        )

    @override
    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None, **others: Any) -> Any:
        return super().forward(x, hint, timesteps, context, y, **others)


def eager_layers() -> Any:
    """ComfyUI's layers with their weights there at once. Under its dynamic memory a linear layer has none before a file is read into it,
    unless its class reads files in a way of its own.
    """
    import comfy.ops

    class Eager(comfy.ops.disable_weight_init):
        class Linear(comfy.ops.disable_weight_init.Linear):
            @override
            def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
                super()._load_from_state_dict(*args, **kwargs)

    return Eager


def started(shape: Shape, unet: Mapping[str, Tensor], constant: Tensor | None = None, seed: int = 0) -> LatentControlNet:
    """A control network in float32 with the encoder of a UNet's weights, which changes nothing yet: its last convolutions are zero.

    A UNet of more input channels than the latent's, as for inpainting, reads them also in text to image: `constant` is what it then
    finds there, one number for each further channel. It goes into the bias, so that the control network begins with what the UNet knows;
    but for the picture's border, beside which the UNet's first convolution reads zeros in these channels too, as no bias can tell.
    """
    network = LatentControlNet(shape, torch.float32, "cpu", eager_layers())
    known = network.state_dict()
    state = {name: unet[name].detach().float().cpu() for name in known if not name.startswith(ADDED)}
    first = "input_blocks.0.0.weight"
    further = state[first][:, LATENT:]
    state[first] = state[first][:, :LATENT].clone()
    if further.shape[1]:
        if constant is None or constant.numel() != further.shape[1]:
            raise ValueError(f"the UNet reads {further.shape[1]} further channels: say what it finds there.")
        bias = first.replace("weight", "bias")
        state[bias] = state[bias] + further.sum((2, 3)) @ constant.float().cpu()
    network.load_state_dict(state, strict=False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, value in network.named_parameters():
            if name.startswith("input_hint_block.0.") and value.ndim == 4:
                nn.init.kaiming_normal_(value, nonlinearity="relu")
            elif name.startswith(ADDED):
                value.zero_()
    return network


def weights_of(shape: Shape) -> int:
    """How many weights a control network has."""
    network = LatentControlNet(shape, torch.float32, "meta", eager_layers())
    return sum(value.numel() for value in network.parameters())
