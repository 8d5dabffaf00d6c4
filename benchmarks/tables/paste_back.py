"""What Paste Back measures, on photographs that were shifted, zoomed and tinted on purpose, and what undoing it leaves at the seam.

nox -s tables -- paste-back
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from maskprompt.images import mend
from maskprompt.images.align import Alignment
from maskprompt.images.colour import seam_matched
from scipy import ndimage
from torch import Tensor

from demo import photos

from .. import figures

NAMES = (*photos.TRAINING, *photos.HELD_OUT)
SHIFT = 6.0
ZOOM = 0.03
GAIN = 0.08
OFFSET = 0.04
"""How far the cases go to both sides, in pixels and in parts of 1."""
SHIFT_BAR = 0.25
ZOOM_BAR = 0.002
GRAIN = 0.01
SEAM = 6
"""The pixels beside the mask whose error counts as the seam's."""


@dataclass(frozen=True)
class Size:
    """How many pictures are measured."""

    cases: int = 200


@dataclass(frozen=True)
class Case:
    """A piece [P, Q, 3] as an edit model might hand it back, for an original [h, w, 3] and a mask [h, w] of what was to be painted.

    `changed` (bool [h, w]) says where the surroundings were painted anew as well. The rest is what was done to the others.
    """

    original: Tensor
    painted: Tensor
    mask: Tensor
    changed: Tensor
    right: float
    down: float
    zoom: float
    gain: np.ndarray
    offset: np.ndarray


def case(seed: int) -> Case:
    """A photograph's part, moved and zoomed about its centre with SciPy's cubic splines, tinted, a little soft, with grain and 8 bits.

    Another photograph is in the mask, and in half of the cases in up to a quarter of the surroundings too. The piece is 0.75 to 2 times
    as large as the part.
    """
    rng = np.random.default_rng(seed)
    photo = _photo(NAMES[seed % len(NAMES)])
    short = min(photo.shape[:2])
    height, width = (int(rng.integers(min(180, short - 60), min(520, side - 40))) for side in photo.shape[:2])
    top, left = (int(rng.integers(20, side - length - 19)) for side, length in zip(photo.shape[:2], (height, width), strict=True))
    right, down = rng.uniform(-SHIFT, SHIFT, 2)
    zoom = rng.uniform(1 - ZOOM, 1 + ZOOM)
    scale = float(rng.choice([0.75, 1.0, 1.0, 1.5, 2.0]))
    size = (round(height * scale), round(width * scale))
    rows = top + height / 2 + (_centres(size[0], height) - height / 2 - down) / zoom
    columns = left + width / 2 + (_centres(size[1], width) - width / 2 - right) / zoom
    deviation = max(0.4, 0.5 / scale)
    soft = ndimage.gaussian_filter(photo, (deviation, deviation, 0))
    painted = np.stack([_at(soft[..., colour], rows, columns, 3) for colour in range(3)], -1)
    gain = rng.uniform(1 - GAIN, 1 + GAIN, 3)
    offset = rng.uniform(-OFFSET, OFFSET, 3)
    another = _photo(NAMES[(seed + 1 + int(rng.integers(len(NAMES) - 1))) % len(NAMES)])
    another = np.tile(another, (4, 4, 1))[: size[0], : size[1]]
    mask = _shape(rng, height, width)
    changed = _changes(rng, mask) if rng.random() < 0.5 else np.zeros_like(mask)
    anew = _at((mask | changed).astype(float), rows - top, columns - left, 0) > 0.5
    painted = np.where(anew[..., None], another, painted * gain + offset) + rng.normal(0, GRAIN, painted.shape)
    painted = np.clip(np.round(painted * 255), 0, 255) / 255
    pictures = [photo[top : top + height, left : left + width], painted, mask]
    original, piece, marked = (torch.from_numpy(picture.astype(np.float32)) for picture in pictures)
    return Case(original, piece, marked, torch.from_numpy(changed), float(right), float(down), float(zoom), gain, offset)


@functools.cache
def _photo(name: str) -> np.ndarray:
    """A photograph [H, W, 3] in 0..1 whose longer side is at most 900 pixels."""
    photo = photos.load(name).astype(np.float64) / 255
    longer = max(photo.shape[:2])
    return photo if longer <= 900 else np.asarray(ndimage.zoom(photo, (800 / longer, 800 / longer, 1), order=1))


def _centres(count: int, side: float) -> np.ndarray:
    """Where the centres of `count` pixels lie that cover a side."""
    return (np.arange(count) + 0.5) * side / count


def _at(plane: np.ndarray, rows: np.ndarray, columns: np.ndarray, order: int) -> np.ndarray:
    """The plane's values at these rows and columns, counted from its corner."""
    places = np.meshgrid(rows - 0.5, columns - 0.5, indexing="ij")
    return np.asarray(ndimage.map_coordinates(plane, places, order=order, mode="nearest"))


def _shape(rng: np.random.Generator, height: int, width: int, low: float = 0.3, high: float = 0.6) -> np.ndarray:
    """An ellipse or a box of `low` to `high` of each side, bool [H, W]."""
    sides = [rng.uniform(low, high) * side for side in (height, width)]
    centres = [rng.uniform(length / 2, side - length / 2) for length, side in zip(sides, (height, width), strict=True)]
    apart = [(np.arange(side) - centre) / (length / 2) for side, centre, length in zip((height, width), centres, sides, strict=True)]
    rows, columns = apart[0][:, None], apart[1][None]
    return rows**2 + columns**2 < 1 if rng.random() < 0.5 else (abs(rows) < 1) & (abs(columns) < 1)


def _changes(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Up to three shapes that cover at most a quarter of what is outside the mask."""
    changed = np.zeros_like(mask)
    for _ in range(int(rng.integers(1, 4))):
        grown = changed | _shape(rng, mask.shape[0], mask.shape[1], 0.1, 0.45)
        changed = grown if grown[~mask].mean() < 0.25 else changed
    return changed


@dataclass(frozen=True)
class Row:
    """One case's outcome: whether place was told, errors of shift (px) and zoom, and the seam's error before and after."""

    told: bool
    shift: float
    zoom: float
    before: float
    undone: float
    matched: float

    @property
    def right(self) -> bool:
        return self.shift <= SHIFT_BAR and self.zoom <= ZOOM_BAR


def seam_error(one: Case, piece: Tensor) -> float:
    """Mean difference of a piece [h, w, 3] from the original in the pixels beside the mask that were not painted anew."""
    near = ndimage.binary_dilation(one.mask.numpy() > 0, iterations=SEAM)
    beside = torch.from_numpy(near) & (one.mask == 0) & ~one.changed
    return float((piece - one.original).abs().mean(-1)[beside].mean())


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = figures.size_of(Size(), command, __doc__, arguments)
    rows: list[Row] = []
    for seed in range(size.cases):
        one = case(seed)
        outside = (one.mask == 0)[None]
        plain = mend.undone(one.painted, Alignment(), one.mask.shape[0], one.mask.shape[1])
        pieces, (report,) = mend.mended(one.original[None], one.painted[None], outside, True, True, False)
        matched = seam_matched(pieces[0], one.original, outside[0])
        found = report.found
        shift = max(abs(found.right - one.right), abs(found.down - one.down))
        before = seam_error(one, plain)
        row = Row(found.place_told, shift, abs(found.zoom - one.zoom), before, seam_error(one, pieces[0]), seam_error(one, matched))
        rows.append(row)
        if not (row.told and row.right):
            print(f"case {seed}: {'WRONG' if row.told else 'not told'}, off by {row.shift:.2f} px, zoom by {row.zoom:.4f}", flush=True)
    told = [row for row in rows if row.told]
    as_it_came = [row.before for row in rows]
    measured = [
        figures.rate("shift found within 0.25 px and zoom within 0.002", [row.told and row.right for row in rows], 0.95),
        figures.rate("the same, of those that it says it can tell", [row.right for row in told], 0.99),
        figures.mean("shift's error (px)", [row.shift for row in told]),
        figures.mean("zoom's error (%)", [100 * row.zoom for row in told]),
        figures.mean("seam's error as it came, of 1", as_it_came),
        figures.mean("seam's error, undone, of 1", [row.undone for row in rows]),
        figures.mean("seam's error, undone and colours matched, of 1", [row.matched for row in rows]),
        figures.ratio("seam's error, undone / as it came", [row.undone for row in rows], as_it_came, 0.5),
        figures.ratio("seam's error, undone and colours matched / as it came", [row.matched for row in rows], as_it_came, 0.5),
    ]
    figures.write("paste-back", command, measured, whole=size == Size())
