"""Pictures as an unpractised painter would have painted them: bent, blurred, off colour. What the judge learns to see through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WAVES: tuple[tuple[int, float], ...] = ((3, 0.12), (6, 0.08), (12, 0.05))
"""Displacements: how many waves cross the picture, and twice the deviation of what they move its pixels by, in halves of the picture."""


def bent(pictures: Tensor, owners: Tensor, strength: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bends pictures [B, 3, S, S] and the maps of whose pixels they are, uint8 [B, S, S], alike; by `strength` [B], 0 to 1."""
    count, _, size, _ = pictures.shape
    even = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    where = torch.stack(torch.meshgrid(even, even, indexing="xy"), -1).expand(count, size, size, 2)
    for waves, most in WAVES:
        random = torch.randn(count, 2, waves, waves, generator=generator) * (most / 2 * strength[:, None, None, None])
        where = where + F.interpolate(random, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    moved = F.grid_sample(pictures, where, padding_mode="border", align_corners=False)
    whose = F.grid_sample(owners[:, None].float(), where, "nearest", "border", align_corners=False)
    return moved, whose[:, 0].to(torch.uint8)


def blurred(pictures: Tensor, radius: float) -> Tensor:
    """Blurs pictures [B, 3, S, S] with a Gaussian of so many pixels."""
    if radius < 0.3:
        return pictures
    reach = max(1, round(2.5 * radius))
    line = torch.exp(-((torch.arange(-reach, reach + 1) / radius) ** 2) / 2)
    line = (line / line.sum()).expand(3, 1, 1, -1)
    wide = F.conv2d(F.pad(pictures, (reach, reach, reach, reach), mode="replicate"), line, groups=3)
    return F.conv2d(wide, line.transpose(2, 3), groups=3)


def coloured(pictures: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Changes saturation and contrast of pictures [B, 3, S, S] by up to a third, each colour by half as much; by `strength` [B], 0 to 1."""

    def gains(channels: int) -> Tensor:
        random = torch.rand(len(pictures), channels, 1, 1, generator=generator) * 2 - 1
        return 1 + random * (strength / 3)[:, None, None, None]

    grey = pictures.mean(1, keepdim=True)
    saturated = grey + (pictures - grey) * gains(1)
    middle = saturated.mean((1, 2, 3), keepdim=True)
    return ((middle + (saturated - middle) * gains(1)) * (0.5 + gains(3) / 2)).clamp(0, 1)


def boxes_of(owners: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The boxes of owners 1 to `count` in maps uint8 [B, S, S]: [B, count, 4] in parts of the picture; and how many pixels each has."""
    size = owners.shape[-1]
    own = owners[:, None] == torch.arange(1, count + 1, dtype=torch.uint8)[None, :, None, None]
    columns = own.any(2).float()
    rows = own.any(3).float()
    left, top = columns.argmax(-1), rows.argmax(-1)
    right, bottom = size - columns.flip(-1).argmax(-1), size - rows.flip(-1).argmax(-1)
    return torch.stack((left, top, right - left, bottom - top), -1) / size, own.sum((2, 3))
