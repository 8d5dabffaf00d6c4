"""A mask on a layer's grid: any size, any aspect, any number of masks, whole pictures or windows of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

Size = tuple[int, int]
Window = tuple[int, int, int, int]
"""What a call sees of the whole latent: top, left, height, width, in latent pixels."""

MAX_CACHED = 256


def halved(size: int, times: int) -> int:
    """A size after the UNet has halved it so often, odd sizes upwards."""
    for _ in range(times):
        size = -(-size // 2)
    return size


def cell_edges(latent: int, cells: int) -> Tensor:
    """Where a layer's cells begin and end along one axis, in latent pixels: float64 [cells + 1].

    A UNet halves an odd size upwards, so its last cell reaches over the edge: 61 latent pixels are 31 cells of 2. Where no
    such halving explains the grid (a node that shrinks features on the way), the cells share the axis evenly.
    """
    size = latent
    factor = 1
    while size > cells:
        size = -(-size // 2)
        factor = factor * 2
    if size != cells:
        return torch.linspace(0, latent, cells + 1, dtype=torch.float64)
    return (torch.arange(cells + 1, dtype=torch.float64) * factor).clamp(max=latent)


def overlap(pixels: int, edges: Tensor) -> Tensor:
    """How much of each cell every pixel covers, rows summing to one: float64 [cells, pixels]. `edges` in pixels, [cells + 1]."""
    start = torch.arange(pixels, dtype=torch.float64)
    low, high = edges[:-1, None], edges[1:, None]
    shared = (torch.minimum(high, start + 1) - torch.maximum(low, start)).clamp(min=0)
    return shared / shared.sum(1, keepdim=True).clamp(min=1e-12)


def to_grid(mask: Tensor, latent: Size, window: Window, grid: Size) -> Tensor:
    """The mask's mean over every cell of a layer's grid: float [h, w] from [H, W].

    `mask` covers the whole latent (`latent`, height and width); the layer sees `window` of it as `grid` cells.
    """
    return _means(mask, latent, _edges_of(window, grid))


def around(mask: Tensor, latent: Size, window: Window, grid: Size) -> Tensor:
    """The same over all of the latent, in cells of the same size of which the window's are some: float [h', w']."""
    return _means(mask, latent, [_continued(edges, side) for edges, side in zip(_edges_of(window, grid), latent, strict=True)])


def _edges_of(window: Window, grid: Size) -> list[Tensor]:
    """Where a window's cells begin and end along both axes, in pixels of the whole latent."""
    return [cell_edges(window[2 + axis], grid[axis]) + window[axis] for axis in (0, 1)]


def _means(mask: Tensor, latent: Size, edges: list[Tensor]) -> Tensor:
    weights = [overlap(mask.shape[axis], edges[axis] * mask.shape[axis] / latent[axis]).to(mask.device, torch.float32) for axis in (0, 1)]
    return weights[0] @ mask.float() @ weights[1].T


def _continued(edges: Tensor, latent: int) -> Tensor:
    """Edges of cells along one axis, in latent pixels, continued with the first one's step to both ends of the latent."""
    first, step, last = float(edges[0]), float(edges[1] - edges[0]), float(edges[-1])
    before = torch.arange(math.ceil(first / step), 0, -1, dtype=torch.float64)
    after = torch.arange(1, math.ceil((latent - last) / step) + 1, dtype=torch.float64)
    return torch.cat([(first - step * before).clamp(min=0), edges, (last + step * after).clamp(max=latent)])


def binary(cells: Tensor, mask: Tensor, everywhere: Tensor | None = None) -> Tensor:
    """Cells that are at least half covered, as bool; if no cell is and the mask is not empty, the best covered ones.

    So an object smaller than half a cell keeps its place in the coarsest layers too. `everywhere` are the cells of the whole picture
    (`around`) where `cells` are a part of it: what lies outside of the part has its place there.
    """
    best = (cells if everywhere is None else everywhere).max()
    limit = 0.5 if best >= 0.5 else max(float(best) * 0.999, 1e-6)
    return cells >= limit if bool((mask >= 0.5).any()) else torch.zeros_like(cells, dtype=torch.bool)


def check_aspect(mask: Size, latent: Size) -> None:
    """Raises ValueError if a mask of this size cannot be of the picture that has this latent: more than one latent pixel off."""
    height = mask[0] * latent[1] / mask[1]
    width = mask[1] * latent[0] / mask[0]
    if abs(height - latent[0]) > 1.01 and abs(width - latent[1]) > 1.01:
        raise ValueError(
            f"MaskPrompt: the mask is {mask[1]}x{mask[0]} but the picture being painted is about {latent[1] * 8}x{latent[0] * 8}: their "
            "shapes differ, so the mask would land in the wrong place. Make the mask from the picture that is painted (the same crop), "
            "or scale both alike. "
            "If a node paints in tiles or crops (Ultimate SD Upscale, detailers), give this node the mask of that crop. "
            "With FLUX.2 the picture is twice as wide and high as said here."
        )


@dataclass(frozen=True)
class Cells:
    """A mask on a layer's grid: bool [h * w], and the numbers of the cells inside and outside it.

    The numbers are kept so that a layer need not ask the GPU for them at every step.
    """

    inside: Tensor
    foreground: Tensor
    background: Tensor

    @property
    def divided(self) -> bool:
        """Whether there are cells on both sides."""
        return len(self.foreground) > 0 and len(self.background) > 0


@dataclass(frozen=True)
class RegionMask:
    """One or more masks, float [M, H, W] in 0..1, for the pictures of a batch in turn (from the first again if there are fewer).

    `cells` remembers what it has worked out; nothing else changes.
    """

    masks: Tensor
    _cells: dict[tuple[int, Size, Window, Size, torch.device], Cells] = field(default_factory=dict, compare=False, repr=False)
    _over_time: dict[tuple[str, int], RegionMask] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or 0 in self.masks.shape:
            raise ValueError(f"masks must be [M, H, W] and not empty, not {tuple(self.masks.shape)}")
        if not bool(torch.isfinite(self.masks).all()):
            raise ValueError("the mask holds values that are no numbers (NaN or infinite)")

    def index(self, image: int) -> int:
        """Which mask belongs to a picture of the batch."""
        return image % len(self.masks)

    def over_frames(self, frames: int) -> RegionMask:
        """A mask for each of a video's latent frames; one mask serves all.

        Of 4 (n - 1) + 1 masks for n frames, as video models shorten time, the first is the first frame's and each frame after it has the
        mean of its four; else each frame has the mask at its place in time.
        """
        count = len(self.masks)
        if count in (1, frames):
            return self
        key = ("frames", frames)
        if key not in self._over_time:
            if count == 4 * (frames - 1) + 1:
                masks = torch.cat([self.masks[:1], self.masks[1:].unflatten(0, (frames - 1, 4)).mean(1)])
            else:
                places = torch.linspace(0, count - 1, frames).round().long()
                masks = self.masks[places]
            self._over_time[key] = RegionMask(masks)
        return self._over_time[key]

    def cells(self, index: int, latent: Size, window: Window, grid: Size, device: torch.device) -> Cells:
        """Mask number `index` on a layer's grid. Worked out once for each mask, window, grid and device."""
        key = (index, latent, window, grid, device)
        if key not in self._cells:
            mask = self.masks[index]
            check_aspect((mask.shape[0], mask.shape[1]), latent)
            if len(self._cells) >= MAX_CACHED:
                self._cells.clear()
            everywhere = None if window == (0, 0, *latent) else around(mask, latent, window, grid)
            inside = binary(to_grid(mask, latent, window, grid), mask, everywhere).flatten()
            both = [side.nonzero().squeeze(1).to(device) for side in (inside, ~inside)]
            self._cells[key] = Cells(inside.to(device), *both)
        return self._cells[key]
