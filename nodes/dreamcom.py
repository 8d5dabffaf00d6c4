"""DreamCom: attention confined to a mask, and painting into a box at full size."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..attention import chain, layers
from ..attention.grid import RegionMask
from ..attention.masked import MaskedCrossAttention, MaskedSelfAttention
from ..models import crops
from ..models.masks import bounding_box, box_mask, boxes_per_image, clip_box, describe, match_batch, resize, to_mask

log = logging.getLogger(__name__)

CATEGORY = "MaskPrompt/DreamCom"
LIST = "list"
CropType = io.Custom("MASKPROMPT_CROP")


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
            search_aliases=["dreamcom", "regional prompt", "attention mask", "inpaint into box", "colour bleeding", "mask prompt"],
            inputs=[
                io.Model.Input("model", tooltip="A UNet model: SD 1.5, SD 2.1 or SDXL, best an inpainting one."),
                io.Mask.Input(
                    "mask",
                    tooltip="White is where the prompt acts. Any size, of the same shape as the picture that is painted. One for "
                    "each picture of a batch, or one for all.",
                ),
                io.Boolean.Input(
                    "cross_attention",
                    default=True,
                    tooltip="Let the text reach the mask's inside only, so that a similar thing in the background does not "
                    "take the prompt.",
                ),
                io.Combo.Input(
                    "self_attention",
                    options=["paper", "renormalised", "off"],
                    default="paper",
                    tooltip="Keep inside and outside from seeing each other. paper: the formula of the paper. renormalised: each side "
                    "as if the other were not there; faster. off: leave it.",
                ),
                io.Combo.Input(
                    "layers",
                    options=[*layers.PRESETS, LIST],
                    default="paper",
                    tooltip="Where self-attention is masked. paper: all but the decoder's outer layers, which blend the object in. "
                    "reference code: only those outer layers. all: everywhere. list: those named below.",
                ),
                io.String.Input(
                    "layer_list",
                    default="middle 0, output 3, output 4, output 5",
                    tooltip='Used when layers is "list": block names, comma-separated, such as input 1, middle 0, output 3.',
                    optional=True,
                    advanced=True,
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="From which part of the sampling on the mask acts (0 is the beginning).",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Until which part of the sampling the mask acts (1 is the end).",
                ),
                io.Combo.Input(
                    "apply_to", options=["both", "positive", "negative"], default="both", optional=True, advanced=True,
                    tooltip="Which prompt is confined. The paper confines both.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with confined attention; the given one stays as it is.")],
        )  # fmt: skip

    @classmethod
    @override
    def execute(  # pyright: ignore[reportIncompatibleMethodOverride]
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
        known, masks = layers_of(model), to_mask(mask).cpu()
        chosen = chosen_layers(layers, layer_list, known) if self_attention != "off" else None
        if not cross_attention and self_attention == "off":
            return io.NodeOutput(model)
        region = RegionMask(_filled(masks))
        if bool((masks < 0.5).all()):
            return io.NodeOutput(model)
        start, end = chain.percent_range(model, start_percent, end_percent)
        patches: list[chain.Patch] = []
        if cross_attention:
            patches.append(MaskedCrossAttention(region, chain.Scope(None, start, end, apply_to)))
        if self_attention == "paper" or self_attention == "renormalised":
            patches.append(MaskedSelfAttention(region, self_attention, chain.Scope(chosen, start, end, apply_to)))
        return io.NodeOutput(chain.install(model, *patches))


def layers_of(model: Any) -> tuple[layers.Layer, ...]:
    """The attention layers of a MODEL; ValueError in the artist's words if it has none."""
    try:
        return layers.layers_of(model.get_model_object("diffusion_model"))
    except TypeError as error:
        raise ValueError(str(error)) from None


def chosen_layers(choice: str, text: str, known: tuple[layers.Layer, ...]) -> frozenset[layers.Layer]:
    return layers.parse(text, known) if choice == LIST else layers.preset(choice, known)


def _filled(masks: torch.Tensor) -> torch.Tensor:
    """Masks with nothing in them replaced by full ones, which leave attention as it is, with a warning."""
    empty = (masks < 0.5).flatten(1).all(1)
    if bool(empty.any()):
        log.warning("Masked Attention: %d of %d masks are empty; there attention stays as it is.", int(empty.sum()), len(masks))
    return torch.where(empty[:, None, None], torch.ones_like(masks), masks)


class CropAroundBox(io.ComfyNode):
    """The box with its surroundings, at a size the model paints well."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptCropAroundBox",
            display_name="Crop Around Box",
            category=CATEGORY,
            description="Cuts out a box with its surroundings and scales it to the size the model paints at, so that a small object "
            "gets all of the model's detail. Paste Back puts the painted piece into the picture again.",
            search_aliases=["inpaint crop", "crop and stitch", "crop around mask", "detailer", "zoom in"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture, of any size."),
                io.Mask.Input("mask", tooltip="What is to be painted. The crop is made around it, unless a box is given."),
                io.BoundingBox.Input(
                    "bboxes", force_input=True, optional=True, tooltip="The box to crop around, instead of the mask's own."
                ),
                io.Float.Input(
                    "context", default=0.5, min=0.0, max=4.0, step=0.05,
                    tooltip="Surroundings on each side, as a part of the box's size. 0.5 is DreamCom's.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=0, max=4096, step=8,
                    tooltip="The crop is scaled to about this many pixels squared: 512 for SD 1.5, 1024 for SDXL. 0 keeps its size.",
                ),
                io.Combo.Input(
                    "crop", options=["always", "small boxes only"], default="always", optional=True, advanced=True,
                    tooltip="small boxes only: a box of a quarter of the picture or more is painted in the whole picture, as in "
                    "DreamCom's code.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The cut-out piece."),
                io.Mask.Output(display_name="mask", tooltip="The mask, cut out and scaled alike."),
                CropType.Output(display_name="crop", tooltip="Where the piece came from, for Paste Back."),
            ],
        )  # fmt: skip

    @classmethod
    @override
    def execute(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, image: torch.Tensor, mask: torch.Tensor, context: float, resolution: int, bboxes: Any = None, crop: str = "always"
    ) -> io.NodeOutput:
        batch, height, width = image.shape[:3]
        masks = _fitted(to_mask(mask), height, width)
        masks = match_batch(masks, batch, "Crop Around Box") if len(masks) > batch else masks
        boxes = [box for boxes in boxes_per_image(bboxes, batch) for box in boxes] if bboxes is not None else []
        around = masks.amax(0) if not boxes else torch.cat([box_mask(clip_box(b, height, width), height, width) for b in boxes]).amax(0)
        box = bounding_box(around, 0.5) or bounding_box(around, 0.0)
        if box is None or not bool(masks.any()):
            raise ValueError(
                f"the mask ({width}x{height}) is empty, so there is nothing to crop around. Paint a mask, or make one with Box Mask."
            )
        place = crops.surround(box, height, width, context)
        if crop != "always" and box["width"] * box["height"] * 4 >= width * height:
            place = crops.whole(height, width)
        size = crops.painting_size(place, resolution)
        cut_mask = crops.cut(masks, place)
        if not bool(cut_mask.any()):
            raise ValueError(
                f"the mask lies outside of {describe(box)} and its surroundings, so nothing would be painted. Wire the box of this mask, "
                "or leave bboxes unwired."
            )
        piece = crops.scale(crops.cut(image, place), *size)
        info = crops.Crop(place, height, width, cut_mask)
        return io.NodeOutput(piece, resize(cut_mask, *size), info)


def _fitted(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The masks at the picture's size. ValueError if they are of another shape (sides rounded to a multiple of 8 are let pass)."""
    rows, columns = masks.shape[1:]
    slack = max(8.0, height / rows, width / columns)
    off = abs(rows * width / columns - height) > slack and abs(columns * height / rows - width) > slack
    if off and bool(masks.any()):
        raise ValueError(
            f"the mask is {columns}x{rows} but the picture is {width}x{height}: their shapes differ, so the mask would land in the wrong "
            "place. Make the mask from this picture, or scale both alike."
        )
    return resize(masks, height, width)


class PasteBack(io.ComfyNode):
    """The painted piece back in its place."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptPasteBack",
            display_name="Paste Back",
            category=CATEGORY,
            description="Puts a painted crop back into its picture. Every pixel outside the mask stays exactly as it was.",
            search_aliases=["stitch", "inpaint stitch", "uncrop", "composite", "crop and stitch"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture that Crop Around Box was given."),
                io.Image.Input("painted", tooltip="The painted piece, of any size."),
                CropType.Input("crop", tooltip="From Crop Around Box."),
                io.Int.Input(
                    "feather", default=4, min=0, max=512,
                    tooltip="Width of the soft edge in pixels of the whole picture. It lies inside the mask.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture with the painted piece.")],
        )  # fmt: skip

    @classmethod
    @override
    def execute(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, image: torch.Tensor, painted: torch.Tensor, crop: crops.Crop, feather: int
    ) -> io.NodeOutput:
        if tuple(image.shape[1:3]) != (crop.height, crop.width):
            raise ValueError(
                f"the crop was cut from a picture of {crop.width}x{crop.height} pixels, but this one is {image.shape[2]}x{image.shape[1]}. "
                "Wire the same picture here as to Crop Around Box."
            )
        return io.NodeOutput(crops.paste(image, painted, crop, feather))


NODES: list[type[io.ComfyNode]] = [MaskedAttention, CropAroundBox, PasteBack]
