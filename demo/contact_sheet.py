"""One labelled page of pictures, and the thumbnails of the workflows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps, ImageStat

PAPER = (250, 249, 246)
INK = (30, 30, 34)
FAINT = (120, 118, 112)
HEIGHT = 240
WIDEST = 4.0
GAP = 18
HEADING = 34
LABEL = 26
SEEN = 32
"""Of 255: a smaller difference between two pictures is none that is seen."""

Picture = Path | Image.Image
Row = tuple[str, Sequence[tuple[str, Picture]]]


def contact_sheet(rows: Sequence[Row], height: int = HEIGHT) -> Image.Image:
    """A page with a heading and the (label, picture or its file) pairs of each row, all pictures of one height.

    Small pictures are enlarged by whole pixels first, so that what the model painted is seen as it is.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    tiles = [(name, [(label, _tile(path, height)) for label, path in pictures]) for name, pictures in rows]
    width = max(sum(tile.width + GAP for _, tile in row) for _, row in tiles) + GAP
    step = HEADING + height + LABEL + GAP
    page = Image.new("RGB", (max(width, 4 * GAP), GAP + step * len(tiles)), PAPER)
    draw = ImageDraw.Draw(page)
    heading = ImageFont.load_default(20)
    small = ImageFont.load_default(14)
    for index, (name, row) in enumerate(tiles):
        left, top = GAP, GAP + index * step
        draw.text((left, top), name, INK, heading)
        for label, tile in row:
            page.paste(tile, (left, top + HEADING))
            draw.text((left, top + HEADING + height + 5), label, FAINT, small)
            left += tile.width + GAP
    return page


def save_sheet(file: Path, rows: Sequence[Row], height: int = HEIGHT) -> None:
    """Write `contact_sheet` of the rows into a file, whose folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, height).save(file)


def picture_of(pixels: Any) -> Image.Image:
    """Pixels [H, W, 3] in 0..1, a tensor or an array, as a picture."""
    return Image.fromarray((np.asarray(pixels) * 255).round().astype(np.uint8))


def _on_paper(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        rgba = picture.convert("RGBA")
    else:
        with Image.open(picture) as image:
            rgba = image.convert("RGBA")
    paper = Image.new("RGB", rgba.size, PAPER)
    paper.paste(rgba, mask=rgba)
    return paper


def _tile(shown: Picture, height: int) -> Image.Image:
    picture = _on_paper(shown)
    factor = max(1, height // picture.height)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    width = min(round(picture.width * height / picture.height), round(WIDEST * height))
    return ImageOps.pad(picture, (max(width, 1), height), Image.Resampling.LANCZOS, PAPER)


def thumbnail(before: Picture, after: Picture, size: int = 512) -> Image.Image:
    """A square picture of a workflow's result, cut out around what changed, with what it started from as an inset."""
    result = _on_paper(after)
    page = ImageOps.fit(result, (size, size), Image.Resampling.LANCZOS, centering=_changed(_on_paper(before), result))
    inset = ImageOps.contain(_on_paper(before), (size // 3, size // 3), Image.Resampling.LANCZOS)
    framed = ImageOps.expand(inset, 4, PAPER)
    # In the corner where it hides least of what was painted; below, where two hide as much.
    sides = (GAP, size - framed.width - GAP)
    corners = [(left, top) for top in (size - framed.height - GAP, GAP) for left in sides]
    hidden = [_detail(page.crop((left, top, left + framed.width, top + framed.height))) for left, top in corners]
    page.paste(framed, corners[hidden.index(min(hidden))])
    return page


def _detail(picture: Image.Image) -> float:
    """How much there is to see in it: the sum of its colours' deviations."""
    return sum(ImageStat.Stat(picture).stddev)


def before_and_after(pairs: Sequence[tuple[Picture, Picture]], height: int = 200) -> Image.Image:
    """One row of pairs of pictures, an arrow from each first one to its second, all of one height."""
    if not pairs:
        raise ValueError("a row of before and after needs at least one pair")
    tiles = [[_tile(picture, height) for picture in pair] for pair in pairs]
    width = sum(first.width + second.width + 4 * GAP for first, second in tiles) - 2 * GAP
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    left = 0
    for first, second in tiles:
        page.paste(first, (left, 0))
        tip = left + first.width + GAP + GAP // 2
        draw.polygon([(tip - GAP, height // 2 - GAP // 2), (tip - GAP, height // 2 + GAP // 2), (tip, height // 2)], INK)
        page.paste(second, (left + first.width + 2 * GAP, 0))
        left += first.width + second.width + 4 * GAP
    return page


def _changed(before: Image.Image, after: Image.Image) -> tuple[float, float]:
    """Where the middle of what changed lies between two pictures of one size, for `ImageOps.fit`; the middle for others."""
    if before.size != after.size:
        return 0.5, 0.5
    box = ImageChops.difference(before, after).convert("L").point([255 * (level > SEEN) for level in range(256)]).getbbox()
    if box is None:
        return 0.5, 0.5
    short = min(after.size)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    free = [max(side - short, 1) for side in after.size]
    x, y = (min(max((at - short / 2) / room, 0.0), 1.0) for at, room in zip(middle, free, strict=True))
    return x, y
