"""The network of tiny-edit's judge: where things are in a picture, and an embedding of each that cut-outs can be compared with.

A small convolutional network on 64 x 64 pixels. Each of its 8 x 8 cells says whether a thing's middle lies in it, the thing's box, and an
embedding of unit length, in which pictures of one thing lie together. `train_judge` trains it on renders alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64
"""Pixels of a side at which pictures are judged."""
CELLS = 8
EMBEDDING = 64
WIDTHS: tuple[int, int, int] = (24, 48, 64)
GROUPS = 8


class Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@dataclass(frozen=True)
class Seen:
    """What the cells see: `there` the logit of a thing's middle [B, 8, 8]; `boxes` x, y, width, height in parts of the picture
    [B, 4, 8, 8]; `embedded` of unit length [B, 64, 8, 8].
    """

    there: Tensor
    boxes: Tensor
    embedded: Tensor


class Eye(nn.Module):
    """Looks at pictures [B, 3, 64, 64] in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.body = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            Block(second),
            Block(second),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            Block(third),
            Block(third),
            Block(third),
            nn.GroupNorm(GROUPS, third),
            nn.SiLU(),
        )
        self.head = nn.Conv2d(third, 1 + 4 + EMBEDDING, 1)

    def forward(self, pictures: Tensor) -> Seen:
        answer = self.head(self.body(pictures * 2 - 1))
        there, place, embedded = answer.split((1, 4, EMBEDDING), 1)
        return Seen(there[:, 0], self._boxes(place), F.normalize(embedded, dim=1))

    @staticmethod
    def _boxes(place: Tensor) -> Tensor:
        """Turns middles within their cells and logarithms of sizes into boxes."""
        steps = torch.arange(CELLS, device=place.device) / CELLS
        x = steps[None, None, :] + place[:, 0].sigmoid() / CELLS
        y = steps[None, :, None] + place[:, 1].sigmoid() / CELLS
        width, height = (place[:, 2:].clamp(-4, 1)).exp().unbind(1)
        return torch.stack((x - width / 2, y - height / 2, width, height), 1)


def read(file: Path) -> Eye:
    """Reads the network of a file that `train_judge` wrote, in float32."""
    from safetensors.torch import load_file

    network = Eye()
    network.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return network


def scaled(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] at the side that the network looks at."""
    return F.interpolate(pictures.float(), (SIDE, SIDE), mode="area")


def middle_of(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Names the cells, row and column, that hold the middles of boxes [..., 4]."""
    x, y, width, height = boxes.unbind(-1)
    column = ((x + width / 2) * CELLS).long().clamp(0, CELLS - 1)
    row = ((y + height / 2) * CELLS).long().clamp(0, CELLS - 1)
    return row, column


def at(values: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The values [B, C, 8, 8] of one cell of each picture [B, C]."""
    return cast(Tensor, values[torch.arange(len(values), device=values.device), :, row, column])
