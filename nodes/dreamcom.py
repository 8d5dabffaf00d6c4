"""DreamCom: attention confined to a mask."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..attention import chain, layers
from ..attention.grid import RegionMask
from ..attention.masked_attention import MaskedCrossAttention, MaskedSelfAttention, SelfMode
from ..attention.masked_joint import MaskedJointAttention
from ..images.masks import to_mask
from . import inputs
from .checked import checked
from .inputs import LIST

log = logging.getLogger(__name__)

CATEGORY = "MaskPrompt/Regions"


class MaskedAttention(io.ComfyNode):
    """Text inside the mask only; object and background apart."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptMaskedAttention",
            display_name="Masked Attention",
            category=CATEGORY,
            description="Confines the prompt to a mask and keeps the background's colours out of the object (DreamCom's masked "
            "attention). Put it between the checkpoint and the sampler; best with an inpainting checkpoint.",
            search_aliases=[
                "inpaint", "regional", "mask", "dreamcom", "regional prompt", "attention mask", "inpaint into box", "colour bleeding",
                "mask prompt",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="What is to paint inside the mask: SD 1.5, SD 2.1, SDXL, best an inpainting one; or a transformer: FLUX, "
                    "Qwen-Image, ...",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="White is where the prompt acts. Any size, of the same shape as the picture that is painted. One for "
                    "each picture of a batch, or one for all.",
                ),
                io.Boolean.Input(
                    "cross_attention",
                    default=True,
                    tooltip="Keeps a similar thing in the background from taking the prompt: the text reaches the mask's inside only.",
                ),
                io.Combo.Input(
                    "self_attention",
                    options=["paper", "renormalised", "off"],
                    default="paper",
                    tooltip="Keeps the surroundings' colours and patterns out of the object, and the object's out of them. paper: "
                    "softly, so that it blends in (equation 2 of DreamCom). renormalised: wholly, as two pictures; faster. off: they "
                    "mix as ever.",
                ),
                io.Combo.Input(
                    "layers",
                    options=[*layers.PRESETS, LIST, *layers.THIRDS],
                    default="paper",
                    tooltip="How hard object and surroundings are kept apart, and in what. paper: all but the last, fine layers, which "
                    "blend the object in. reference code: only those, as DreamCom's own code does. all: the hardest cut. first "
                    "third, middle third, last third: only these layers of the model, by depth. list: named below.",
                ),
                inputs.layer_list("middle 0, output 3, output 4, output 5"),
                *inputs.part_of_sampling("mask"),
                io.Combo.Input(
                    "apply_to", options=["both", "positive", "negative"], default="both", optional=True, advanced=True,
                    tooltip="Which prompt stays inside the mask. positive: what you want. negative: what you do not want. both: each "
                    "of them, as in the paper.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with confined attention; the given one stays as it is.")],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        model: Any,
        mask: torch.Tensor,
        cross_attention: bool,
        self_attention: str,
        layers: str,
        layer_list: str = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        apply_to: chain.Half = "both",
    ) -> io.NodeOutput:
        known = inputs.known_layers(model)
        masks = to_mask(mask).cpu()
        chosen = chosen_layers(layers, layer_list, known) if self_attention != "off" else None
        if not cross_attention and self_attention == "off":
            return io.NodeOutput(model)
        region = RegionMask(_filled(masks))
        if bool((masks < 0.5).all()):
            return io.NodeOutput(model)
        inputs.check_part(start_percent, end_percent, "mask")
        if not inputs.is_unet(model):
            divided: SelfMode | None = None if self_attention == "off" else "renormalised" if self_attention == "renormalised" else "paper"
            scope = chain.Scope(None, start_percent, end_percent, apply_to)
            return io.NodeOutput(chain.install(model, MaskedJointAttention(region, cross_attention, divided, chosen, scope)))
        patches: list[chain.Patch] = []
        if cross_attention:
            patches.append(MaskedCrossAttention(region, chain.Scope(None, start_percent, end_percent, apply_to)))
        if self_attention == "paper" or self_attention == "renormalised":
            patches.append(MaskedSelfAttention(region, self_attention, chain.Scope(chosen, start_percent, end_percent, apply_to)))
        return io.NodeOutput(chain.install(model, *patches))


def chosen_layers(choice: str, text: str, known: tuple[layers.Layer, ...]) -> frozenset[layers.Layer]:
    return layers.parse(text, known) if choice == LIST else layers.preset(choice, known)


def _filled(masks: torch.Tensor) -> torch.Tensor:
    """Masks with nothing in them replaced by full ones, which leave attention as it is, with a warning."""
    empty = (masks < 0.5).flatten(1).all(1)
    if bool(empty.any()):
        log.warning("Masked Attention: %d of %d masks are empty; there attention stays as it is.", int(empty.sum()), len(masks))
    return torch.where(empty[:, None, None], torch.ones_like(masks), masks)


NODES: list[type[io.ComfyNode]] = [MaskedAttention]
