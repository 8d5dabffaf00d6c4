"""The nodes: one file per method, each with a `NODES` list."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from . import (
    attention_map,
    caption,
    crop,
    depth_hint,
    dreamcom,
    mask_controlnet,
    mask_grid,
    mcgm,
    meca,
    paste_back,
    patch_visibility,
    pointing,
    prompt_region,
    reference_region,
    sample_pictures,
    score_against,
    score_pictures,
    segment,
    train_dreamcom,
    train_mask_controlnet,
    train_mcgm,
    train_meca,
)

NODES: list[type[io.ComfyNode]] = [
    *segment.NODES, *dreamcom.NODES, *train_dreamcom.NODES, *crop.NODES, *paste_back.NODES,
    *mask_controlnet.NODES, *train_mask_controlnet.NODES, *caption.NODES, *mcgm.NODES, *train_mcgm.NODES,
    *patch_visibility.NODES, *meca.NODES, *prompt_region.NODES, *reference_region.NODES, *train_meca.NODES, *depth_hint.NODES,
    *mask_grid.NODES,
    *attention_map.NODES, *score_pictures.NODES, *score_against.NODES,
]  # fmt: skip


class MaskPromptExtension(ComfyExtension):
    @override
    async def on_load(self) -> None:
        """Add the route that answers to clicks, before the server starts, and put the templates' pictures where they look for them."""
        pointing.register()
        sample_pictures.place_at_start()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
