"""MECA's loss ("Patch-enhanced Mask Encoder Prompt Image Generation", sections 3.2, 3.3 and 4.1): an image as a prompt, in a region.

The model's own text is frozen; what learns is an adapter beside it: the compression of a vision model's tokens (equation 3) and each
layer's keys and values of the image, which begin as the text's. It acts through the same attention patches that sampling uses:
equation 4 for whole pictures, equation 6 for samples with a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...attention import ip_adapter_layers
from ...conditioning.texts import together
from ...models.ip_adapter.network import MecaNetwork
from ..engine.learner import Learner
from ..engine.noise import Schedule
from .examples import Examples
from .keys import keys_of, patches_of
from .options import Options


class Loss:
    """Computes equation 7, with gradients for the network alone."""

    def __init__(self, learner: Learner, network: MecaNetwork, options: Options) -> None:
        self.learner = learner
        self.network = network
        self.options = options
        self.schedule = Schedule(learner.patcher.get_model_object("model_sampling"))
        self.layers = ip_adapter_layers.numbered(learner.network.diffusion_model)

    def __call__(self, examples: Examples, generator: torch.Generator) -> Tensor:
        """Of these samples, with noise drawn from `generator`."""
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
