"""What an untrained adapter begins with, and the keys and values that it gives attention while it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attention import ip_adapter_layers
from ...attention.chain import Patch
from ...attention.grid import RegionMask
from ...attention.layers import Layer
from ...attention.meca import ImagePrompt, Mode, Pair, TextOutside
from ...models.ip_adapter import network as meca_network
from ...models.ip_adapter.network import Compression, MecaNetwork
from ..engine.learner import Learner
from .examples import Examples
from .options import Options


@dataclass(frozen=True)
class LearnedKeys:
    """Keys and values [N, T, C] of each layer as the network gives them, with gradients: of `prompts` images, then maybe of none."""

    layers: Mapping[Layer, Pair]
    prompts: int

    def of(self, layer: Layer, numbers: tuple[int, ...], like: Tensor) -> Pair:
        k, v = (part.to(like.device, like.dtype) for part in self.layers[layer])
        if numbers == tuple(range(len(k))):
            return k, v
        return k[list(numbers)], v[list(numbers)]


def keys_of(network: MecaNetwork, layers: Mapping[int, Layer], features: Sequence[Tensor], prompts: int) -> LearnedKeys:
    """Computes what the network makes of the features of `prompts` images (then maybe of none).

    `layers` are the UNet's by IP-Adapter's number.
    """
    parameter = next(network.parameters())
    tokens: list[Tensor | None] = [None] * len(features)
    for length in sorted({len(one) for one in features}):
        rows = [row for row, one in enumerate(features) if len(one) == length]
        alike = torch.stack([features[row] for row in rows]).to(parameter.device, parameter.dtype)
        for row, found in zip(rows, network.image_proj(alike), strict=True):
            tokens[row] = found
    pairs = network(torch.stack([one for one in tokens if one is not None]))
    return LearnedKeys({layer: pairs[number] for number, layer in layers.items()}, prompts)


def patches_of(keys: LearnedKeys, examples: Examples, mode: Mode) -> tuple[Patch, ...]:
    """Makes the patches of a batch: equation 4 for samples without a region, `mode` for the others."""
    if not bool(examples.masked.any()):
        return (ImagePrompt(keys),)
    with_region = examples.masked[:, None, None].to(examples.regions.device)
    regions = examples.regions > 0.5
    image = ImagePrompt(keys, RegionMask((regions | ~with_region).float()), mode=mode)
    return (image,) if mode == "global" else (TextOutside(RegionMask((regions & with_region).float()), mode=mode), image)


def fresh(learner: Learner, features: int, options: Options) -> MecaNetwork:
    """Makes an untrained network for the learner's model and a vision model of this width, in float32 on the CPU.

    The image's keys and values are the text's (section 3.3), with the LoRAs that are on the model while the learner is loaded.
    """
    modules = ip_adapter_layers.cross_attention(learner.network.diffusion_model)
    text = {number: (module.to_k.weight.detach().float(), module.to_v.weight.detach().float()) for number, module in modules.items()}
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return meca_network.fresh(text, features, options.tokens)


def size(learner: Learner, features: int, options: Options) -> int:
    """Counts the weights that the network for the learner's model has."""
    widths, context = ip_adapter_layers.widths(learner.network.diffusion_model)
    with torch.device("meta"):
        network = MecaNetwork(Compression(features, context, options.tokens, 1), widths)
    return sum(value.numel() for value in network.parameters())
