"""Segmentation nodes: Load SAM Model, SAM Mask, Box Mask."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..images import masks
from ..models import files
from ..models.sam import model as sam_models
from ..models.sam import prompts
from . import inputs
from .box_mask import MaskPromptBoxMask
from .checked import checked
from .progress import say
from .shown_picture import received

log = logging.getLogger(__name__)

CATEGORY = "MaskPrompt/Cut out"
SAM_FOLDER = "sams"
NO_FILES = "no SAM file found: put one into models/sams"
ADVICE = (
    "Put a SAM file into ComfyUI/models/sams, for example mobile_sam.pt (40 MB), sam_vit_b_01ec64.pth (375 MB), "
    "sam_vit_l_0b3195.pth (1.2 GB) or sam_vit_h_4b8939.pth (2.6 GB), and press R in the browser to refresh the list."
)
LEFT_OUT = (
    "rough_mask was left out: it reaches all four borders and no point lies in it, as where a picture is transparent. If you painted it, "
    "click on it too."
)
FILLS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "grey": (0.5, 0.5, 0.5),
    "green": (0.0, 1.0, 0.0),
    "transparent": (0.0, 0.0, 0.0),
}
SamType = io.Custom("MASKPROMPT_SAM")


class MaskPromptLoadSAM(io.ComfyNode):
    """A SAM from a file, told apart by its weights, under ComfyUI's memory management."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = files.list_files(SAM_FOLDER) or [NO_FILES]
        return io.Schema(
            node_id="MaskPromptLoadSAM",
            display_name="Load SAM Model",
            category=CATEGORY,
            description="Loads Segment Anything: ViT-B, ViT-L, ViT-H or MobileSAM. Which one a file holds is read from the file itself.",
            search_aliases=["sam", "segment anything", "sam loader", "mobilesam", "mobile sam", "vit_h", "vit_b"],
            inputs=[
                io.Combo.Input(
                    "sam_name",
                    options=names,
                    tooltip="Which SAM cuts out: the large ones (ViT-H, ViT-L) follow fine edges best, MobileSAM answers fastest. A "
                    ".pth, .pt or .safetensors file in ComfyUI/models/sams or a `sams` folder of extra_model_paths.yaml.",
                )
            ],
            outputs=[SamType.Output("sam", display_name="sam", tooltip="The model for SAM Mask. It remembers the last 8 pictures it saw.")],
        )

    @classmethod
    def validate_inputs(cls, sam_name: str | None) -> bool | str:
        return inputs.there(lambda name: files.find_file(SAM_FOLDER, name, ADVICE), sam_name)

    @classmethod
    @checked
    def execute(cls, sam_name: str) -> io.NodeOutput:
        return io.NodeOutput(sam_models.shared(files.find_file(SAM_FOLDER, sam_name, ADVICE)))


class MaskPromptSAMMask(io.ComfyNode):
    """Points, boxes or a rough painting to a mask, an object image and a box."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptSAMMask",
            display_name="SAM Mask",
            category=CATEGORY,
            description="Cuts out an object that you point at: with points, with boxes, or with a rough painting of it. The first prompt "
            "on a picture takes longest; further ones on the same picture are quick.",
            search_aliases=[
                "sam",
                "mask",
                "segment anything",
                "segment",
                "cut out",
                "click",
                "select object",
                "points to mask",
                "box to mask",
                "remove background",
            ],
            inputs=[
                SamType.Input("sam", tooltip="What does the cutting out: from Load SAM Model."),
                io.Image.Input("image", tooltip="The picture to cut out of, or a batch of pictures."),
                io.String.Input(
                    "positive_coords",
                    default="",
                    optional=True,
                    placeholder="points on the object: 120,80; 200,150",
                    tooltip="Marks what is cut out: points on it, in pixels. Click them in the picture below, type 120,80; 200,150, or "
                    'wire a points editor ([{"x": 120, "y": 80}, ...]).',
                ),
                io.String.Input(
                    "negative_coords",
                    default="",
                    optional=True,
                    placeholder="points beside the object: 10,10",
                    tooltip="Takes a part away: points that are not on the object, in the same form; right click or Alt-click them. "
                    "They go with a point on the object, a box or a painting.",
                ),
                io.Combo.Input(
                    "choice",
                    options=list(prompts.CHOICES),
                    default=prompts.WHOLE,
                    optional=True,
                    tooltip="How much a click cuts out. SAM offers three masks, often a part, the object, and all of it. Whole object: "
                    "the one at the first point that looks most like a whole object; further points mend it. Best score: the "
                    "one SAM trusts most (with a painting: that fits it best). Largest, smallest: by area. All: the three as a "
                    "batch, from small to large.",
                ),
                io.Combo.Input(
                    "fill",
                    options=list(FILLS),
                    default="white",
                    optional=True,
                    tooltip="What lies around the object in the object image. white, black, grey, green: this colour. transparent: "
                    "nothing, for pasting it elsewhere.",
                ),
                io.Float.Input(
                    "min_score",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Leaves out what SAM is not sure of: a mask that it scores lower counts as not found. 0 takes every mask.",
                ),
                io.Boolean.Input(
                    "clean",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="On: the mask is one piece, islands are taken off and holes filled; a point that is not on the object keeps "
                    "its hole open. Off: only specks and pinholes go.",
                ),
                io.String.Input(
                    "box",
                    default="",
                    optional=True,
                    placeholder="a box around the object: left,top,width,height",
                    tooltip="Marks what is cut out: a box around it, in pixels. Drag it over the picture below, or type 72,15,412,380 "
                    "(left, top, width, height). It joins the boxes at bboxes.",
                ),
                io.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    force_input=True,
                    tooltip="Cuts out what is in these boxes. Several are cut out one by one and united. With a list for each "
                    "picture, the last one counts for the pictures beyond.",
                ),
                io.Mask.Input(
                    "rough_mask",
                    optional=True,
                    tooltip="Cuts out what you painted roughly, or put a few strokes on (Load Image, right click, Open in MaskEditor). "
                    "Load Image's MASK may stay wired: where nothing is painted it counts as not given, nor does, beside points or a box, "
                    "a cut-out's transparent ground.",
                ),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="mask", tooltip="1 on the object, 0 elsewhere; one mask per picture, with All three."),
                io.Image.Output("object_image", display_name="object image", tooltip="The object on the chosen fill, one per mask."),
                io.BoundingBox.Output(
                    "bbox",
                    display_name="bbox",
                    tooltip="The box around the mask (all zeros if nothing was found); for several masks a list of boxes for each.",
                ),
                io.Float.Output("score", display_name="score", tooltip="SAM's own score of the mask, about 0 to 1; the lowest of a batch."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @checked
    def execute(
        cls,
        sam: sam_models.LoadedSam,
        image: torch.Tensor,
        positive_coords: str = "",
        negative_coords: str = "",
        choice: str = prompts.WHOLE,
        fill: str = "white",
        min_score: float = 0.0,
        clean: bool = True,
        box: str = "",
        bboxes: Any = None,
        rough_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        from comfy.model_management import intermediate_device, throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar

        requests = prompts.requests(image, positive_coords, negative_coords, bboxes, rough_mask, box)
        found = []
        scores = []
        lines = []
        progress = ProgressBar(len(requests))
        for index, request in enumerate(requests):
            throw_exception_if_processing_interrupted()
            mask, score = prompts.segment(sam, image[index], request, choice, min_score, clean)
            if not mask.any():
                log.warning("SAM Mask: nothing was found on picture %d of %d, its mask is empty", index + 1, len(requests))
            found.append(mask)
            scores += score
            lines.append(_told(mask, score, min_score, f"Picture {index + 1}: " if len(requests) > 1 else ""))
            progress.update(1)
        if any(request.left_out for request in requests):
            lines.append(LEFT_OUT)
            log.warning("SAM Mask: %s", LEFT_OUT)
        text = "\n".join(lines)
        say(getattr(cls.hidden, "unique_id", None), text)
        mask = torch.cat(found).to(intermediate_device())
        picture = image[..., :3].to(mask.device).expand(-1, -1, -1, 3)
        if len(mask) > len(picture):
            picture = picture.repeat_interleave(len(mask) // len(picture), dim=0)
        boxes = masks.boxes_output([[box] if box else [] for box in map(masks.bounding_box, mask)])
        shown = {"text": (text,), **received(image, cls.hidden)}
        return io.NodeOutput(mask, _on_fill(picture, mask, fill), boxes, min(scores), ui=shown)


def _told(mask: torch.Tensor, scores: list[float], least: float, which: str) -> str:
    """What was found on one picture, as the node shows it: of masks [K, H, W] the part of the picture, and SAM's scores."""
    if not mask.any():
        below = f" with a score of {least:g} or more" if least > 0 else ""
        return f"{which}nothing found{below}. Set a point on the middle of the object, or drag a box around it."
    parts = ", ".join(f"{float(one.mean()):.1%}" for one in mask)
    return f"{which}found {parts} of the picture, score {', '.join(f'{score:.2f}' for score in scores)}"


def _on_fill(picture: torch.Tensor, mask: torch.Tensor, fill: str) -> torch.Tensor:
    inside = mask[..., None]
    flat = torch.where(inside > 0, picture, torch.tensor(FILLS[fill]).to(picture))
    return torch.cat((flat, inside), dim=-1) if fill == "transparent" else flat


NODES: list[type[io.ComfyNode]] = [MaskPromptLoadSAM, MaskPromptSAMMask, MaskPromptBoxMask]
