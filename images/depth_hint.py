"""One ControlNet picture from two depth maps: the generation module's input ("Patch-enhanced Mask Encoder Prompt Image Generation", 3.4).

The paper gives its control network "a masked reference depth map and a foreground depth map". Depth here is float [B, H, W] in 0..1, white
near, black far, as the depth ControlNets were trained. Pure tensor work, no ComfyUI.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .crops import feathered

FLAT = 1e-6


def grey(image: Tensor) -> Tensor:
    """IMAGE [B, H, W, 1, 3 or 4] -> [B, H, W]: the mean of the colours, without an alpha channel. NaN counts as 0."""
    return torch.nan_to_num(image[..., :3].float(), nan=0.0).mean(-1).clamp(0, 1)


def normalised(depth: Tensor, where: Tensor) -> Tensor:
    """Depth stretched so that its farthest point in `where` (bool [B, H, W]) is 0 and its nearest 1; 1 everywhere if it is flat there.

    Depth estimators give depth only up to a scale and an offset of their own, so two maps can be compared no other way. What lies
    outside of `where` is clamped. Without any point in `where` the depth stays as it is.
    """
    far = torch.where(where, depth, torch.inf).amin((1, 2), keepdim=True)
    near = torch.where(where, depth, -torch.inf).amax((1, 2), keepdim=True)
    stretched = ((depth - far) / (near - far).clamp(min=FLAT)).clamp(0, 1)
    stretched = torch.where(near - far < FLAT, torch.ones_like(depth), stretched)
    return torch.where(where.any(2, keepdim=True).any(1, keepdim=True), stretched, depth)


def filled(depth: Tensor, known: Tensor) -> Tensor:
    """Depth with what is not `known` (bool [B, H, W]) taken smoothly from its surroundings; what is known stays. 0 where nothing is known.

    Means of the known pixels at halves, quarters, … of the size; each hole takes the finest of these that has something to say.
    """
    weight = known.to(depth)[:, None]
    return torch.where(known, depth, _spread(depth[:, None] * weight, weight)[:, 0])


def _spread(total: Tensor, weight: Tensor) -> Tensor:
    """`total / weight` where there is weight, and the coarser levels' values where there is none: [B, 1, H, W]."""
    height, width = total.shape[2:]
    mean = total / weight.clamp(min=FLAT)
    if height == 1 and width == 1:
        return mean
    padding = (0, width % 2, 0, height % 2)
    coarse = _spread(*(F.avg_pool2d(F.pad(part, padding), 2) for part in (total, weight)))
    grown = F.interpolate(coarse, size=(height + height % 2, width + width % 2), mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.where(weight > 0, mean, grown)


def hint(
    reference: Tensor,
    visible: Tensor,
    foreground: Tensor,
    product: Tensor,
    placed: tuple[float, float] | None = (0.5, 1.0),
    fill: bool = True,
    feather: int = 0,
) -> Tensor:
    """The picture's depth [B, H, W]: the visible reference, and the product before it. All [B, H, W] of one size.

    `visible` (bool): what of the reference counts; the rest is filled from its surroundings, or far (0) without `fill`. `product` (0..1):
    where the foreground is, its edge softened over `feather` pixels inwards. `placed`: the foreground's farthest and nearest point in
    the hint; both maps are normalised on what counts of them. None takes both as they are.
    """
    if placed is not None:
        reference = normalised(reference, visible)
        foreground = placed[0] + (placed[1] - placed[0]) * normalised(foreground, product >= 0.5)
    behind = filled(reference, visible) if fill else torch.where(visible, reference, torch.zeros_like(reference))
    alpha = feathered(product, feather)
    return torch.where(alpha > 0, torch.lerp(behind, foreground, alpha), behind)
