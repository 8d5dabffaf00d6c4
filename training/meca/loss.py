"""MECA's training ("Patch-enhanced Mask Encoder Prompt Image Generation", sections 3.2, 3.3 and 4.1): an image as a prompt, in a region.

The model's own text is frozen; what learns is an adapter beside it: the compression of a vision model's tokens (equation 3) and each
layer's keys and values of the image, which begin as the text's. It acts through the same attention patches that sampling uses:
equation 4 for whole pictures, equation 6 for samples with a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...attention import ip_adapter_layers
from ...attention.chain import Patch
from ...attention.grid import RegionMask
from ...attention.layers import Layer
from ...attention.meca import ImagePrompt, Mode, Pair, TextOutside
from ...models.clip_vision import patch_input
from ...models.ip_adapter import adapter as meca_adapter
from ...models.ip_adapter import file as meca_file
from ...models.ip_adapter import network as meca_network
from ...models.ip_adapter.network import Compression, MecaNetwork
from ..data.captions import Pictures
from ..engine import loop
from ..engine.checkpoint import StateFile
from ..engine.checks import check_parts, check_size, check_unet
from ..engine.learner import Learner
from ..engine.noise import Schedule
from ..engine.preview import paint
from .options import Examples, Options


def check(model: Any, clip: Any, vae: Any, clip_vision: Any, options: Options, pictures: Pictures) -> None:
    """ValueError, in the artist's words, for what cannot be trained; to be asked before anything is encoded."""
    check_unet(model)
    check_parts(model, clip, vae)
    if clip_vision is None:
        raise ValueError(
            "no CLIP vision model was given: wire Load CLIP Vision with the model that will encode your images later, such as ViT-H."
        )
    patch_input.describe(clip_vision)
    check_size(options.size, pictures.sizes, "Train MECA Adapter")


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
    """What the network makes of the features of `prompts` images (then maybe of none). `layers` are the UNet's by IP-Adapter's number."""
    parameter = next(network.parameters())
    tokens: list[Tensor | None] = [None] * len(features)
    for length in sorted({len(one) for one in features}):
        rows = [row for row, one in enumerate(features) if len(one) == length]
        together = torch.stack([features[row] for row in rows]).to(parameter.device, parameter.dtype)
        for row, found in zip(rows, network.image_proj(together), strict=True):
            tokens[row] = found
    pairs = network(torch.stack([one for one in tokens if one is not None]))
    return LearnedKeys({layer: pairs[number] for number, layer in layers.items()}, prompts)


def patches_of(keys: LearnedKeys, examples: Examples, mode: Mode) -> tuple[Patch, ...]:
    """Equation 4 for samples without a region, `mode` for the others, in one batch."""
    if not bool(examples.masked.any()):
        return (ImagePrompt(keys),)
    with_region = examples.masked[:, None, None].to(examples.regions.device)
    regions = examples.regions > 0.5
    image = ImagePrompt(keys, RegionMask((regions | ~with_region).float()), mode=mode)
    return (image,) if mode == "global" else (TextOutside(RegionMask((regions & with_region).float()), mode=mode), image)


def together(texts: Sequence[Any]) -> list[list[Any]]:
    """CONDITIONINGs of one entry each as one of as many rows. Shorter texts are repeated, as ComfyUI does: attention is the same."""
    (tensors, options) = zip(*(text[0] for text in texts), strict=True)
    length = math.lcm(*(tensor.shape[1] for tensor in tensors))
    rows = torch.cat([tensor.repeat(1, length // tensor.shape[1], 1) for tensor in tensors])
    pooled = [option.get("pooled_output") for option in options]
    return [[rows, {"pooled_output": torch.cat(pooled)} if all(isinstance(one, Tensor) for one in pooled) else {}]]


class Loss:
    """Equation 7, with gradients for the network alone. `source` gives the samples of a chunk by its number, the same ones each time."""

    def __init__(self, learner: Learner, network: MecaNetwork, source: Callable[[int], Examples], options: Options) -> None:
        self.learner = learner
        self.network = network
        self.source = source
        self.options = options
        self.schedule = Schedule(learner.patcher.get_model_object("model_sampling"))
        self.layers = ip_adapter_layers.numbered(learner.network.diffusion_model)
        self._chunk: tuple[int, Examples] | None = None

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Of the batch of this step, with noise drawn from `generator`."""
        examples = self._batch(step)
        noise = torch.randn(examples.latents.shape, generator=generator)
        return self.of(examples, noise, self.schedule.draw(len(examples), generator))

    def of(self, examples: Examples, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Of these samples under this noise [N, 4, h, w] of these levels [N]."""
        device = self.learner.device
        latents = self.learner.network.process_latent_in(examples.latents.to(device))
        noise = noise.to(device)
        sigmas = sigmas.to(device)
        # An inpainting model asks for the latents, as the sampler hands them over; with all to be painted it sees none of them.
        conditions = self.learner.conditions(together(examples.texts), latents, {"latent_image": latents})
        keys = keys_of(self.network, self.layers, examples.features, len(examples))
        patches = patches_of(keys, examples, self.options.mode)
        denoised = self.learner.denoised(self.schedule.noisy(latents, noise, sigmas), sigmas, conditions, patches)
        return (self.schedule.error(denoised.float(), latents, sigmas) ** 2).mean()

    def _batch(self, step: int) -> Examples:
        number, within = divmod(step, self.options.steps_per_chunk)
        if self._chunk is None or self._chunk[0] != number:
            self._chunk = None  # the old one goes before the new one comes
            with torch.no_grad():
                self._chunk = number, self.source(number)
            self.learner.load()
        first = within * self.options.batch
        samples = self._chunk[1]
        if first + self.options.batch > len(samples):
            raise ValueError(
                f"chunk {number} of the samples holds {len(samples)}; {self.options.samples(number)} are needed for its training steps."
            )
        return samples.part(slice(first, first + self.options.batch))


def fresh(learner: Learner, features: int, options: Options) -> MecaNetwork:
    """An untrained network for the learner's model and a vision model of this width, in float32 on the CPU.

    The image's keys and values are the text's (section 3.3), with the LoRAs that are on the model while the learner is loaded.
    """
    modules = ip_adapter_layers.cross_attention(learner.network.diffusion_model)
    text = {number: (module.to_k.weight.detach().float(), module.to_v.weight.detach().float()) for number, module in modules.items()}
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return meca_network.fresh(text, features, options.tokens)


def size(learner: Learner, features: int, options: Options) -> int:
    """How many weights the network for the learner's model has."""
    widths, context = ip_adapter_layers.widths(learner.network.diffusion_model)
    with torch.device("meta"):
        network = MecaNetwork(Compression(features, context, options.tokens, 1), widths)
    return sum(value.numel() for value in network.parameters())


def parameters_of(network: MecaNetwork) -> dict[str, nn.Parameter]:
    """What learns: all of the network."""
    return dict(network.named_parameters())


def train(
    learner: Learner,
    network: MecaNetwork,
    source: Callable[[int], Examples],
    options: Options,
    state: Path | None = None,
    fingerprint: str = "",
    on_step: Callable[[loop.Progress], None] | None = None,
) -> loop.Progress:
    """Trains the network beside the learner (which must be loaded). The state file goes when the training is done."""
    keep = None if state is None else StateFile(state, fingerprint)
    network.to(learner.device)
    with torch.enable_grad():
        loss = Loss(learner, network, source, options)
        progress = loop.run(parameters_of(network), loss, options.settings(), keep, on_step)
    if keep is not None:
        keep.remove()
    return progress


def preview(learner: Learner, network: MecaNetwork, examples: Examples, vae: Any, negative: Any, options: Options) -> Tensor:
    """What the first sample's text and image paint by now, with its region: [1, S, S, 3]. The learner goes on as if nothing had been."""
    first = examples.part(slice(0, 1))
    layers = ip_adapter_layers.numbered(learner.network.diffusion_model)
    try:
        with torch.no_grad():
            blank = torch.zeros(1, network.image_proj.features)
            keys = keys_of(network, layers, [first.features[0], blank.to(first.features[0])], 1)
            empty = torch.zeros_like(first.latents)
            return vae.decode(paint(learner, first.texts[0], negative, empty, {}, patches=patches_of(keys, first, options.mode)))
    finally:
        learner.load()


def about(network: MecaNetwork, options: Options, base: str) -> meca_file.About:
    """What goes with the weights; `base` says in words what they were trained on."""
    projection = network.image_proj
    return meca_file.About(options.mode, meca_file.ZEROS, projection.heads if isinstance(projection, Compression) else 0, base)


def finished(network: MecaNetwork, options: Options, base: str, name: str) -> meca_adapter.LoadedAdapter:
    """What was learned as an adapter for Apply MECA, in half precision, as it is saved."""
    with torch.inference_mode(False):
        weights = {key: value.detach().to("cpu", torch.float16, copy=True) for key, value in network.state_dict().items()}
        return meca_adapter.from_weights(weights, about(network, options, base), name)
