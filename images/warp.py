"""Moves and zooms a picture by parts of a pixel. Pure tensor work, no ComfyUI."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moved(planes: Tensor, right: float, down: float, zoom: float) -> Tensor:
    """What lies at c + zoom (x - c) + (right, down) of [C, H, W], c its centre, for every pixel x: bicubic, edges repeated."""
    height, width = planes.shape[-2:]
    columns = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) * zoom + right
    rows = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) * zoom + down
    grid = torch.stack(torch.broadcast_tensors(columns / (width / 2), (rows / (height / 2))[:, None]), -1)
    grid = grid[None].to(planes.device, torch.float32)
    return F.grid_sample(planes[None].float(), grid, mode="bicubic", padding_mode="border", align_corners=False)[0]


def inside(height: int, width: int, right: float, down: float, zoom: float) -> Tensor:
    """bool [H, W]: for which pixels `moved` looks at one that is there."""
    columns = (torch.arange(width) + 0.5 - width / 2) * zoom + right + width / 2
    rows = (torch.arange(height) + 0.5 - height / 2) * zoom + down + height / 2
    return ((rows > 1) & (rows < height - 1))[:, None] & ((columns > 1) & (columns < width - 1))[None]
