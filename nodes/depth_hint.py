"""Depth Hint: the ControlNet picture of the generation module."""

# A node's execute takes its own inputs by name, which differs from the base class by design.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..images import depth_hint
from ..images.crops import scale
from ..images.masks import resize
from . import checks
from .meca import CATEGORY

log = logging.getLogger(__name__)

NAME = "Depth Hint"
SURROUNDINGS = "surroundings"
FAR = "far"


class DepthHint(io.ComfyNode):
    """The reference's depth behind the product's depth."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskPromptDepthHint",
            display_name="Depth Hint",
            category=CATEGORY,
            description="Puts a product's depth map before a reference picture's: one picture for a depth ControlNet, which keeps the "
            "product's outline and gives it the reference's space.",
            search_aliases=["depth controlnet", "merge depth maps", "depth composite", "product photo", "controlnet hint"],
            inputs=[
                io.Image.Input(
                    "reference_depth",
                    tooltip="The space that is painted: the reference picture's depth map, from any depth node.",
                ),
                io.Image.Input(
                    "foreground_depth",
                    tooltip="The product's form: its depth map, of the size of the picture that is painted.",
                ),
                io.Mask.Input("foreground_mask", tooltip="White is where the product is in the painted picture. Any size of that shape."),
                io.Mask.Input(
                    "reference_mask",
                    optional=True,
                    tooltip="White is what counts of the reference, as in Hide in Reference: black out the reference's own product.",
                ),
                io.Combo.Input(
                    "hidden",
                    options=[SURROUNDINGS, FAR],
                    default=SURROUNDINGS,
                    optional=True,
                    tooltip="What takes the place of the reference's hidden parts. surroundings: the depth around them, smoothly, so that "
                    "no ghost of the hidden product remains. far: black, the masked map of the paper.",
                ),
                io.Combo.Input(
                    "near",
                    options=["white", "black"],
                    default="white",
                    optional=True,
                    tooltip="How the given maps paint what is near, so that front and back are not swapped. white: as most depth nodes "
                    "do and ControlNets want. black: these are turned round.",
                ),
                io.Boolean.Input(
                    "normalise",
                    default=True,
                    optional=True,
                    tooltip="Gives the hint its full depth: both maps are stretched to their full range first, each on what counts of "
                    "it. Off: take them as they are, for maps that are on one scale already.",
                ),
                io.Float.Input(
                    "foreground_far", default=0.5, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="How deep in the scene the product ends: where its farthest point lies in the hint; 0 is the reference's "
                    "farthest point, 1 its nearest.",
                ),
                io.Float.Input(
                    "foreground_near", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="How near in the scene the product begins: where its nearest point lies in the hint. As large as "
                    "foreground_far or larger.",
                ),
                io.Int.Input(
                    "feather", default=4, min=0, max=256, optional=True, advanced=True,
                    tooltip="Softens the step from product to space: over so many pixels, inside the product's mask, its depth rises "
                    "from the reference's. 0 is a sharp edge.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="The depth picture for Apply ControlNet with a depth ControlNet.")],
        )  # fmt: skip

    @classmethod
    @override
    def execute(
        cls,
        reference_depth: torch.Tensor,
        foreground_depth: torch.Tensor,
        foreground_mask: torch.Tensor,
        reference_mask: torch.Tensor | None = None,
        hidden: str = SURROUNDINGS,
        near: str = "white",
        normalise: bool = True,
        foreground_far: float = 0.5,
        foreground_near: float = 1.0,
        feather: int = 4,
    ) -> io.NodeOutput:
        reference_depth = checks.image(reference_depth, "reference_depth", NAME, finite=False)
        foreground_depth = checks.image(foreground_depth, "foreground_depth", NAME, finite=False)
        checks.choice(hidden, "hidden", NAME, (SURROUNDINGS, FAR))
        checks.choice(near, "near", NAME, ("white", "black"))
        foreground_far = checks.number(foreground_far, "foreground_far", NAME, 0, 1)
        foreground_near = checks.number(foreground_near, "foreground_near", NAME, 0, 1)
        feather = checks.whole(feather, "feather", NAME, 0, 16384)
        if foreground_far > foreground_near:
            raise ValueError(
                f"foreground_far ({foreground_far:g}) is larger than foreground_near ({foreground_near:g}): the product would be inside "
                "out. Swap them."
            )
        size = (foreground_depth.shape[1], foreground_depth.shape[2])
        device = foreground_depth.device
        reference_depth = reference_depth.to(device)
        product = _mask(foreground_mask, size, "foreground_mask").to(device)
        visible = torch.ones_like(product[:1]) if reference_mask is None else _mask(reference_mask, size, "reference_mask").to(device)
        _check_shape((reference_depth.shape[1], reference_depth.shape[2]), size, "reference_depth")
        maps = [depth_hint.grey(picture) for picture in (scale(reference_depth[..., :3], *size), foreground_depth)]
        if near == "black":
            maps = [1 - depth for depth in maps]
        if not bool((product >= 0.5).any()):
            log.warning("Depth Hint: foreground_mask is empty, so the hint is the reference's depth alone")
        if not bool((visible >= 0.5).any()):
            log.warning("Depth Hint: reference_mask is empty, so everything around the product is far")
        count = max(len(part) for part in (*maps, product, visible))
        reference, foreground, product, visible = (part[torch.arange(count) % len(part)] for part in (*maps, product, visible))
        placed = (foreground_far, foreground_near) if normalise else None
        result = depth_hint.hint(reference, visible >= 0.5, foreground, product, placed, hidden == SURROUNDINGS, feather)
        return io.NodeOutput(result[..., None].expand(-1, -1, -1, 3).contiguous())


def _mask(mask: torch.Tensor, size: tuple[int, int], name: str) -> torch.Tensor:
    """The mask in the hint's size; ValueError if it is of another shape."""
    found = checks.mask(mask, name, NAME)
    if bool(found.any()):
        _check_shape((found.shape[1], found.shape[2]), size, name)
    return resize(found, *size)


def _check_shape(given: tuple[int, int], size: tuple[int, int], name: str) -> None:
    """ValueError if a picture of `given` (height, width) cannot be scaled to `size` without distorting it by more than a pixel or 1 %."""
    height, width = given[0] * size[1] / given[1], given[1] * size[0] / given[0]
    if abs(height - size[0]) > max(1.01, 0.01 * size[0]) and abs(width - size[1]) > max(1.01, 0.01 * size[1]):
        raise ValueError(
            f"{name} is {given[1]}x{given[0]} but foreground_depth is {size[1]}x{size[0]}: their shapes differ, so it would be distorted. "
            "Crop both to one shape first."
        )


NODES: list[type[io.ComfyNode]] = [DepthHint]
