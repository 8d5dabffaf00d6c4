"""Paste Back: the painted piece in its place, and all else as it was."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..images import crops, mend
from . import checks
from .crop import CATEGORY, MOST_PIXELS, CropType
from .progress import say

NAME = "Paste Back"
OFF = "off"
PLACE = "shift and zoom"
PLACE_AND_TINT = "shift, zoom and tint"


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
            search_aliases=["inpaint", "stitch", "inpaint stitch", "uncrop", "composite", "crop and stitch"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture that Crop Around Box was given."),
                io.Image.Input("painted", tooltip="The painted piece, of any size."),
                CropType.Input("crop", tooltip="Where the piece belongs: from Crop Around Box."),
                io.Int.Input(
                    "feather", default=4, min=0, max=512,
                    tooltip="Softens the seam: the width of the soft edge in pixels of the whole picture. It lies inside the mask.",
                ),
                io.Combo.Input(
                    "undo", options=[OFF, PLACE, PLACE_AND_TINT], default=OFF, optional=True,
                    tooltip="Makes the seam fit where an edit model moved, zoomed or tinted what it was to leave alone. The node "
                    "measures that around the mask and says it below. off: it is only said. shift and zoom: the piece is moved "
                    "and scaled back. shift, zoom and tint: its colours too. Needs surroundings in the crop.",
                ),
                io.Boolean.Input(
                    "match_colour", default=False, optional=True,
                    tooltip="Brings the painted piece to the colours that the picture has at the mask's edge, so that no seam shows.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture with the painted piece.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @override
    def execute(
        cls, image: torch.Tensor, painted: torch.Tensor, crop: crops.Crop, feather: int, undo: str = OFF, match_colour: bool = False
    ) -> io.NodeOutput:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar

        picture, piece = checks.image(image, "image", NAME), checks.image(painted, "painted", NAME)
        feather = checks.whole(feather, "feather", NAME, 0, MOST_PIXELS)
        checks.choice(undo, "undo", NAME, (OFF, PLACE, PLACE_AND_TINT))
        if not isinstance(crop, crops.Crop):
            raise ValueError(f"{NAME}: crop must come from Crop Around Box, got {type(crop).__name__}.")
        if tuple(picture.shape[1:3]) != (crop.height, crop.width):
            raise ValueError(
                f"the crop was cut from a picture of {crop.width}x{crop.height} pixels, but this one is {picture.shape[2]}x"
                f"{picture.shape[1]}. Wire the same picture here as to Crop Around Box."
            )
        _check_counts(len(picture), len(piece))
        place = crop.place
        stretch = piece.shape[2] * place["height"] / (piece.shape[1] * place["width"])
        if not 0.8 < stretch < 1.25:
            raise ValueError(
                f"the painted piece is {piece.shape[2]}x{piece.shape[1]} pixels, but its place in the picture is "
                f"{place['width']}x{place['height']}: their shapes differ. Wire what was painted on the crop."
            )
        under = crops.cut(crops.extended(picture, crop.extended), place)
        piece = crops.uncut(piece, under, crop)
        bar = ProgressBar(max(len(under), len(piece)))

        def after(done: int) -> None:
            bar.update_absolute(done)
            throw_exception_if_processing_interrupted()

        mended, reports = mend.mended(under, piece, crop.outside, undo != OFF, undo == PLACE_AND_TINT, bool(match_colour), after)
        text = _in_words(reports, undo)
        say(cls.hidden.unique_id if cls.hidden else None, text)
        return io.NodeOutput(crops.paste(picture, mended, crop, feather), ui=ui.PreviewText(text))


def _in_words(reports: list[mend.Report], undo: str) -> str:
    """What was found, a line for each picture, and what became of it."""
    lines = [report.sentence + _done(report, undo) for report in reports]
    return "\n".join(lines if len(lines) == 1 else [f"Picture {number}: {line}" for number, line in enumerate(lines, 1)])


def _done(report: mend.Report, undo: str) -> str:
    """What became of what was found: a sentence, or nothing where nothing was."""
    if undo == PLACE:
        moved = " Shift and zoom are taken back." if report.moved else ""
        return moved + (f" {PLACE_AND_TINT} would take the colours back too." if report.tinted else "")
    if not (report.moved or report.tinted):
        return ""
    return " undo can take this back." if undo == OFF else " Taken back."


def _check_counts(pictures: int, pieces: int) -> None:
    """ValueError if pieces would come on pictures that are not theirs."""
    fewer, more = sorted((pictures, pieces))
    if more % fewer:
        raise ValueError(
            f"there are {pieces} painted pieces for {pictures} pictures, so it is not told which piece is of which picture. A video model "
            f"paints 4n + 1 frames (here {(pictures - 1) // 4 * 4 + 1}): cut the pictures to as many before Crop Around Box."
        )


NODES: list[type[io.ComfyNode]] = [PasteBack]
