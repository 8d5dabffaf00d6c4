"""Prompt Region: this text acts here. On UNets and on transformers, in the same pass as the prompt or in one of its own."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..attention import chain, prompt_regions
from ..attention.grid import RegionMask
from ..attention.prompt_regions import PromptRegion
from . import inputs
from .checked import checked

log = logging.getLogger(__name__)

EVERYWHERE, OUTSIDE = "everywhere", "only where no region is"
BY_MODEL = -1.0
"""`own_pass` as the model likes it: in one pass UNets paint one of two things, in passes of their own both (`nox -s tables -- regions`)."""
EMPTY = (
    "the mask of this region is empty (nothing in it is brighter than 0.5), so its text would act nowhere. Paint the region white, or "
    "bypass this node."
)
SOME_EMPTY = "Prompt Region: %d of %d masks are empty; there the region's text does not act."
UNUSED_OPTIONS = ("area", "mask", "control", "reference_latents", "gligen", "concat_latent_image", "hooks")
"""What a region's CONDITIONING may carry beside its words, and what does not act here."""


class PromptRegionNode(io.ComfyNode):
    """A further text that acts in the white of a mask."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptPromptRegion",
            display_name="Prompt Region",
            category="MaskPrompt/Regions",
            description="Lets a text of its own act in one region of the picture, beside the prompt that goes into the sampler. Chain as "
            "many as you like on the model's line; regions may overlap. For transformers such as FLUX, Qwen-Image, Z-Image, SD 3, Krea 2, "
            "Anima and Wan in one pass, at nearly the speed of the plain model; for SD 1.5, SD 2.1 and SDXL in passes of their own, or "
            "in one.",
            search_aliases=[
                "regional", "regional prompt", "regional conditioning", "attention couple", "area prompt", "conditioning mask",
                "latent couple", "mask prompt", "prompt by region",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model on its way to the sampler, also from another Prompt Region."),
                io.Conditioning.Input(
                    "text",
                    tooltip="What is in the region, from a text node with the same CLIP as the prompt; or a picture in place of words, "
                    "from Apply Style Model (Redux) behind an empty text.",
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="White is the region. Any size, of the same shape as the picture that is painted. One for all pictures, or one "
                    "for each; of a video one for all frames, or one for each frame.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05,
                    tooltip="How strongly the region's words act. 1: like the prompt's own, at no cost. 0: off. Another value costs "
                    "the region's cells a second look.",
                ),
                io.Combo.Input(
                    "base", options=[EVERYWHERE, OUTSIDE], default=EVERYWHERE,
                    tooltip="Where the prompt that goes into the sampler acts. everywhere: in the region too, beside its text. only where "
                    "no region is: the region reads its own text alone.",
                ),
                io.Float.Input(
                    "apart", default=0.0, min=0.0, max=1.0, step=0.05,
                    tooltip="Keeps what different regions show from mixing: the share of the model's layers in which this region's "
                    "part of the picture does not see the others'. 0: they see each other, and the picture stays of one piece. Only in one "
                    "pass: on SD 1.5, SD 2.1 and SDXL set own_pass below 1.",
                ),
                *inputs.part_of_sampling("region"),
                io.Combo.Input(
                    "apply_to", options=["positive", "negative", "both"], default="positive", optional=True, advanced=True,
                    tooltip="Whether the region shows its text or is kept free of it. positive: the text is painted there. negative: "
                    "it must not appear there. both: beside either prompt, for special effects.",
                ),
                io.Float.Input(
                    "own_pass", default=BY_MODEL, min=BY_MODEL, max=1.0, step=0.05, optional=True,
                    tooltip="Each region's thing appears more surely: for this share of the sampling, from its start, the region is "
                    "painted in a pass of its own, as with Conditioning (Set Mask), at the price of one more pass in those steps. 0: "
                    "everything in one pass, the fastest. -1: as the model likes it, 1 for SD 1.5, SD 2.1 and SDXL, 0 for transformers.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the region: to the sampler or the next Prompt Region.")],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls,
        model: Any,
        text: list[Any],
        mask: torch.Tensor,
        strength: float = 1.0,
        base: str = EVERYWHERE,
        apart: float = 0.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        apply_to: chain.Half = "positive",
        own_pass: float = BY_MODEL,
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(model)
        inputs.check_model(model, [PromptRegion])
        region = RegionMask(inputs.region_masks(mask, EMPTY, SOME_EMPTY))
        share = float(inputs.is_unet(model)) if own_pass < 0 else own_pass
        if apart > 0 and share >= 1:
            log.warning("Prompt Region: apart does nothing while regions have passes of their own; set own_pass below 1")
        patches: list[PromptRegion] = []
        inputs.check_part(start_percent, end_percent, "region")
        for words, options in entries(text):
            # A text that acts in a part of the sampling only (Conditioning Set Timestep Range) does so here too.
            # And so does each part of a text whose words change on the way (Set CLIP Hooks with `schedule_clip`).
            start = max(start_percent, *(options.get(name, 0.0) for name in ("start_percent", "clip_start_percent")))
            end = min(end_percent, *(options.get(name, 1.0) for name in ("end_percent", "clip_end_percent")))
            if start > end:
                continue
            scope = chain.Scope(None, start, end, apply_to)
            patches.append(PromptRegion(words, region, strength, base == OUTSIDE, apart, options, scope, share))
        if not patches:
            raise ValueError(
                f"none of the region's texts acts between start_percent ({start_percent:g}) and end_percent ({end_percent:g}): their own "
                "parts of the sampling (Conditioning Set Timestep Range) lie outside. Widen one or the other."
            )
        return io.NodeOutput(prompt_regions.install(model, *patches))


def entries(text: list[Any]) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """The texts of a CONDITIONING with their options. ValueError if there are none."""
    found = [(words, options) for words, options in text or () if isinstance(words, torch.Tensor) and words.shape[1] > 0]
    if not found:
        raise ValueError("the region has no text: wire a text node (CLIP Text Encode) to `text`.")
    if any(options.get("attention_mask_img_shape") is not None for _, options in found):
        raise ValueError(
            "the region's text carries an attention mask of the whole picture (Apply Style Model with strength_type attn_bias), which "
            "cannot act in a region. Choose strength_type multiply there."
        )
    left = sorted({name for _, options in found for name in UNUSED_OPTIONS if options.get(name) is not None})
    if left:
        log.warning(
            "Prompt Region: of the region's conditioning only the words act; %s is left out. It belongs to the prompt of the sampler.",
            ", ".join(left),
        )
    return found


NODES: list[type[io.ComfyNode]] = [PromptRegionNode]
