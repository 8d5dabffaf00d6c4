"""Reference Region: this picture acts here, and only this part of it. For edit models, which take reference pictures.

One node stands on both lines. The reference must be in the CONDITIONING, in ComfyUI's own form, so that core's methods (offset, index, uxo)
and every other node that knows references go on working; who sees it travels beside it, and the MODEL is told to look for it. Both leave
the same node, and an output that is wired to nothing is an error, so that no half of it can be forgotten.
"""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..attention import families, reference_regions
from ..attention.families import references as support
from ..attention.grid import RegionMask
from ..attention.reference_regions import REFERENCES, ReferenceRegion
from ..conditioning import encoded_reference
from . import inputs
from .checked import checked

log = logging.getLogger(__name__)

NAME = "Reference Region"
EMPTY = (
    f"{NAME}: the region is empty (nothing in it is brighter than 0.5), so the reference would act nowhere. Paint it white, or unwire "
    "`region`: then the reference acts everywhere."
)
SOME_EMPTY = f"{NAME}: %d of %d regions are empty; there the reference does not act."
MODEL, POSITIVE, NEGATIVE = 0, 1, 2
"""The numbers of the outputs."""


class ReferenceRegionNode(io.ComfyNode):
    """A reference picture that acts in the white of a mask, with a part of it hidden."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptReferenceRegion",
            display_name=NAME,
            category="MaskPrompt/Reference pictures",
            description="Shows an edit model a reference picture that acts in one region of the painted picture only, and of which the "
            "model sees only the part that a mask shows: this product here, that person there, without their backgrounds. Takes the place "
            "of VAE Encode and Set Reference Latent; chain one for each reference. For FLUX.2, FLUX.1 Kontext, Qwen-Image-Edit, Krea 2 and "
            "Z-Image with references.",
            search_aliases=[
                "reference latent", "set reference latent", "masked reference", "regional reference", "reference mask", "edit model",
                "multi reference", "insert product", "kontext", "flux 2 klein", "qwen image edit",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model on its way to the sampler, also from another Reference Region."),
                io.Conditioning.Input("positive", tooltip="The prompt, also from another Reference Region."),
                io.Conditioning.Input(
                    "negative", optional=True,
                    tooltip="The negative prompt; it gets the reference as well. Leave it out if your negative is to know nothing of it.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The reference picture, of any size and shape. A batch is one picture for each picture that is painted.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Turns the reference into what the model sees: the model's own VAE."),
                io.Mask.Input(
                    "region", optional=True,
                    tooltip="White is where in the painted picture the reference acts. Any size, of the shape of that picture. Without it: "
                    "everywhere.",
                ),
                io.Mask.Input(
                    "show", optional=True,
                    tooltip="White is what the model may see of the reference. Any size, of the reference's shape. Without it: all.",
                ),
                io.Boolean.Input("invert", default=False, tooltip="On: the white of `show` is hidden, and the rest is seen."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05,
                    tooltip="How closely the reference is followed. 1: as the model does it. 0: the reference is left out. Another "
                    "value costs the region a second look.",
                ),
                io.Float.Input(
                    "megapixels", default=1.0, min=0.0, max=16.0, step=0.05,
                    tooltip="How much detail of the reference is seen: a larger one is scaled down to this; 1 is what the models were "
                    "trained for, and less is faster. 0: its own size.",
                ),
                *inputs.part_of_sampling("reference"),
                io.Int.Input(
                    "margin", default=0, min=0, max=512, optional=True, advanced=True,
                    tooltip="Leaves no rim of what is hidden: so many pixels along its edge are hidden too. The hidden part leaves no "
                    "trace at 0 either, but with `latent`.",
                ),
                io.Latent.Input(
                    "latent", optional=True, advanced=True,
                    tooltip="In place of image and vae: a reference that is encoded already. What `show` hides has then got into the "
                    "tokens beside it; set margin to 32 or more.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="To the sampler or the next Reference Region, together with the prompts."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the reference."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the reference, if one was wired."),
                io.Image.Output(display_name="preview", tooltip="What the model is shown of the reference; hidden tokens are grey."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        model: Any,
        positive: list[Any],
        invert: bool = False,
        strength: float = 1.0,
        megapixels: float = 1.0,
        negative: list[Any] | None = None,
        image: torch.Tensor | None = None,
        vae: Any = None,
        region: torch.Tensor | None = None,
        show: torch.Tensor | None = None,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        margin: int = 0,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        takes = check_model(model)
        check_wired(cls.hidden, negative is not None)
        family = families.of(model.get_model_object("diffusion_model"))
        patch = family.patch_of(model.get_model_object("diffusion_model"))
        inputs.check_part(start_percent, end_percent, "reference")
        place = None if region is None else RegionMask(inputs.region_masks(region, EMPTY, SOME_EMPTY))
        found = encoded_reference.encode(image, vae, latent, show, invert, megapixels, margin, patch, *latents_of(model), takes.whole)
        if strength == 0:
            return io.NodeOutput(model, positive, negative, found.preview)
        restricted = place is not None or strength != 1 or not bool(found.tokens.all()) or (start_percent, end_percent) != (0.0, 1.0)
        # A latent of its own, so that the same one given twice is two references.
        samples = found.latent.clone()
        one = ReferenceRegion(samples, found.tokens.flatten(1), place, strength, start_percent, end_percent) if restricted else None
        prompts = [None if prompt is None else reference_regions.with_reference(prompt, samples, one) for prompt in (positive, negative)]
        warn(takes, max(len(options[REFERENCES]) for _, options in prompts[0] or ()))
        return io.NodeOutput(reference_regions.install(model) if restricted else model, *prompts, found.preview)


def check_model(model: Any) -> support.References:
    """What a MODEL does with references. ValueError in the artist's words if it takes none."""
    if inputs.is_unet(model):
        raise ValueError(
            f"{NAME}: this model (SD 1.5, SD 2.1 or SDXL) takes no reference pictures. Use Image Prompt Region, or an IP-Adapter, to show "
            "it one."
        )
    inputs.check_model(model, [])
    takes = support.of(model.get_model_object("diffusion_model"))
    if takes.trained == 0:
        name = families.of(model.get_model_object("diffusion_model")).name
        raise ValueError(
            f"{NAME}: this model ({name}) takes no reference pictures. Use an edit model: FLUX.2, FLUX.1 Kontext, Qwen-Image-Edit, Krea 2 "
            "or Z-Image with references."
        )
    return takes


def latents_of(model: Any) -> tuple[int, int]:
    """How many pixels one of a MODEL's latents is wide, and how many channels it has."""
    return inputs.latent_pixels(model), int(model.model.latent_format.latent_channels)


def check_wired(hidden: Any, negative: bool) -> None:
    """ValueError if an output that must be used is wired to nothing in the graph that runs, or the negative one to something."""
    prompt = getattr(hidden, "prompt", None) or {}
    own = str(getattr(hidden, "unique_id", ""))
    if own not in prompt:
        return
    links = [value for node in prompt.values() for value in node.get("inputs", {}).values() if isinstance(value, list) and len(value) == 2]
    used = {link[1] for link in links if str(link[0]) == own}
    if used and used <= {3}:
        return
    for output, name, what in (
        (MODEL, "model", "the reference would act everywhere"),
        (POSITIVE, "positive", "the reference would be lost"),
    ):
        if output not in used:
            raise ValueError(f"{NAME}: its output `{name}` is wired to nothing, so {what}. Wire it to the sampler or the next {NAME}.")
    if negative and NEGATIVE not in used:
        raise ValueError(f"{NAME}: a negative prompt goes in, but the output `negative` is wired to nothing. Wire it to the sampler.")
    if not negative and NEGATIVE in used:
        raise ValueError(f"{NAME}: the output `negative` is used, but no negative prompt goes in. Wire one to the input `negative`.")


def warn(takes: support.References, count: int) -> None:
    """Warn of what a model was not trained for."""
    if takes.doubt:
        log.warning("%s: %s, and may do badly with them.", NAME, takes.doubt)
    if takes.trained is not None and count > takes.trained:
        log.warning(
            "%s: the prompt has %d reference pictures, but this model was trained with at most %d; more may be mixed up.", NAME, count,
            takes.trained,
        )  # fmt: skip


NODES: list[type[io.ComfyNode]] = [ReferenceRegionNode]
