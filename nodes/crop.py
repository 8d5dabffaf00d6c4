"""Crop Around Box: a small place at the size that the model paints well."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..images import crops
from ..images.masks import Box, bounding_box, box_mask, clip_box, describe, grown, match_batch, of_one_shape, resize, without_holes
from ..images.typed_coordinates import parse_boxes
from . import checks
from .shown_picture import received

CATEGORY = "MaskPrompt/Cut out"
CropType = io.Custom("MASKPROMPT_CROP")
ALWAYS = "always"
SMALL = "small boxes only"
MOST_PIXELS = 4096
NAME = "Crop Around Box"
SIDES = ("left", "top", "right", "bottom")


def _extension(side: str) -> io.Int.Input:
    return io.Int.Input(
        f"extend_{side}", default=0, min=0, max=MOST_PIXELS, step=8, optional=True, advanced=True,
        tooltip=f"Outpainting: so many new pixels at the picture's {side}, all of them in the mask. Paste Back gives the larger picture.",
    )  # fmt: skip


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
            search_aliases=["inpaint", "inpaint crop", "outpaint", "crop and stitch", "crop around mask", "detailer", "zoom in"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture, of any size."),
                io.Mask.Input("mask", tooltip="What is to be painted. The crop is made around it, unless a box is given."),
                io.BoundingBox.Input(
                    "bboxes", force_input=True, optional=True, tooltip="The box to crop around, instead of the mask's own."
                ),
                io.Float.Input(
                    "context", default=0.5, min=0.0, max=4.0, step=0.05,
                    tooltip="How much of the surroundings the model sees on each side, as a part of the box's size. More lets the "
                    "object fit in, less gives it more pixels. 0.5 is DreamCom's.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=0, max=4096, step=8,
                    tooltip="How large the piece is painted: about this many pixels squared, 512 for SD 1.5, 1024 for SDXL. 0 keeps "
                    "its size.",
                ),
                io.Combo.Input(
                    "crop", options=[ALWAYS, SMALL], default=ALWAYS, optional=True, advanced=True,
                    tooltip="When the box is cut out and painted large. always: every box. small boxes only: a box of a quarter of the "
                    "picture or more is painted in the whole picture, as in DreamCom's code.",
                ),
                io.Mask.Input(
                    "context_mask", optional=True,
                    tooltip="What else the crop must show, such as the hand that holds the thing. It is not painted, only seen.",
                ),
                io.Int.Input(
                    "grow", default=0, min=0, max=512, optional=True, advanced=True,
                    tooltip="The mask grows by so many pixels of the picture on all sides, before it is cut out.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=False, optional=True, advanced=True,
                    tooltip="What the mask closes in is painted too.",
                ),
                io.Int.Input(
                    "output_width", default=0, min=0, max=MOST_PIXELS, step=8, optional=True, advanced=True,
                    tooltip="How wide the piece is painted, exactly; goes with output_height. Whatever resolution says, the crop has "
                    "these proportions. 0: resolution counts.",
                ),
                io.Int.Input(
                    "output_height", default=0, min=0, max=MOST_PIXELS, step=8, optional=True, advanced=True,
                    tooltip="How high the piece is painted, exactly; goes with output_width. 0: resolution counts.",
                ),
                *(_extension(side) for side in SIDES),
                io.String.Input(
                    "box", default="", optional=True, placeholder="a box instead of the mask's: left,top,width,height",
                    tooltip="The box to crop around, instead of the mask's own: drag it over the picture (Draw the box in the picture), or "
                    "type 235,180,110,110 (left, top, width, height in pixels). Empty: the mask's own.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The cut-out piece."),
                io.Mask.Output(display_name="mask", tooltip="The mask, cut out and scaled alike."),
                CropType.Output(display_name="crop", tooltip="Where the piece came from, for Paste Back."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    @override
    def execute(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor,
        context: float,
        resolution: int,
        bboxes: Any = None,
        crop: str = ALWAYS,
        context_mask: torch.Tensor | None = None,
        grow: int = 0,
        fill_holes: bool = False,
        output_width: int = 0,
        output_height: int = 0,
        extend_left: int = 0,
        extend_top: int = 0,
        extend_right: int = 0,
        extend_bottom: int = 0,
        box: str = "",
    ) -> io.NodeOutput:
        picture = checks.image(image, "image", NAME)
        context = checks.number(context, "context", NAME, 0, 1000)
        resolution = checks.whole(resolution, "resolution", NAME, 0, 2 * MOST_PIXELS)
        checks.choice(crop, "crop", NAME, (ALWAYS, SMALL))
        grow = checks.whole(grow, "grow", NAME, 0, MOST_PIXELS)
        shape = _shape(output_width, output_height)
        wanted = zip(SIDES, (extend_left, extend_top, extend_right, extend_bottom), strict=True)
        left, top, right, bottom = (checks.whole(pixels, f"extend_{side}", NAME, 0, MOST_PIXELS) for side, pixels in wanted)
        sides = (left, top, right, bottom)

        batch, height, width = picture.shape[:3]
        masks = _fitted(checks.mask(mask, "mask", NAME), height, width)
        masks = match_batch(masks, batch, NAME) if len(masks) > batch else masks
        masks = without_holes(masks) if fill_holes else masks
        masks = grown(crops.extended_mask(masks, sides), grow)
        masks = match_batch(masks, batch, NAME) if len(masks) > 1 else masks
        rows, columns = masks.shape[1:]
        around = _around(masks, [*parse_boxes(box, "box"), *_boxes(bboxes, batch)], sides)
        also = None
        if context_mask is not None:
            seen = crops.within(_fitted(checks.mask(context_mask, "context_mask", NAME), height, width), _canvas(sides, height, width))
            also = bounding_box(seen.amax(0), 0.5) or bounding_box(seen.amax(0), 0.0)
        place = crops.surround(around, rows, columns, context, also, shape)
        if crop != ALWAYS and around["width"] * around["height"] * 4 >= columns * rows:
            place = crops.surround(crops.whole(rows, columns), rows, columns, 0, None, shape) if shape else crops.whole(rows, columns)
        size = shape or crops.painting_size(place, resolution)
        cut_mask = crops.within(masks, place)
        if not bool(cut_mask.any()):
            raise ValueError(
                f"the mask lies outside of {describe(around)} and its surroundings, so nothing would be painted. Wire the box of this "
                "mask, or leave bboxes unwired and box empty."
            )
        piece = crops.scale(crops.cut(crops.extended(picture, sides), place), *size)
        info = crops.Crop(place, height, width, cut_mask, sides, size)
        return io.NodeOutput(piece, resize(cut_mask, *size), info, ui=received(picture, cls.hidden))


def _shape(width: Any, height: Any) -> tuple[int, int] | None:
    """The exact size (height, width) of the piece; None if none is asked."""
    columns = checks.whole(width, "output_width", NAME, 0, MOST_PIXELS)
    rows = checks.whole(height, "output_height", NAME, 0, MOST_PIXELS)
    if bool(columns) != bool(rows):
        given, missing = ("output_width", "output_height") if columns else ("output_height", "output_width")
        raise ValueError(f"{NAME}: {given} is {columns or rows} but {missing} is 0. Give both for an exact size, or neither.")
    if not columns:
        return None
    if columns % 8 or rows % 8:
        raise ValueError(
            f"{NAME}: an exact size of {columns}x{rows} would be cut by the VAE, and the piece would shift. Both must be multiples of 8: "
            f"{max(8, round(columns / 8) * 8)}x{max(8, round(rows / 8) * 8)} would do."
        )
    return rows, columns


def _canvas(sides: crops.Sides, height: int, width: int) -> Box:
    """The extended picture's place in the picture's pixels."""
    left, top, right, bottom = sides
    return {"x": -left, "y": -top, "width": width + left + right, "height": height + top + bottom}


def _check_place(box: Box, canvas: Box) -> None:
    """ValueError in the numbers that were given, where the box lies outside of the extended picture."""
    right, bottom = canvas["x"] + canvas["width"], canvas["y"] + canvas["height"]
    if box["x"] >= right or box["y"] >= bottom or box["x"] + box["width"] <= canvas["x"] or box["y"] + box["height"] <= canvas["y"]:
        raise ValueError(
            f"{NAME}: {describe(box)} lies outside of the extended picture, which reaches from x={canvas['x']}, y={canvas['y']} to "
            f"x={right}, y={bottom}."
        )


def _boxes(bboxes: Any, batch: int) -> list[Box]:
    """All wired boxes, whichever picture they are for."""
    return [box for boxes in checks.boxes(bboxes, batch, "bboxes", NAME) for box in boxes] if bboxes is not None else []


def _around(masks: torch.Tensor, boxes: list[Box], sides: crops.Sides) -> Box:
    """The box to crop around, in the extended picture's pixels: around the given ones and whatever is new, else around the masks."""
    rows, columns = masks.shape[1:]
    left, top, right, bottom = sides
    around = masks.amax(0)
    if boxes:
        height = rows - top - bottom
        width = columns - left - right
        for box in boxes if any(sides) else ():
            _check_place(box, _canvas(sides, height, width))
        given: list[Box] = [{**box, "x": box["x"] + left, "y": box["y"] + top} for box in boxes]
        new = crops.extended_mask(torch.zeros(1, height, width), sides)
        around = torch.cat([new, *(box_mask(clip_box(box, rows, columns, NAME), rows, columns) for box in given)]).amax(0)
    found = bounding_box(around, 0.5) or bounding_box(around, 0.0)
    if found is None or not bool(masks.any()):
        raise ValueError(
            f"the mask ({columns}x{rows}) is empty, so there is nothing to crop around. Paint a mask, or make one with Box Mask."
        )
    return found


def _fitted(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The masks at the picture's size. ValueError if they are of another shape (sides rounded to a multiple of 8 are let pass)."""
    rows, columns = masks.shape[1:]
    if not of_one_shape((rows, columns), (height, width)) and bool(masks.any()):
        raise ValueError(
            f"the mask is {columns}x{rows} but the picture is {width}x{height}: their shapes differ, so the mask would land in the wrong "
            "place. Make the mask from this picture, or scale both alike."
        )
    return resize(masks, height, width)


NODES: list[type[io.ComfyNode]] = [CropAroundBox]
