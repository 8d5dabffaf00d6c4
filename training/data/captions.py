"""Pictures with captions, and maybe masks, from nodes; `folder.captioned` gives them from a folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .pictures import check_numbers, check_same_size, separate, separate_masks

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """`image` float32 [H, W, 3] in 0..1, what the text says of it, and a mask float32 [H, W] in 0..1 or none; on the CPU."""

    image: Tensor
    caption: str
    mask: Tensor | None


class Pictures(Protocol):
    """Pictures by number; they may differ in size, and may be read only when they are asked for."""

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of each."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Picture: ...

    def fingerprint(self) -> str:
        """The same for the same pictures, captions and masks: 16 hexadecimal digits."""
        ...


@dataclass(frozen=True)
class Given:
    """Pictures in memory."""

    pictures: Sequence[Picture]

    @property
    def captions(self) -> list[str]:
        return [one.caption for one in self.pictures]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(one.image.shape[0], one.image.shape[1]) for one in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int, /) -> Picture:
        return self.pictures[number]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(picture.caption.encode())
            for tensor in (picture.image, picture.mask):
                shape = None if tensor is None else tuple(tensor.shape)
                digest.update(f"{shape}".encode())
                if tensor is not None:
                    digest.update((tensor * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def pair(images: Sequence[Tensor], captions: Sequence[str], marks: Sequence[Tensor] = ()) -> Given:
    """Pictures of IMAGE batches [B, H, W, 3], their captions (see `lines`) and, if given, MASK batches [B, H, W], all in one order.

    An empty mask is none. ValueError in the artist's words where they do not match, or where there is nothing to learn from.
    """
    shown = separate(images, "the pictures to learn from, as a batch or as a list")
    for number, image in enumerate(shown, 1):
        check_numbers(number, image)
    texts = lines(captions, len(shown))
    marked = separate_masks(marks)
    if marked and len(marked) != len(shown):
        raise ValueError(
            f"{len(shown)} pictures but {len(marked)} masks: give one mask for each picture, in the same order, or none at all: masks are "
            "then drawn at random."
        )
    found = [_marked(number, one, marked[number] if marked else None) for number, one in enumerate(shown)]
    empty = sum(mask is None for mask in found) if marked else 0
    if empty:
        log.warning("Train Image Prompt Adapter: %d of %d masks are empty; random ones are drawn for their pictures.", empty, len(marked))
    return Given([Picture(*parts) for parts in zip(shown, texts, found, strict=True)])


def lines(captions: Sequence[str], count: int) -> list[str]:
    """A caption for each of `count` pictures: of one text its lines, of several texts each one; a single line is for all pictures."""
    texts = captions[0].strip().splitlines() if len(captions) == 1 else captions
    texts = [" ".join(text.split()) for text in texts]
    if not any(texts):
        raise ValueError("captions is empty: write one line for each picture that says what is in it, or one line for all of them.")
    if len(texts) not in (1, count):
        raise ValueError(
            f"{count} pictures but {len(texts)} lines of captions: write one line for each picture, in the same order, or a single one "
            "for all of them."
        )
    return texts * count if len(texts) == 1 else texts


def _marked(number: int, image: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask of picture `number` from 0, if it marks anything."""
    if mask is None or not bool((mask > 0.5).any()):  # Load Image gives an empty mask of 64 x 64 for a picture without one
        return None
    check_same_size(number + 1, image, mask)
    return mask
