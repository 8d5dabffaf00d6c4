"""Mask-ControlNet: an object of one picture, unchanged in new surroundings. Load Mask-ControlNet, Object Hint, Save Mask-ControlNet."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..images.masks import match_batch, resize, to_mask
from ..models import files
from . import inputs
from .checked import checked
from .saving import free_path

log = logging.getLogger(__name__)

CATEGORY = "MaskPrompt/Keep a product"
FOLDER = "controlnet"
SUFFIXES = frozenset({".safetensors", ".sft"})
NO_FILES = "no control network found: put one into models/controlnet"
ADVICE = (
    "Put a file from Train Mask-ControlNet, or a control network with a latent hint as `diffusers` saves it (a folder with its "
    "config.json), into ComfyUI/models/controlnet, and press R in the browser to refresh the list."
)
ONE_FILE = "one file"
DIFFUSERS = "diffusers folder"
AdapterType = io.Custom("MASKPROMPT_MASK_ADAPTER")


class LoadMaskControlNet(io.ComfyNode):
    """Control network and adapter from one file."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptLoadMaskControlNet",
            display_name="Load Mask-ControlNet",
            category=CATEGORY,
            description="Loads a control network that keeps an object of a picture while everything else is painted anew, and the adapter "
            "that makes its hint. For SD 1.5, SD 2.1 and SDXL, whichever the file was trained on.",
            search_aliases=["mask controlnet", "controlnet", "product", "keep product", "product photography", "object preservation"],
            inputs=[
                io.Combo.Input(
                    "mask_controlnet_name", options=files.list_files(FOLDER, SUFFIXES) or [NO_FILES],
                    tooltip="What keeps the object: a .safetensors file in ComfyUI/models/controlnet, or in output/controlnet, where "
                    "Save Mask-ControlNet saves.",
                ),
            ],
            outputs=[
                io.ControlNet.Output("control_net", display_name="control_net", tooltip="For Apply ControlNet, with its vae connected."),
                AdapterType.Output("adapter", display_name="adapter", tooltip="For Object Hint, which makes the hint."),
            ],
        )  # fmt: skip

    @classmethod
    @override
    def validate_inputs(cls, mask_controlnet_name: str | None) -> bool | str:
        return inputs.there(lambda name: files.find_file(FOLDER, name, ADVICE), mask_controlnet_name)

    @classmethod
    @override
    def fingerprint_inputs(cls, mask_controlnet_name: str | None) -> str:
        """Another text when the file was written anew, as a training under the same name does."""
        return "" if mask_controlnet_name is None else files.stamp(files.find_file(FOLDER, mask_controlnet_name, ADVICE))

    @classmethod
    @override
    @checked
    def execute(cls, mask_controlnet_name: str) -> io.NodeOutput:
        from ..models.mask_controlnet import control as mask_controlnet

        control, adapter = mask_controlnet.load(files.find_file(FOLDER, mask_controlnet_name, ADVICE))
        return io.NodeOutput(control, adapter)


class MaskConcat(io.ComfyNode):
    """The object's image beside the reference, through the adapter."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptMaskConcat",
            display_name="Object Hint",
            category=CATEGORY,
            description="Puts the object, cut out by its mask, beside the picture it is from, and makes of both the hint for a "
            "Mask-ControlNet. The mask chooses: of several objects, the one that it marks is kept.",
            search_aliases=[
                "mask concat", "mask controlnet hint", "product", "mask", "object prompt", "mask prompt", "controlnet preprocessor",
                "keep object",
            ],
            inputs=[
                AdapterType.Input(
                    "adapter",
                    tooltip="What makes the hint of the object: from Load Mask-ControlNet, or Train Mask-ControlNet.",
                ),
                io.Image.Input("image", tooltip="The picture with the object that is kept (the reference), or a batch of them."),
                io.Mask.Input(
                    "mask",
                    tooltip="Chooses what is kept: white where the object is. From SAM Mask, or painted. Of the picture's shape; one for "
                    "each or for all.",
                ),
            ],
            outputs=[
                io.Image.Output("hint", display_name="hint", tooltip="For Apply ControlNet's image input; its vae must be connected."),
                io.Image.Output("object_image", display_name="object image", tooltip="What the mask cuts out, on black."),
            ],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(cls, adapter: Any, image: torch.Tensor, mask: torch.Tensor) -> io.NodeOutput:
        picture = image[..., :3].float()
        marked = fitting(to_mask(mask), picture)
        return io.NodeOutput(adapter.hint(picture, marked), picture * marked[..., None])


class SaveMaskControlNet(io.ComfyNode):
    """Control network and adapter to one file, or in the layout of `diffusers`."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptSaveMaskControlNet",
            display_name="Save Mask-ControlNet",
            category=CATEGORY,
            description="Saves a control network and its adapter into ComfyUI's output folder, where Load Mask-ControlNet finds them. "
            "No file is overwritten.",
            search_aliases=["save controlnet", "export controlnet", "diffusers controlnet"],
            is_output_node=True,
            inputs=[
                io.ControlNet.Input("control_net", tooltip="What keeps the object: from Train Mask-ControlNet, or Load Mask-ControlNet."),
                AdapterType.Input("adapter", tooltip="What makes its hint: from the same node."),
                io.String.Input(
                    "filename_prefix", default=f"{FOLDER}/mask-controlnet",
                    tooltip="The file's name; a number is added. Keep `controlnet/` before it, or Load Mask-ControlNet will not list it.",
                ),
                io.Combo.Input(
                    "layout", options=[ONE_FILE, DIFFUSERS], default=ONE_FILE,
                    tooltip="Where the file can be used. one file: both, for Load Mask-ControlNet. diffusers folder: the control "
                    "network for diffusers' ControlNetModel, with the adapter in a file beside it.",
                ),
            ],
            outputs=[],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(cls, control_net: Any, adapter: Any, filename_prefix: str, layout: str) -> io.NodeOutput:
        from ..models.mask_controlnet import control as mask_controlnet
        from ..models.mask_controlnet import file as mask_controlnet_file

        if not isinstance(control_net, mask_controlnet.MaskControl):
            raise ValueError("this control_net is no Mask-ControlNet: wire Train Mask-ControlNet or Load Mask-ControlNet.")
        content = mask_controlnet.content_of(control_net, adapter)
        path = free_path(filename_prefix, f"{FOLDER}/my-product")
        if layout == DIFFUSERS:
            path = path.with_suffix("")
        try:
            (mask_controlnet_file.save_diffusers if layout == DIFFUSERS else mask_controlnet_file.save)(content, path)
        except Exception as error:  # safetensors has errors of its own
            raise ValueError(
                f"the control network could not be written to {path}: {error}. Is the disk full? Free some space and press Run: it is "
                "still there, and only the saving is repeated."
            ) from error
        log.info("Saved %s.", path)
        return io.NodeOutput(ui=ui.PreviewText(str(path)))


def fitting(mask: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Masks [b, h, w] for pictures [B, H, W, 3]: [B, H, W]. ValueError for another shape than theirs; a warning if nothing is marked.

    A mask of the same shape but another size is scaled; one pixel more or less of rounding, in each of the two, is borne.
    """
    (height, width), (rows, columns) = image.shape[1:3], mask.shape[1:]
    slack = 1 + max(height / rows, width / columns)
    off = abs(rows * width / columns - height) > slack and abs(columns * height / rows - width) > slack
    if off and bool(mask.any()):
        raise ValueError(
            f"the picture is {width} x {height} pixels but its mask {columns} x {rows}: make the mask from the same "
            "picture, before or after both are resized."
        )
    marked = match_batch(resize(mask, height, width), len(image)).to(image.device)
    empty = [number for number, one in enumerate(marked, 1) if not bool((one > 0.5).any())]
    if empty:
        log.warning(
            "Object Hint: the mask of picture %s marks nothing, so no object is kept: point SAM Mask at it, or paint it white.",
            ", ".join(map(str, empty)),
        )
    return marked


NODES: list[type[io.ComfyNode]] = [LoadMaskControlNet, MaskConcat, SaveMaskControlNet]
