"""The picture that MCGM learns from, with its subjects' masks."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...images import masks

Background = Literal["plain", "original"]
"""What lies around the subjects: one random colour, as in MCGM, or the picture itself."""

STEP = 32
"""Sides are multiples of so many pixels, which a UNet halves evenly as often as its attention layers ask."""


@dataclass(frozen=True)
class Scene:
    """The picture [H, W, 3] in 0..1 and its subjects' masks [N, H, W] in 0..1, float32 on the CPU."""

    image: Tensor
    masks: Tensor

    def fitted(self, size: int) -> Scene:
        """The scene with about `size` x `size` pixels in its own proportions, its sides multiples of `STEP`."""
        height, width = self.masks.shape[1:]
        factor = size / math.sqrt(height * width)
        sides = [max(2 * STEP, STEP * round(side * factor / STEP)) for side in (height, width)]
        image = F.interpolate(self.image.movedim(-1, 0)[None], size=sides, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return Scene(image.movedim(0, -1).contiguous(), masks.resize(self.masks, *sides))

    def fingerprint(self) -> str:
        """The same for the same picture and masks: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for tensor in (self.image, self.masks):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update((tensor * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
