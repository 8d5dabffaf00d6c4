"""Mask-ControlNet's training (section 3.1): the adapter and the control network learn, everything else is frozen.

The control network acts as ComfyUI's CONTROL_NET, through the sampler's own code, so what learns is what paints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...models.mask_controlnet import control as mask_controlnet
from ...models.mask_controlnet import diffusers_layout
from ...models.mask_controlnet import file as mask_controlnet_file
from ...models.mask_controlnet.adapter import MaskConcat
from ...models.mask_controlnet.control import Adapter, MaskControl
from ...models.mask_controlnet.file import About, Content
from ...models.mask_controlnet.network import started, weights_of
from ..engine import loop, memory
from ..engine.checkpoint import StateFile
from ..engine.checks import check_parts, check_size, check_unet
from ..engine.learner import Learner
from ..engine.model_copy import checkpoint_blocks
from ..engine.noise import Schedule
from ..engine.preview import paint
from ..engine.vae_encoder import KEPT, VAEEncoder, training_dtype
from ..meca.examples import Texts
from ..meca.loss import together
from .examples import Batch, Examples, Source
from .options import AHEAD, Options


def check(model: Any, clip: Any, vae: Any, options: Options, examples: Examples) -> None:
    """ValueError, in the artist's words, for what cannot be trained; to be asked before anything is encoded."""
    check_unet(model)
    diffusers_layout.shape_of(model.model.model_config.unet_config)
    check_parts(model, clip, vae)
    check_size(options.size, examples.sizes, "Train Mask-ControlNet")


def check_memory(learner: Learner, vae: Any, options: Options) -> None:
    """Logs what the training will take; ValueError if the device cannot hold it.

    The control network is reckoned as the UNet's encoder, which keeps nothing itself. The VAE's share comes when theirs is gone, picture by
    picture; without checkpointing beside it and for all of them.
    """
    weights = weights_of(diffusers_layout.shape_of(learner.network.model_config.unet_config))
    found = memory.estimate(learner, options.latents, options.checkpointing, options.average > 0, weights)
    picture = KEPT * options.size**2 * training_dtype(vae).itemsize
    together = max(found.activations, picture) if options.checkpointing else found.activations + options.batch * picture
    memory.check(replace(found, activations=together), learner.device, "frozen")


class Encoder(Protocol):
    """Encodes pixels [B, 3, H, W] in 0..1 to latents [B, 4, h, w], with gradients, by its `network`."""

    network: Any

    def to(self, device: torch.device, /) -> Any: ...

    def __call__(self, pixels: Tensor, /) -> Tensor: ...


class Branch:
    """What learns: the adapter and the control network, which begins with the encoder of the learner's UNet. Loaded with the learner."""

    def __init__(self, learner: Learner, vae: Any, options: Options) -> None:
        self.learner = learner
        self.options = options
        model = learner.network
        shape = diffusers_layout.shape_of(model.model_config.unet_config)
        self.about = About(float(model.latent_format.scale_factor), mask_controlnet.in_words(shape), options.masked)
        with torch.inference_mode(False):
            unet = {name: value.detach() for name, value in model.diffusion_model.state_dict().items()}
            self.network = started(shape, unet, _further(model), options.seed)
            self.adapter = MaskConcat()
            self.encoder: Encoder = VAEEncoder(vae, options.checkpointing)
            if options.checkpointing:
                checkpoint_blocks(self.network)
        self.control = MaskControl(self.network, self.about, learner.device, None)
        # A plain patcher: the one that streams weights puts others in the place of those that learn.
        self.control.control_model_wrapped = ModelPatcher(self.network, learner.device, learner.patcher.offload_device)

    def load(self) -> None:
        """To the device, after the learner."""
        for part in (self.network, self.adapter, self.encoder):
            part.to(self.learner.device)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        parts = (("control_net.", self.network), ("adapter.", self.adapter))
        return {prefix + name: value for prefix, part in parts for name, value in part.named_parameters()}

    def hint(self, batch: Batch) -> Tensor:
        """Of each reference, as the adapter sees it: [B, 3, H, W]. Without the mask prompt the reference is its own object."""
        mask = batch.mask if self.options.masked else torch.ones_like(batch.mask)
        return self.adapter(batch.reference, mask)

    def acting(self, hint: Tensor) -> MaskControl:
        """A CONTROL_NET with this hint [B, 3, H, W], encoded by the VAE."""
        control = self.control.copy()
        control.cond_hint = self.encoder(hint) * self.about.scale
        control.model_sampling_current = self.learner.network.model_sampling
        return control

    def finished(self) -> tuple[MaskControl, Adapter]:
        """What was learned, in half precision, as it is saved."""
        with torch.inference_mode(False):
            control = mask_controlnet.of_weights(self.content(), "what was learned")
            adapter = MaskConcat()
            adapter.load_state_dict(self.adapter.state_dict())
        return control, Adapter(adapter, self.options.masked)

    def content(self) -> Content:
        """What is written to a file: the control network in half precision, the adapter, which is small, in full."""
        control = {name: _copy(value, torch.float16) for name, value in self.network.state_dict().items()}
        adapter = {name: _copy(value, torch.float32) for name, value in self.adapter.state_dict().items()}
        return Content(self.network.shape, control, adapter, self.about)


@dataclass
class Loss:
    """Equation 1 on batches of `source`. `lanes` are the numbers of this process's parts of a step (see `loop.run`)."""

    branch: Branch
    source: Source
    texts: Texts
    lanes: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        self.learner = self.branch.learner
        self.schedule = Schedule(self.learner.patcher.get_model_object("model_sampling"))
        self._ahead = -1

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Of the batch that is drawn with `generator`, and noise drawn after it."""
        if self._ahead != step // AHEAD:
            self._ahead = step // AHEAD
            self._read(self._ahead * AHEAD)
        batch = self.source.load(self.source.plan(generator))
        latents = self.latents(batch)
        noise = torch.randn(latents.shape, generator=generator)
        return self.of(batch, latents, noise, self.schedule.draw(len(latents), generator))

    def latents(self, batch: Batch) -> Tensor:
        """What is to be painted, [B, 4, h, w] as the UNet sees it."""
        with torch.no_grad():
            encoded = self.branch.encoder(batch.image.to(self.learner.device))
            return self.learner.network.process_latent_in(encoded)

    def of(self, batch: Batch, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Of these pictures under this noise [B, 4, h, w] of these levels [B]."""
        device = self.learner.device
        on_device = Batch(batch.reference.to(device), batch.mask.to(device), batch.image, batch.texts)
        noise = noise.to(device)
        sigmas = sigmas.to(device)
        control = self.branch.acting(self.branch.hint(on_device))
        values = {"latent_image": latents, "control": control}
        conditions = self.learner.conditions(together([self.texts[text] for text in batch.texts]), latents, values)
        denoised = self.learner.denoised(self.schedule.noisy(latents, noise, sigmas), sigmas, conditions)
        return (self.schedule.error(denoised.float(), latents, sigmas) ** 2).mean()

    def _read(self, first: int) -> None:
        """Encodes the texts of the steps from `first` on."""
        seed = self.branch.options.seed
        plans = [self.source.plan(loop.random_numbers(seed, first + step, lane)) for step in range(AHEAD) for lane in self.lanes]
        self.texts.know(text for plan in plans for text in plan.texts)
        self.learner.load()
        self.branch.load()


def train(
    branch: Branch,
    source: Source,
    clip: Any,
    state: Path | None = None,
    fingerprint: str = "",
    on_step: Callable[[loop.Progress], None] | None = None,
) -> loop.Progress:
    """Trains the branch beside its learner, which must be loaded. The state file goes when the training is done."""
    keep = None if state is None else StateFile(state, fingerprint)
    options = branch.options
    branch.load()
    with torch.enable_grad():
        loss = Loss(branch, source, Texts(clip), range(options.accumulate))
        progress = loop.run(branch.parameters, loss, options.settings(branch.learner.width), keep, on_step)
    if keep is not None:
        keep.remove()
    return progress


@torch.no_grad()
def preview(branch: Branch, batch: Batch, vae: Any, positive: Any, negative: Any) -> Tensor:
    """What the first picture's text and hint paint by now, beside its hint: [1, H, 2 W, 3]. The learner goes on as if nothing had been."""
    learner = branch.learner
    try:
        device = learner.device
        shown = Batch(batch.reference[:1].to(device), batch.mask[:1].to(device), batch.image[:1], batch.texts[:1])
        hint = branch.hint(shown)
        # Encoded as in training: the sampler would do it in the midst of the model's own precision.
        control = branch.acting(hint).set_cond_hint(hint.cpu(), vae=vae)
        empty = torch.zeros(1, 4, hint.shape[2] // 8, hint.shape[3] // 8)
        painted = paint(learner, positive, negative, empty, {"control": control, "control_apply_to_uncond": False})
        return torch.cat([hint.movedim(1, -1).cpu(), vae.decode(painted).cpu()], 2)
    finally:
        learner.load()
        branch.load()


def save(branch: Branch, path: str, more: dict[str, str]) -> None:
    """Writes what was learned for Load Mask-ControlNet."""
    mask_controlnet_file.save(branch.content(), path, more)


def _further(model: Any) -> Tensor | None:
    """What an inpainting UNet finds in its further channels in text to image, one number each; None where it has none."""
    if model.diffusion_model.in_channels <= diffusers_layout.LATENT:
        return None
    noise = torch.zeros(1, diffusers_layout.LATENT, 8, 8)
    found = model.concat_cond(noise=noise, device=noise.device, latent_image=noise)
    return found.float().mean((0, 2, 3))


def _copy(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to("cpu", dtype, copy=True)
