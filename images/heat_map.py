"""Maps made visible. Pure tensor work, no ComfyUI."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Scale = Literal["each word", "all words alike", "share of attention"]
COLOURS = torch.tensor([(12, 12, 48), (90, 30, 130), (215, 70, 80), (250, 170, 60), (255, 250, 190)], dtype=torch.float32) / 255
"""From nothing to the most, evenly spaced."""
COVERED = 0.7
"""How much of the picture the colours cover."""


def scaled(maps: Tensor, scale: Scale) -> Tensor:
    """Maps [images, words, H, W] to 0..1: each by its own maximum, by the greatest of a picture's, or as they are. Empty stay empty."""
    if scale == "share of attention":
        return maps.clamp(0, 1)
    most = maps.amax((2, 3) if scale == "each word" else (1, 2, 3), keepdim=True)
    return (maps / most.clamp(min=torch.finfo(maps.dtype).tiny)).clamp(0, 1)


def masks_of(maps: Tensor, threshold: float, smallest: float) -> Tensor:
    """Maps [images, words, H, W] to masks of 0 and 1: white from `threshold` of each map's range (its least to its most) on.

    Pieces smaller than `smallest` of the picture are left out, but for the largest one. A map that is alike everywhere gives an empty mask.
    """
    from scipy import ndimage

    least, most = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    inside = ((maps >= least + threshold * (most - least)) & (most > least)).cpu().numpy()
    for one in inside.reshape(-1, *inside.shape[2:]):
        found: Any = ndimage.label(one)
        labels = found[0]
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        small = (sizes < smallest * one.size) & (np.arange(len(sizes)) != sizes.argmax())
        one &= ~small[labels]
    return torch.from_numpy(inside).to(maps)


def coloured(heat: Tensor) -> Tensor:
    """[…] in 0..1 to colours […, 3]."""
    place = heat.clamp(0, 1) * (len(COLOURS) - 1)
    below = place.long().clamp(max=len(COLOURS) - 2)
    colours = COLOURS.to(heat.device)
    return torch.lerp(colours[below], colours[below + 1], (place - below)[..., None].float())


def enlarged(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [images, words, h, w] smoothly at another size."""
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def overlay(picture: Tensor, heat: Tensor, label: str) -> Tensor:
    """The picture [H, W, 3] in grey under the colours of `heat` [H, W], with the word written on it."""
    from PIL import Image, ImageDraw, ImageFont

    grey = picture.mean(-1, keepdim=True).expand(-1, -1, 3)
    shown = torch.lerp(grey.float(), coloured(heat), COVERED).clamp(0, 1)
    image = Image.fromarray((shown.numpy() * 255).round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, min(image.size) // 18))
    left, top, right, bottom = pen.textbbox((4, 2), label, font=font)
    pen.rectangle((0, 0, right + left, bottom + top), fill=(16, 16, 20))
    pen.text((4, 2), label, font=font, fill=(240, 240, 240))
    return torch.from_numpy(np.asarray(image, np.float32)) / 255
