"""What Mask-ControlNet learns from: pictures with captions and masks of their objects, cropped to buckets of one shape each.

The picture that is painted is also the reference (self-supervised, as the paper trains); or the reference shows the object on another
ground (pairs), so that what is kept is the object and nothing around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ...images import masks
from ..data.objects import Example, Examples
from .options import GIVEN, GROUNDS, NONE, Pairs

STEP = 64
"""Sides of the training pictures are multiples of it, so that every level of the UNet has whole cells."""
WIDEST = 2.0
"""The longest side of a bucket over its shortest, as nearly as multiples of 64 allow; what is longer is cropped."""
LARGEST = 1.15
"""A bucket has at most this many times the pixels of the square one, whose memory is reckoned with."""


@dataclass(frozen=True)
class Plan:
    """What a batch will be of: pictures by number, for each which object (0..1), and its text; and pictures by number on whose grounds
    the objects are put, if they are."""

    rows: tuple[int, ...]
    objects: tuple[float, ...]
    texts: tuple[str, ...]
    grounds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """`reference` and `image` [B, 3, H, W], `mask` [B, 1, H, W], float32 in 0..1."""

    reference: Tensor
    mask: Tensor
    image: Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Batches of examples of one bucket each, the same ones for the same random numbers; `pairs` as in `Options`."""

    examples: Examples
    batch: int
    size: int
    text_dropout: float = 0.0
    pairs: Pairs = NONE

    def plan(self, generator: torch.Generator) -> Plan:
        """A picture at random, and others of its bucket."""
        first = int(torch.randint(len(self.examples), (1,), generator=generator))
        others = self.buckets[bucket(*self.examples.sizes[first], self.size)]
        chosen = torch.randint(len(others), (self.batch - 1,), generator=generator).tolist()
        objects, kept = torch.rand(2, self.batch, generator=generator)
        rows = (first, *(others[one] for one in chosen))
        texts = ("" if keep < self.text_dropout else self.examples.captions[row] for row, keep in zip(rows, kept.tolist(), strict=True))
        return Plan(rows, tuple(objects.tolist()), tuple(texts), self._grounds(rows, generator))

    def _grounds(self, rows: Sequence[int], generator: torch.Generator) -> tuple[int, ...]:
        """For each picture another one, all others equally likely, where pairs are made of them."""
        if self.pairs != GROUNDS:
            return ()
        drawn = torch.randint(len(self.examples) - 1, (len(rows),), generator=generator).tolist()
        return tuple(other + (other >= row) for row, other in zip(rows, drawn, strict=True))

    def load(self, plan: Plan) -> Batch:
        """The pictures of a plan, cropped to their bucket."""
        height, width = bucket(*self.examples.sizes[plan.rows[0]], self.size)
        parts = [cropped(self._example(row), which, height, width) for row, which in zip(plan.rows, plan.objects, strict=True)]
        reference, mask, image = (torch.stack(part) for part in zip(*parts, strict=True))
        if plan.grounds:
            grounds = torch.stack([covering(self.examples[row].image, height, width) for row in plan.grounds])
            reference = mask * image + (1 - mask) * grounds
        return Batch(reference, mask, image, plan.texts)

    def _example(self, row: int) -> Example:
        """A picture, with its own reference only where pairs are given."""
        example = self.examples[row]
        return example if self.pairs == GIVEN else example._replace(reference=None)

    @cached_property
    def buckets(self) -> dict[tuple[int, int], list[int]]:
        """The pictures of each bucket, by number."""
        # Once: a hundred thousand pictures take seconds, and every step asks.
        found: dict[tuple[int, int], list[int]] = {}
        for number, size in enumerate(self.examples.sizes):
            found.setdefault(bucket(*size, self.size), []).append(number)
        return found


@cache
def bucket(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width, multiples of 64, closest to a picture's proportions, of about `size` by `size` pixels.

    A picture on its side gets the same bucket on its side.
    """
    square = max(STEP, round(size / STEP) * STEP)
    sides = range(STEP, 2 * square + STEP, STEP)
    across = ((one, max(STEP, round(square * square / one / STEP) * STEP)) for one in sides)
    pairs = [pair for one, other in across for pair in ((one, other), (other, one)) if one * other <= LARGEST * square * square]
    ratio = max(-math.log(WIDEST), min(math.log(WIDEST), math.log(height) - math.log(width)))
    return min(pairs, key=lambda pair: (abs(math.log(pair[0]) - math.log(pair[1]) - ratio), abs(pair[0] * pair[1] - square * square)))


def cropped(example: Example, which: float, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reference and image [3, h, w] and the mask [1, h, w] of one of the objects, around it as far as the picture reaches."""
    mark = example.marks[min(len(example.marks) - 1, int(which * len(example.marks)))]
    scale = max(height / mark.shape[0], width / mark.shape[1])
    rows, columns = max(height, round(mark.shape[0] * scale)), max(width, round(mark.shape[1] * scale))
    mask = masks.resize(mark[None], rows, columns)
    top, left = (_start(mark.amax(1 - axis), *sides) for axis, sides in ((0, (rows, height)), (1, (columns, width))))

    def window(picture: Tensor) -> Tensor:
        whole = F.interpolate(picture.movedim(-1, 0)[None], (rows, columns), mode="bilinear", antialias=True)[0].clamp(0, 1)
        return whole[:, top : top + height, left : left + width]

    image = window(example.image)
    reference = image if example.reference is None else window(example.reference)
    return reference, mask[:, top : top + height, left : left + width], image


def covering(picture: Tensor, height: int, width: int) -> Tensor:
    """Scales a picture [H, W, 3] until it covers a window, and takes its middle: [3, h, w]."""
    scale = max(height / picture.shape[0], width / picture.shape[1])
    rows = max(height, round(picture.shape[0] * scale))
    columns = max(width, round(picture.shape[1] * scale))
    top = (rows - height) // 2
    left = (columns - width) // 2
    whole = F.interpolate(picture.movedim(-1, 0)[None], (rows, columns), mode="bilinear", antialias=True)[0].clamp(0, 1)
    return whole[:, top : top + height, left : left + width]


def _start(marked: Tensor, cells: int, wanted: int) -> int:
    """Where a window of `wanted` cells begins whose middle is the marked part's, within `cells` to which `marked` is scaled."""
    where = (marked > 0.5).nonzero()
    middle = (int(where[0]) + int(where[-1]) + 1) / 2 * cells / len(marked) if len(where) else cells / 2
    return min(max(0, round(middle - wanted / 2)), cells - wanted)
