"""What Mask-ControlNet learns from: pictures with captions and masks of their objects, cropped to buckets of one shape each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...images import masks
from ..data.captions import lines
from ..data.references import SMALLEST

STEP = 64
"""Sides of the training pictures are multiples of it, so that every level of the UNet has whole cells."""
WIDEST = 2.0
"""The longest side of a bucket over its shortest, as nearly as multiples of 64 allow; what is longer is cropped."""
LARGEST = 1.15
"""A bucket has at most this many times the pixels of the square one, whose memory is reckoned with."""


class Example(NamedTuple):
    """`image` [H, W, 3] and `marks` [n, H, W], one for each object, float32 in 0..1, and what the text says; on the CPU.

    The picture is what is painted as well as the reference, unless `reference` is another one of the same size, with the same objects
    in the same places.
    """

    image: Tensor
    marks: Tensor
    caption: str
    reference: Tensor | None = None


class Examples(Protocol):
    """Examples by number; they may differ in size, and may be read only when they are asked for."""

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of each."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Example: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Plan:
    """What a batch will be of: pictures by number, for each which object (0..1), and its text."""

    rows: tuple[int, ...]
    objects: tuple[float, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """`reference` and `image` [B, 3, H, W], `mask` [B, 1, H, W], float32 in 0..1."""

    reference: Tensor
    mask: Tensor
    image: Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Batches of examples of one bucket each, the same ones for the same random numbers."""

    examples: Examples
    batch: int
    size: int
    text_dropout: float = 0.0

    def plan(self, generator: torch.Generator) -> Plan:
        """A picture at random, and others of its bucket."""
        first = int(torch.randint(len(self.examples), (1,), generator=generator))
        others = self.buckets[bucket(*self.examples.sizes[first], self.size)]
        chosen = torch.randint(len(others), (self.batch - 1,), generator=generator).tolist()
        objects, kept = torch.rand(2, self.batch, generator=generator)
        rows = (first, *(others[one] for one in chosen))
        texts = ("" if keep < self.text_dropout else self.examples.captions[row] for row, keep in zip(rows, kept.tolist(), strict=True))
        return Plan(rows, tuple(objects.tolist()), tuple(texts))

    def load(self, plan: Plan) -> Batch:
        """The pictures of a plan, cropped to their bucket."""
        height, width = bucket(*self.examples.sizes[plan.rows[0]], self.size)
        parts = [cropped(self.examples[row], which, height, width) for row, which in zip(plan.rows, plan.objects, strict=True)]
        reference, mask, image = (torch.stack(part) for part in zip(*parts, strict=True))
        return Batch(reference, mask, image, plan.texts)

    @cached_property
    def buckets(self) -> dict[tuple[int, int], list[int]]:
        """The pictures of each bucket, by number."""
        return self._buckets

    @cached_property
    def _buckets(self) -> dict[tuple[int, int], list[int]]:
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


def _start(marked: Tensor, cells: int, wanted: int) -> int:
    """Where a window of `wanted` cells begins whose middle is the marked part's, within `cells` to which `marked` is scaled."""
    where = (marked > 0.5).nonzero()
    middle = (int(where[0]) + int(where[-1]) + 1) / 2 * cells / len(marked) if len(where) else cells / 2
    return min(max(0, round(middle - wanted / 2)), cells - wanted)


@dataclass(frozen=True)
class Given:
    """Examples in memory."""

    examples: Sequence[Example]

    @property
    def captions(self) -> list[str]:
        return self._told[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return self._told[1]

    @cached_property
    def _told(self) -> tuple[list[str], list[tuple[int, int]]]:
        """Captions and sizes, for which every sample asks."""
        return [one.caption for one in self.examples], [(one.image.shape[0], one.image.shape[1]) for one in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int, /) -> Example:
        return self.examples[number]

    def fingerprint(self) -> str:
        """The same for the same pictures, captions and masks: 16 hexadecimal digits."""
        import hashlib

        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(example.caption.encode())
            for tensor in (example.image, example.marks, example.reference):
                if tensor is not None:
                    digest.update(f"{tuple(tensor.shape)}".encode())
                    digest.update((tensor * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def pair(images: Sequence[Tensor], captions: Sequence[str], marks: Sequence[Tensor]) -> Given:
    """Examples of IMAGE batches [B, H, W, 3], their captions (see `captions.lines`), and masks: a batch with one for each picture, or
    for each picture a batch of any number.

    ValueError in the artist's words where they do not match, or where there is nothing to learn from.
    """
    shown = [one for batch in images for one in batch[..., :3].detach().float().cpu().clamp(0, 1)]
    if not shown:
        raise ValueError("no picture was given: wire the pictures to learn from, as a batch or as a list.")
    batches = [masks.to_mask(batch, "masks").detach().cpu() for batch in marks]
    single = [one[None] for batch in batches for one in batch]
    given = batches if len(batches) == len(shown) else single
    if len(given) != len(shown):
        raise ValueError(
            f"{len(shown)} pictures but {len(given)} masks: give one mask for each picture in one batch, in the same order, or a list with "
            "a batch of masks for each picture."
        )
    texts = lines(captions, len(shown))
    return Given([_example(number, *parts) for number, parts in enumerate(zip(shown, given, texts, strict=True), 1)])


def _example(number: int, image: Tensor, marks: Tensor, caption: str) -> Example:
    """Of picture `number` from 1. ValueError for one that is no picture, or whose masks mark nothing or are of another size."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(
            f"picture {number} holds values that are no numbers (NaN): a node before it failed, often a VAE in half precision. Look at "
            "that picture, and wire one that is whole."
        )
    seen = marks[(marks > 0.5).flatten(1).sum(1) >= SMALLEST]
    if not len(seen):
        raise ValueError(f"the mask of picture {number} marks nothing: point SAM Mask at an object in it, or leave the picture out.")
    if marks.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"picture {number} is {image.shape[1]} x {image.shape[0]} pixels but its mask {marks.shape[2]} x {marks.shape[1]}: make the "
            "mask from the same picture, before or after both are resized."
        )
    return Example(image, seen, caption)
