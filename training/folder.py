"""References from a folder: pictures, and for each a mask beside it or its own alpha channel."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import references
from .references import Reference

log = logging.getLogger(__name__)

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MASK = ".mask.png"


def load(folder: Path) -> list[Reference]:
    """The references of all pictures in `folder`, by name; they may differ in size. Orientation tags of cameras are honoured.

    A picture's mask is `<name without ending>.mask.png`, white where the subject is (transparent counts as black). Without that
    file it is the picture's alpha channel, opaque where the subject is. ValueError that names the file and says what would do.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: put three to five pictures of the subject into a folder, each with its mask.")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    masks = {path.name.lower(): path for path in files if path.name.lower().endswith(MASK)}
    pictures = [path for path in files if path.suffix.lower() in PICTURES and path not in masks.values()]
    if not pictures:
        raise ValueError(
            f"there is no picture in {folder} (looked for {', '.join(sorted(PICTURES))}): put three to five pictures of the subject there."
        )
    wanted = {f"{path.stem.lower()}{MASK}" for path in pictures}
    for name in masks.keys() - wanted:
        log.warning("%s is the mask of no picture in the folder; it is not used.", masks[name].name)
    pairs = [_pair(path, masks.get(f"{path.stem.lower()}{MASK}")) for path in pictures]
    return references.pair([image[None] for image, _ in pairs], [mask[None] for _, mask in pairs])


def _pair(picture: Path, mask: Path | None) -> tuple[Tensor, Tensor]:
    """[H, W, 3] and [H, W], float32 in 0..1."""
    opened = _opened(picture)
    image = _colours(opened)
    if mask is not None:
        drawn = _opened(mask)
        if drawn.size != opened.size:
            sizes = [f"{width} x {height}" for width, height in (opened.size, drawn.size)]
            raise ValueError(
                f"{picture.name} is {sizes[0]} pixels but its mask {mask.name} {sizes[1]}: draw the mask on the same picture, "
                "before or after both are resized."
            )
        marked, where = _colours(drawn).mean(-1) * _alpha(drawn), f"{mask.name}: paint the subject white in it"
    else:
        marked, where = _alpha(opened), "its alpha channel: leave the subject opaque"
        if bool((marked == 1).all()):
            raise ValueError(
                f"{picture.name} has no mask: save one beside it as {picture.stem}{MASK}, of the same size and white where the subject is, "
                "or save the picture as a PNG in which everything but the subject is transparent."
            )
    if int((marked > 0.5).sum()) < references.SMALLEST:
        raise ValueError(f"the mask of {picture.name} marks nothing ({where}), or take the picture out of the folder.")
    return image, marked


def _opened(path: Path) -> Image.Image:
    """The first frame, upright."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is no picture, or of a kind that Pillow does not know" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{path.name} cannot be read ({reason}): save it again as PNG or JPEG, or take it out of the folder.") from error


def _colours(image: Image.Image) -> Tensor:
    """[H, W, 3] in 0..1. Pillow would clip 16-bit grey instead of scaling it."""
    if image.mode.startswith("I"):
        return _tensor(np.asarray(image, np.float32) / 65535)[..., None].repeat(1, 1, 3)
    return _tensor(np.asarray(image.convert("RGB"), np.float32) / 255)


def _alpha(image: Image.Image) -> Tensor:
    """[H, W] in 0..1, 1 without an alpha channel."""
    if "transparency" not in image.info and "A" not in image.getbands():
        return torch.ones(image.height, image.width)
    return _tensor(np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32)).clamp(0, 1)
