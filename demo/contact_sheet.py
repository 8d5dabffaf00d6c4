"""One labelled page of pictures, and the thumbnails of the workflows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

PAPER, INK, FAINT = (250, 249, 246), (30, 30, 34), (120, 118, 112)
TILE, GAP, LINE = 256, 16, 26

Row = tuple[str, Sequence[tuple[str, Path]]]


def contact_sheet(rows: Sequence[Row], tile: int = TILE) -> Image.Image:
    """A page with a heading and the (label, picture file) pairs of each row, every picture fitted into `tile` pixels.

    Small pictures are enlarged by whole pixels, so that what the model painted is seen as it is.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    columns = max(len(pictures) for _, pictures in rows)
    height = GAP + len(rows) * (tile + 2 * LINE + 2 * GAP)
    page = Image.new("RGB", (GAP + columns * (tile + GAP), height), PAPER)
    draw = ImageDraw.Draw(page)
    heading, small = ImageFont.load_default(18), ImageFont.load_default(13)
    top = GAP
    for name, pictures in rows:
        draw.text((GAP, top), name, INK, heading)
        for column, (label, path) in enumerate(pictures):
            left = GAP + column * (tile + GAP)
            with Image.open(path) as image:
                fitted = _fitted(image, tile)
            page.paste(fitted, (left + (tile - fitted.width) // 2, top + LINE + (tile - fitted.height) // 2))
            draw.text((left, top + LINE + tile + 6), label, FAINT, small)
        top += tile + 2 * LINE + 2 * GAP
    return page


def _fitted(image: Image.Image, tile: int) -> Image.Image:
    picture = Image.new("RGB", image.size, PAPER)
    rgba = image.convert("RGBA")
    picture.paste(rgba, mask=rgba)
    if max(image.size) <= tile:
        factor = tile // max(image.size)
        return picture.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((tile, tile), Image.Resampling.LANCZOS)
    return picture


def thumbnail(before: Path, after: Path, size: int = 512) -> Image.Image:
    """A square picture of a workflow's result, with what it started from as an inset."""
    with Image.open(before) as start, Image.open(after) as result:
        page = ImageOps.fit(_fitted(result, max(result.size)), (size, size), Image.Resampling.LANCZOS)
        inset = _fitted(start, size // 3)
    framed = ImageOps.expand(inset, 4, PAPER)
    page.paste(framed, (GAP, size - framed.height - GAP))
    return page
