"""What the probes of one run have read, and its mean over layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .chain import Row
from .grid import Size, halved
from .layers import Layer


@dataclass(frozen=True)
class Reading:
    """What one layer showed in one call: maps [rows, h * w, wanted] and what each of their rows is (`Call.rows`)."""

    layer: Layer
    grid: Size
    latent: Size
    rows: tuple[Row, ...]
    maps: Tensor


class Readings:
    """Where a probe puts what it reads: one for each run of a model, made by who wants to know.

    It is closed by the first look into it. Blocks that are computed again for the gradient (gradient checkpointing) call their
    probes again then, and what they find is what was found before: only the first maps hang on the graph of the run.
    """

    def __init__(self) -> None:
        self._found: list[Reading] = []
        self._closed = False

    def add(self, reading: Reading) -> None:
        if not self._closed:
            self._found.append(reading)

    def all(self) -> tuple[Reading, ...]:
        """Everything read, in the order in which the layers ran; nothing is added afterwards."""
        self._closed = True
        return tuple(self._found)

    def mean(self) -> Tensor:
        """The mean over the layers, [rows, wanted, h, w] with gradients: what a loss compares with a mask.

        Raises ValueError if nothing was read, or layers of different grids, or parts of the picture apart.
        """
        found = self.all()
        if not found:
            raise ValueError("the probe has read nothing: none of its layers ran, or no row of the positive half")
        if len({(reading.grid, reading.rows) for reading in found}) > 1 or any(row.window[:2] != (0, 0) for row in found[0].rows):
            raise ValueError("maps of different grids or parts of the picture have no common mean; use `on_latent`")
        maps = torch.stack([reading.maps.to(found[0].maps.device) for reading in found]).mean(0)
        return maps.mT.unflatten(2, found[0].grid)

    def on_latent(self) -> Tensor:
        """The mean over layers and conditionings on the latent's pixels: [images, wanted, H, W], zero where none acts.

        Grids of any size; each map lies where its conditioning's area is. Raises ValueError if nothing was read.
        """
        found = self.all()
        if not found:
            raise ValueError("the probe has read nothing: none of its layers ran, or no row of the positive half")
        images = 1 + max(row.image for reading in found for row in reading.rows)
        maps = found[0].maps.new_zeros(images, found[0].maps.shape[2], *found[0].latent)
        times = maps.new_zeros(images, 1, *found[0].latent)
        for reading in found:
            cells = reading.maps.mT.unflatten(2, reading.grid)
            for row, layer in zip(reading.rows, cells, strict=True):
                top, left, height, width = row.window
                place = (row.image, slice(None), slice(top, top + height), slice(left, left + width))
                maps[place] += _enlarged(layer.to(maps.device), (height, width))
                times[place] += 1
        return maps / times.clamp(min=1)


def _enlarged(cells: Tensor, size: Size) -> Tensor:
    """Cells [C, h, w] smoothly on a latent of this size. A UNet halves odd sizes upwards, so the last cells reach over the edge."""
    whole = []
    for pixels, count in zip(size, cells.shape[1:], strict=True):
        level = next((level for level in range(16) if halved(pixels, level) <= count), 0)
        whole.append(count * 2**level if halved(pixels, level) == count else pixels)
    smooth = F.interpolate(cells[None], size=whole, mode="bilinear", align_corners=False)[0]
    return smooth[:, : size[0], : size[1]]
