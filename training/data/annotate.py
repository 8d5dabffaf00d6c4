"""What pictures lack before Mask-ControlNet can learn from them, made once: masks by SAM, captions by BLIP (section 3.1).

Both go into a cache folder, each file wholly or not at all, so that an interrupted work goes on where it stopped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from ...images import masks as mask_images
from ...models.sam import model as sam
from . import folder as pictures
from .folder_scan import Counted, PictureFiles, marker_name, text_name
from .pictures import marking
from .scan_cache import ScanCache, write_whole

LONGEST = 1024
"""SAM sees a picture at this size, whatever size it has."""
GROUP = 8
"""Pictures that are captioned at a time."""

Writer = Callable[[Sequence[Tensor]], Sequence[str]]
"""A caption for each picture [H, W, 3]."""


class Segmenter(Protocol):
    """What is needed of `sam.LoadedSam`."""

    def ask(self, image: Tensor, prompt: sam.Prompt) -> sam.Answer: ...

    def full_size(self, logits: Tensor, height: int, width: int) -> Tensor: ...


@dataclass(frozen=True)
class Choice:
    """Which of the masks that SAM offers at `grid` x `grid` points are objects: those it trusts (`score`), of a size between `smallest`
    and `largest` (parts of the picture), with at most `border` of the picture's border in them, and `firm`: an edge that hardly moves
    with the threshold. Of those that are `same` (IoU) the best is kept, and of the rest the `most` that are best."""

    grid: int = 8
    score: float = 0.88
    smallest: float = 0.01
    largest: float = 0.6
    border: float = 0.5
    firm: float = 0.75
    same: float = 0.8
    most: int = 4


def objects(model: Segmenter, image: Tensor, choice: Choice | None = None) -> Tensor:
    """The objects in a picture [H, W, 3]: bool [n, H, W], the best first, none where there is none.

    The best is score x square root of area x (1 - part of the border) x firmness squared. SAM's scores alone differ little, and prefer
    parts; large and firm, but not the background, is what the eye takes for the object.
    """
    how = choice or Choice()
    height, width = image.shape[:2]
    small = _shrunk(image)
    rows, columns = small.shape[:2]
    offered = [model.ask(small, sam.Prompt(points=((x * columns, y * rows, True),))) for y, x in _points(how.grid)]
    logits = torch.cat([answer.logits for answer in offered])
    scores = torch.cat([answer.scores for answer in offered])
    inner = sam.fit(rows, columns, logits.shape[-1])
    marked = logits[:, : inner[0], : inner[1]] > 0
    firm = _firmness(logits[:, : inner[0], : inner[1]])
    area = marked.flatten(1).float().mean(1)
    border = _on_border(marked)
    fits = (scores >= how.score) & (area >= how.smallest) & (area <= how.largest) & (border <= how.border) & (firm >= how.firm)
    rank = scores * area.sqrt() * (1 - border) * firm**2
    order = [number for number in rank.argsort(descending=True, stable=True).tolist() if bool(fits[number])]
    chosen = _different(marked, order, how.same)[: how.most]
    found = [mask_images.tidied(mask) for mask in model.full_size(logits[chosen], rows, columns) > 0] if chosen else []
    enlarged = [mask_images.resize(mask[None].float(), height, width)[0] > 0.5 for mask in found]
    return marking(torch.stack(enlarged)) if enlarged else torch.zeros(0, height, width, dtype=torch.bool)


def make_masks(
    lacking: Sequence[PictureFiles], cache: Path, model: Segmenter, on_picture: Counted, choice: Choice | None = None
) -> list[PictureFiles]:
    """Writes a mask for each object of each picture, or the marker that there is none; the pictures with what was written.

    ValueError where nothing can be written.
    """
    made: list[PictureFiles] = []
    known = ScanCache(cache)
    try:
        for done, one in enumerate(lacking, 1):
            found = objects(model, pictures.colours(pictures.open_picture(one.path)), choice)
            names = [one.path.stem + (f".mask-{number}.png" if number > 1 else pictures.MASK) for number in range(1, len(found) + 1)]
            files = {name: _png(mask) for name, mask in zip(names, found, strict=True)}
            _write(cache, files or {marker_name(one.path): b""})
            masks = tuple(cache / name for name in names)
            if masks:
                known.add(masks[0], masks[1:], one.size)
            made.append(replace(one, masks=masks, no_object=not names))
            on_picture(done, len(lacking))
    finally:
        known.write()
    return made


def make_captions(lacking: Sequence[PictureFiles], cache: Path, write: Writer, on_picture: Counted) -> list[PictureFiles]:
    """Writes a caption for each picture; the pictures with their captions. ValueError where nothing can be written."""
    made: list[PictureFiles] = []
    for start in range(0, len(lacking), GROUP):
        group = lacking[start : start + GROUP]
        texts = [" ".join(text.split()) for text in write([pictures.colours(pictures.open_picture(one.path)) for one in group])]
        _write(cache, {text_name(one.path): f"{text}\n".encode() for one, text in zip(group, texts, strict=True)})
        made += [replace(one, caption=text) for one, text in zip(group, texts, strict=True)]
        on_picture(start + len(group), len(lacking))
    return made


def _points(grid: int) -> list[tuple[float, float]]:
    """(y, x) in 0..1, the middles of cells."""
    steps = [(step + 0.5) / grid for step in range(grid)]
    return [(y, x) for y in steps for x in steps]


def _shrunk(image: Tensor) -> Tensor:
    """As SAM would shrink it itself, but once instead of for every point."""
    height, width = image.shape[:2]
    if max(height, width) <= LONGEST:
        return image
    rows, columns = sam.fit(height, width, LONGEST)
    pixels = Image.fromarray((image * 255).round().byte().numpy()).resize((columns, rows), Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(rows, columns, 3).float() / 255


def _firmness(logits: Tensor) -> Tensor:
    """[n]: how much of a mask remains when it is drawn narrowly instead of widely."""
    wide = (logits > -1).flatten(1).sum(1).float()
    narrow = (logits > 1).flatten(1).sum(1).float()
    return narrow / wide.clamp(min=1)


def _on_border(marked: Tensor) -> Tensor:
    """[n]: which part of the outermost pixels of bool [n, h, w] is marked."""
    edge = torch.ones(marked.shape[1:], dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    return marked[:, edge].float().mean(1)


def _different(marked: Tensor, order: Sequence[int], same: float) -> list[int]:
    """Of masks bool [n, h, w] in this order, those that are unlike all before them."""
    flat = marked[list(order)].flatten(1).float()
    common = flat @ flat.T
    area = common.diagonal()
    alike = common > same * (area[:, None] + area[None] - common)
    different: list[int] = []
    for place in range(len(order)):
        if not any(bool(alike[place, other]) for other in different):
            different.append(place)
    return [order[place] for place in different]


def _png(mask: Tensor) -> bytes:
    """White on the object."""
    content = io.BytesIO()
    Image.fromarray(mask.byte().mul(255).numpy()).save(content, "PNG")
    return content.getvalue()


def _write(cache: Path, files: Mapping[str, bytes]) -> None:
    try:
        write_whole({cache / name: content for name, content in files.items()})
    except OSError as error:
        raise ValueError(
            f"nothing can be written into {cache} ({error.strerror}), where masks and captions are kept: name another folder with --cache."
        ) from error
