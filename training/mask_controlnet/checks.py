"""What Mask-ControlNet cannot be trained on, said before anything is encoded, and the memory that it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...models.mask_controlnet import diffusers_layout
from ...models.mask_controlnet.network import weights_of
from ..data.objects import Examples
from ..engine import memory
from ..engine.checks import check_parts, check_size, check_unet
from ..engine.learner import Learner
from ..engine.vae_encoder import KEPT, training_dtype
from .options import GIVEN, GROUNDS, Options


def check(model: Any, clip: Any, vae: Any, options: Options, examples: Examples) -> None:
    """Refuses what cannot be trained: ValueError, in the artist's words."""
    check_unet(model)
    diffusers_layout.shape_of(model.model.model_config.unet_config)
    check_parts(model, clip, vae)
    check_size(options.size, examples.sizes, "Train Mask-ControlNet")
    check_pairs(options, examples)


def check_pairs(options: Options, examples: Examples) -> None:
    """Refuses pictures of which the pairs that are asked for cannot be made: ValueError."""
    if options.pairs == GROUNDS and len(examples) < 2:
        raise ValueError(
            f"pairs is {GROUNDS}, which puts each object on the ground of another picture, but there is one picture: give at least two, "
            "the more the better."
        )
    if options.pairs == GIVEN and not examples.have_references:
        raise ValueError(
            f"pairs is {GIVEN}, but not every picture has a reference: give one for each picture, of the same size and with the object in "
            f"the same place, or set pairs to {GROUNDS}, which makes them."
        )


def weights(learner: Learner) -> int:
    """Counts what learns: the control network, reckoned as the UNet's encoder."""
    return weights_of(diffusers_layout.shape_of(learner.network.model_config.unet_config))


def check_memory(learner: Learner, vae: Any, options: Options) -> None:
    """Logs what the training will take; ValueError if the device cannot hold it.

    The control network is reckoned as the UNet's encoder, which keeps nothing itself. The VAE's share comes when theirs is gone, picture by
    picture; without checkpointing beside it and for all of them.
    """
    found = memory.estimate(learner, options.latents, options.checkpointing, options.average > 0, weights(learner))
    picture = KEPT * options.size**2 * training_dtype(vae).itemsize
    together = max(found.activations, picture) if options.checkpointing else found.activations + options.batch * picture
    memory.check(replace(found, activations=together), learner.device, "frozen")
