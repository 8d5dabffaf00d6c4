"""Patch-enhanced mask encoder prompt: image prompts from a part of a picture."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..models.clip_vision import patch_grid, patch_visibility
from .checked import checked

CATEGORY = "MaskPrompt/Reference pictures"


class PatchVisibility(io.ComfyNode):
    """CLIP vision that sees only what a mask shows."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptPatchVisibility",
            display_name="Hide in Reference",
            category=CATEGORY,
            description="Encodes a reference picture so that the vision model sees only the patches that a mask shows: a product without "
            "its shop, a style without the people in it. Use it in place of CLIP Vision Encode.",
            search_aliases=[
                "patch visibility", "patch flexible visibility", "clip vision encode", "clip vision mask", "masked image prompt",
                "mask reference", "reference", "mask",
            ],
            inputs=[
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="What looks at the reference: from Load CLIP Vision, the model that your adapter was made for.",
                ),
                io.Image.Input("image", tooltip="The reference picture, or a batch of them, of any size."),
                io.Mask.Input(
                    "mask",
                    tooltip="White is what the model may see. Of the picture's shape, in any size: one for all pictures, one for each, or "
                    "several for a single picture.",
                ),
                io.Float.Input(
                    "threshold", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="How strictly the mask's edge is kept: a patch is hidden when more than this part of it lies outside. 0 "
                    "hides every patch that is not wholly inside, 0.99 keeps nearly every patch that the mask touches.",
                ),
                io.Combo.Input(
                    "mode", options=list(patch_visibility.MODES), default=patch_visibility.HIDE,
                    tooltip="What happens to the hidden part. hide: it is gone, as if it had never been in the picture; faster too. "
                    "paper: it is blanked, and the model still sees that something blank is there (equation 1 of the paper).",
                ),
                io.Combo.Input(
                    "fit", options=list(patch_grid.FITS), default=patch_grid.CROP,
                    tooltip="How a picture that is not square comes to the model's square. crop: its middle, as CLIP Vision Encode does. "
                    "letterbox: all of it, smaller; the bars beside it are hidden.",
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="clip_vision_output",
                    tooltip="For Image Prompt Region, unCLIP Conditioning, Apply Style Model and others that come after "
                    "CLIP Vision Encode.",
                ),
                io.Image.Output(display_name="preview", tooltip="What the model saw, at its own resolution; hidden patches are grey."),
                io.Mask.Output(display_name="visible", tooltip="White where the preview is not grey: the patches that were seen."),
            ],
        )  # fmt: skip

    @classmethod
    @override
    @checked
    def execute(
        cls, clip_vision: Any, image: torch.Tensor, mask: torch.Tensor, threshold: float = 0.5, mode: str = "hide", fit: str = "crop"
    ) -> io.NodeOutput:
        return io.NodeOutput(*patch_visibility.encode(clip_vision, image, mask, threshold, mode, fit))


NODES: list[type[io.ComfyNode]] = [PatchVisibility]
