"""Seeing what the other nodes do."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..attention import families, grid, layers
from ..images.masks import to_mask
from . import inputs
from .checked import checked

PANEL = 256
TITLE = 38
GAP = 8
INSIDE = (255, 255, 255)
PARTLY = (70, 110, 200)
OUTSIDE = (24, 24, 28)
BEHIND = (44, 44, 50)


class MaskGrid(io.ComfyNode):
    """The mask as each layer of the model sees it."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptMaskGrid",
            display_name="Mask Grid",
            category="MaskPrompt/See and measure",
            description="Shows a mask on the grid of every attention layer: white cells count as inside, blue ones are partly covered "
            "and count as outside. Fine details of a mask are lost where the cells are large.",
            search_aliases=["mask preview", "attention mask", "latent mask", "mask resolution", "debug mask"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose layers are shown."),
                io.Mask.Input("mask", tooltip="The mask, as Masked Attention gets it. Of a batch the first is shown."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latent that is painted, if its size is not the mask's size divided by 8 (16 for FLUX.2).",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="A panel for each grid size, titled with its layers.")],
            is_output_node=True,
        )

    @classmethod
    @override
    @checked
    def execute(cls, model: Any, mask: torch.Tensor, latent: dict[str, torch.Tensor] | None = None) -> io.NodeOutput:
        inputs.known_layers(model)
        picture = to_mask(mask)[:1].cpu()
        pixels = inputs.latent_pixels(model)
        size = tuple(latent["samples"].shape[-2:]) if latent is not None else tuple(max(1, n // pixels) for n in picture.shape[1:])
        image = draw(picture[0], (size[0], size[1]), families.levels_of(model.get_model_object("diffusion_model")))
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def draw(mask: torch.Tensor, latent: grid.Size, levels: dict[layers.Layer, int]) -> torch.Tensor:
    """A panel for each grid, side by side: IMAGE [1, H, W, 3]. A cell is a square of whole pixels, so that cells can be counted.

    `mask` is [H, W] in 0..1, `latent` a height and width; `levels` says how often each layer's grid is the latent's halved. Raises
    ValueError if mask and latent are of different shapes.
    """
    from PIL import Image, ImageDraw

    if bool(mask.any()):
        grid.check_aspect((mask.shape[0], mask.shape[1]), latent)
    panels = []
    for level in sorted(set(levels.values())):
        cells = (grid.halved(latent[0], level), grid.halved(latent[1], level))
        covered = grid.to_grid(mask, latent, (0, 0, *latent), cells)
        inside = grid.binary(covered, mask)
        colours = np.asarray(OUTSIDE) + (np.asarray(PARTLY) - OUTSIDE) * covered.clamp(0, 1)[..., None].numpy()
        colours[inside.numpy()] = INSIDE
        scale = max(1, PANEL // max(cells))
        shape = cells[1] * scale, cells[0] * scale
        panel = Image.new("RGB", (max(shape[0], PANEL) + GAP, shape[1] + TITLE), BEHIND)
        panel.paste(Image.fromarray(colours.astype(np.uint8)).resize(shape, Image.Resampling.NEAREST), (0, TITLE))
        names = dict.fromkeys(f"{name} {block}" for (name, block, _), at in levels.items() if at == level)
        pen = ImageDraw.Draw(panel)
        pen.text((4, 3), f"{cells[1]} x {cells[0]} cells, {int(inside.sum())} inside", fill=(235, 235, 235))
        pen.text((4, 19), _shortened(list(names)), fill=(170, 175, 185))
        panels.append(panel)
    picture = Image.new("RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)), BEHIND)
    for index, panel in enumerate(panels):
        picture.paste(panel, (sum(left.width for left in panels[:index]), 0))
    return torch.from_numpy(np.asarray(picture, np.float32))[None] / 255


def _shortened(names: list[str]) -> str:
    """ "input 1, input 2, output 9" as "input 1 2, output 9"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        part, block = name.split()
        groups.setdefault(part, []).append(block)
    return ", ".join(f"{part} {' '.join(blocks)}" for part, blocks in groups.items())


NODES: list[type[io.ComfyNode]] = [MaskGrid]
