"""Pictures with captions and masks of their objects, from nodes; `object_folder` gives them from a folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...images import masks
from . import marks as doubtful
from .captions import lines
from .pictures import check_numbers, check_same_size, marking, separate

log = logging.getLogger(__name__)


class Example(NamedTuple):
    """Holds a picture `image` [H, W, 3] and masks `marks` [n, H, W], one for each object, float32 in 0..1, and its caption; on the CPU.

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

    @property
    def have_references(self) -> bool:
        """Whether each has a reference beside the picture that is painted."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Example: ...

    def fingerprint(self) -> str:
        """The same for the same pictures, references, captions and masks: 16 hexadecimal digits."""
        ...


@dataclass(frozen=True)
class Given:
    """Examples in memory."""

    examples: Sequence[Example]

    @property
    def captions(self) -> list[str]:
        return self._known[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return self._known[1]

    @property
    def have_references(self) -> bool:
        return all(one.reference is not None for one in self.examples)

    @cached_property
    def _known(self) -> tuple[list[str], list[tuple[int, int]]]:
        """Captions and sizes, for which every sample asks."""
        return [one.caption for one in self.examples], [(one.image.shape[0], one.image.shape[1]) for one in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int, /) -> Example:
        return self.examples[number]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(example.caption.encode())
            for tensor in (example.image, example.marks, example.reference):
                if tensor is not None:
                    digest.update(f"{tuple(tensor.shape)}".encode())
                    digest.update((tensor * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def pair(images: Sequence[Tensor], captions: Sequence[str], marks: Sequence[Tensor], references: Sequence[Tensor] = ()) -> Given:
    """Pairs IMAGE batches [B, H, W, 3] with their captions (see `captions.lines`), with masks: a batch with one for each picture, or for
    each picture a batch of any number; and with reference pictures, if any are given: IMAGE batches with one for each picture.

    ValueError in the artist's words where they do not match, or where there is nothing to learn from.
    """
    shown = separate(images, "the pictures to learn from, as a batch or as a list")
    batches = [masks.to_mask(batch, "masks").detach().cpu() for batch in marks]
    single = [one[None] for batch in batches for one in batch]
    given = batches if len(batches) == len(shown) else single
    if len(given) != len(shown):
        raise ValueError(
            f"{len(shown)} pictures but {len(given)} masks: give one mask for each picture in one batch, in the same order, or a list with "
            "a batch of masks for each picture."
        )
    beside = separate(references, "a reference for each picture") if references else [None] * len(shown)
    if len(beside) != len(shown):
        raise ValueError(
            f"{len(shown)} pictures but {len(beside)} references: give one reference for each picture, in the same order, or none at all."
        )
    texts = lines(captions, len(shown))
    return Given([_example(number, *parts) for number, parts in enumerate(zip(shown, given, texts, beside, strict=True), 1)])


def doubts(examples: Examples) -> tuple[str, ...]:
    """What should be looked at before these are learned from (`doubtful.doubts`); of examples in memory alone."""
    given = examples.examples if isinstance(examples, Given) else ()
    return doubtful.doubts((f"picture {number}", mark) for number, one in enumerate(given, 1) for mark in one.marks)


def _example(number: int, image: Tensor, marks: Tensor, caption: str, reference: Tensor | None) -> Example:
    """Checks picture `number` from 1. ValueError for one that is no picture, or whose masks mark nothing or are of another size."""
    check_numbers(number, image)
    objects = marking(marks)
    if not len(objects):
        raise ValueError(f"the mask of picture {number} marks nothing: point SAM Mask at an object in it, or leave the picture out.")
    check_same_size(number, image, marks)
    for mark in objects:
        if (sentence := doubtful.doubt(f"picture {number}", mark)) is not None:
            log.warning("%s", sentence)
    if reference is not None:
        if not bool(torch.isfinite(reference).all()):
            raise ValueError(
                f"the reference of picture {number} holds values that are no numbers (NaN): a node before it failed. Wire one that is "
                "whole."
            )
        if reference.shape != image.shape:
            sizes = [f"{width} x {height}" for height, width, _ in (image.shape, reference.shape)]
            raise ValueError(
                f"picture {number} is {sizes[0]} pixels but its reference {sizes[1]}: the object has to stand in the same place of both, "
                "so bring both to one size first."
            )
    return Example(image, objects, caption, reference)
