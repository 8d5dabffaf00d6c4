"""Crop Around Box and Paste Back: painting a small place at the model's own size."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..images import crops
from ..images.masks import bounding_box, box_mask, boxes_per_image, clip_box, describe, match_batch, resize, to_mask

CATEGORY = "MaskPrompt/DreamCom"
CropType = io.Custom("MASKPROMPT_CROP")


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
    def execute(
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
    def execute(cls, image: torch.Tensor, painted: torch.Tensor, crop: crops.Crop, feather: int) -> io.NodeOutput:
        if tuple(image.shape[1:3]) != (crop.height, crop.width):
            raise ValueError(
                f"the crop was cut from a picture of {crop.width}x{crop.height} pixels, but this one is {image.shape[2]}x{image.shape[1]}. "
                "Wire the same picture here as to Crop Around Box."
            )
        place = crop.place
        stretch = painted.shape[2] * place["height"] / (painted.shape[1] * place["width"])
        if not 0.8 < stretch < 1.25:
            raise ValueError(
                f"the painted piece is {painted.shape[2]}x{painted.shape[1]} pixels, but its place in the picture is "
                f"{place['width']}x{place['height']}: their shapes differ. Wire what was painted on the crop."
            )
        return io.NodeOutput(crops.paste(image, painted, crop, feather))


NODES: list[type[io.ComfyNode]] = [CropAroundBox, PasteBack]
