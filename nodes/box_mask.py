"""Box Mask: a rectangle as a mask."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..images import masks
from . import checks
from .shown_picture import received

log = logging.getLogger(__name__)

NAME = "Box Mask"
MAX_SIZE = 16384


def _pixels(name: str, default: int, least: int, tooltip: str, **more: Any) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=least, max=MAX_SIZE, optional=True, tooltip=tooltip, **more)


class MaskPromptBoxMask(io.ComfyNode):
    """A rectangle, from numbers or from wired boxes, to a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptBoxMask",
            display_name="Box Mask",
            category="MaskPrompt/Cut out",
            description="A mask that is 1 inside a box and 0 outside. Drag the box over the picture (Draw the box in the picture), type "
            "its numbers, or wire boxes.",
            search_aliases=["mask", "inpaint", "rectangle mask", "bounding box to mask", "bbox mask", "square mask"],
            inputs=[
                _pixels("x", 128, -MAX_SIZE, "The box's left edge in pixels."),
                _pixels("y", 128, -MAX_SIZE, "The box's upper edge in pixels."),
                _pixels("width", 256, 0, "The box's width in pixels."),
                _pixels("height", 256, 0, "The box's height in pixels."),
                _pixels("image_width", 512, 1, "The mask's width. Not used when an image is wired."),
                _pixels("image_height", 512, 1, "The mask's height. Not used when an image is wired."),
                _pixels(
                    "feather",
                    0,
                    0,
                    "Softens the box's edge: the mask rises from 0 to 1 over so many pixels inside the box. 0: a hard edge.",
                ),
                io.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    force_input=True,
                    tooltip="Boxes used instead of the numbers. Several boxes are united; a list per picture gives a mask per picture.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The mask takes the size of this picture, and one mask per picture is made."
                ),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="mask", tooltip="The box as a mask of the picture's size."),
                io.BoundingBox.Output("bbox", display_name="bbox", tooltip="The box that was used, cut off at the picture's edge."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        x: int = 128,
        y: int = 128,
        width: int = 256,
        height: int = 256,
        image_width: int = 512,
        image_height: int = 512,
        feather: int = 0,
        bboxes: Any = None,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if image is None:
            rows = checks.whole(image_height, "image_height", NAME, 1, MAX_SIZE)
            columns = checks.whole(image_width, "image_width", NAME, 1, MAX_SIZE)
            batch = masks.frames_in(bboxes)
        else:
            batch, rows, columns = checks.image(image, "image", NAME, finite=False).shape[:3]
        feather = checks.whole(feather, "feather", NAME, 0, MAX_SIZE)
        given = {"x": x, "y": y, "width": width, "height": height} if bboxes is None else bboxes
        named = checks.boxes(given, batch, "the box" if bboxes is None else "bboxes", NAME)
        frames = [[masks.clip_box(box, rows, columns, NAME) for box in boxes] for boxes in named]
        if not any(frames):
            raise ValueError(
                "Box Mask: the list of boxes is empty. What made it found nothing; wire another box, or use x, y, width, height."
            )
        if not all(frames):
            log.warning("Box Mask: some pictures have no box, their masks are empty")
        union = [
            torch.stack([torch.zeros(1, rows, columns), *(masks.box_mask(b, rows, columns, feather) for b in boxes)]).amax(dim=0)
            for boxes in frames
        ]
        return io.NodeOutput(torch.cat(union), masks.boxes_output(frames), ui=received(image, cls.hidden))
