"""Pictures from a folder: references, each with a mask beside it or its own alpha channel; or pictures with captions beside them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..engine.checks import ENLARGED
from . import references
from .captions import Picture
from .references import Reference

log = logging.getLogger(__name__)

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"})
OTHERS = frozenset({".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw", ".svg"})
"""Endings of pictures that are not read, which is said."""
MASK = ".mask.png"
OBJECT = re.compile(rf"(.+)\.mask(?:-(\d+))?(?:{'|'.join(sorted(re.escape(ending) for ending in PICTURES))})", re.IGNORECASE)
"""Names of masks: with a number where a picture has several objects. For one subject the mask without a number counts."""
ORIENTATION = 0x0112
"""The tag of cameras."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of each orientation upright; from 5 on it lies on its side."""
TRANSPARENT = 0.01
"""So large a part of a picture that is cut out is transparent at least: rounded corners and a stray pixel are no mask."""
HEAD = 1 << 16
"""So many bytes of a file tell it from others of its size."""
MOST_NAMED = 20
"""So many pictures that are of no use are named at once."""
FEW_NAMED = 5
"""So many files that are left out are named."""


def load(folder: Path) -> list[Reference]:
    """The references of all pictures in `folder`, by name; they may differ in size. Orientation tags of cameras are honoured.

    A picture's mask is `<name without ending>.mask.png`, white where the subject is (transparent counts as black). Without that
    file it is the alpha channel of a cut-out (`is_cut_out`), opaque where the subject is. ValueError that names the file and says
    what would do.
    """
    found = _found(folder, "put three to five pictures of the subject", ", each with its mask")
    pairs = [_pair(path, mask) for path, mask in found]
    return references.pair([image[None] for image, _ in pairs], [mask[None] for _, mask in pairs])


def captioned(folder: Path) -> CaptionedFolder:
    """All pictures of `folder`, by name, with their captions: `<name without ending>.txt`, in UTF-8. Masks as in `load`, but optional.

    ValueError that names the file and says what would do, for what can be told without reading whole pictures.
    """
    found = _found(folder, "put the pictures to learn from", ", each with its caption")
    captions: list[str] = []
    sizes: list[tuple[int, int]] = []
    problems: list[str] = []
    for path, _ in found:
        try:
            sizes.append(_size(path))
            captions.append(_caption(path))
        except ValueError as error:
            problems.append(str(error))
    _refuse(problems)
    if not any(captions):
        raise ValueError(f"every caption in {folder} is empty: write into each what its picture shows.")
    return CaptionedFolder(found, captions, sizes)


@dataclass(frozen=True)
class CaptionedFolder:
    """Pictures (and masks or None) that are read from the disk when they are asked for; see `captions.Pictures`."""

    files: Sequence[tuple[Path, Path | None]]
    captions: Sequence[str]
    sizes: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int, /) -> Picture:
        path, mask = self.files[number]
        image = open_picture(path)
        drawn = alpha(image) if mask is None else mask_of(mask, path, image.size)
        whole = not is_cut_out(drawn) if mask is None else bool((drawn == 1).all())
        return Picture(colours(image), self.captions[number], None if whole else drawn)

    def read_all(self, on_picture: Callable[[int, int], None]) -> None:
        """Reads every picture and mask once; `on_picture` is told how many of how many. ValueError that names those that are of no use."""
        problems: list[str] = []
        for number in range(len(self)):
            try:
                self[number]
            except ValueError as error:
                problems.append(str(error))
            on_picture(number + 1, len(self))
        _refuse(problems)

    def check_size(self, size: int) -> None:
        """Refuses pictures that are too small for crops of `size`: ValueError that names them."""
        problems = [too_small(path, shown, size) for (path, _), shown in zip(self.files, self.sizes, strict=True)]
        _refuse([problem for problem in problems if problem])

    def fingerprint(self) -> str:
        """Of captions, sizes of files and their beginnings: names do not matter."""
        digest = hashlib.sha256()
        for (path, mask), caption in zip(self.files, self.captions, strict=True):
            digest.update(caption.encode())
            for file in (path, mask):
                add_file(digest, file)
        return digest.hexdigest()[:16]


def too_small(path: Path, shown: tuple[int, int], size: int) -> str:
    """Says that a picture, height and width as `shown`, is too small for crops of `size`; nothing where it is large enough."""
    height, width = shown
    short = min(height, width)
    if short * ENLARGED >= size:
        return ""
    return (
        f"{path.name} is {width} x {height} pixels, too small for crops of {size}: use a larger picture, or a --size of at most "
        f"{short * ENLARGED // 8 * 8}."
    )


def _refuse(problems: Sequence[str]) -> None:
    """Raises ValueError with the first of the problems, and how many more there are; nothing where there is none."""
    if problems:
        more = [f"and {len(problems) - MOST_NAMED} more"] if len(problems) > MOST_NAMED else []
        raise ValueError("\n".join([*problems[:MOST_NAMED], *more]))


def _found(folder: Path, advice: str, more: str) -> list[tuple[Path, Path | None]]:
    """The pictures in a folder, by name, each with the file of its mask, if there is one. ValueError for two of one name."""
    pictures, masks = listing(folder, advice, more)
    named: dict[str, Path] = {}
    for path in pictures:
        if (other := named.setdefault(path.stem.lower(), path)) is not path:
            raise namesakes(other, path)
    first = {path.stem.lower(): path for those in masks.values() for path in reversed(those)}
    return [(path, first.get(f"{path.stem.lower()}.mask")) for path in pictures]


def listing(folder: Path, advice: str, more: str, quiet: bool = False) -> tuple[list[Path], dict[str, list[Path]]]:
    """The pictures in a folder, by name; and the masks in it, for each picture's name without ending, in lower case, in their order.

    What is left out is said, unless `quiet`. ValueError with `advice`, and maybe `more`, where there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: {advice} into a folder{more}.")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    masks, names = masks_among(files, quiet)
    pictures = [path for path in files if path.suffix.lower() in PICTURES and path.name not in names]
    unread = [path.name for path in files if path.suffix.lower() in OTHERS]
    if not pictures:
        there = f"; {some(unread)}: of a kind that is not read, save as PNG or JPEG" if unread else ""
        raise ValueError(f"there is no picture in {folder} (looked for {', '.join(sorted(PICTURES))}{there}): {advice} there.")
    if unread and not quiet:
        log.warning("%s: left out, as this kind of picture is not read. Save as PNG or JPEG.", some(unread))
    for name in () if quiet else sorted(masks.keys() - {path.stem.lower() for path in pictures}):
        log.warning("%s is the mask of no picture in the folder; it is not used.", masks[name][0].name)
    return pictures, masks


def namesakes(one: Path, other: Path) -> ValueError:
    """Gives the error of two pictures whose names differ in their endings alone."""
    return ValueError(f"{one.name} and {other.name} have one name, so their captions and masks would too: rename one of them.")


def some(names: Sequence[str]) -> str:
    """Names the first few, and says how many more there are."""
    more = f" and {len(names) - FEW_NAMED} more" if len(names) > FEW_NAMED else ""
    return f"{', '.join(names[:FEW_NAMED])}{more}"


def masks_among(files: Sequence[Path], quiet: bool = False) -> tuple[dict[str, list[Path]], set[str]]:
    """The masks among files, for each picture's name without ending, in lower case, by number; and the names of all of them.

    Of two that differ in their ending alone the PNG counts, else the first; that is said, unless `quiet`.
    """
    numbered: dict[str, dict[tuple[int, str], Path]] = {}
    names: set[str] = set()
    for path in sorted(files, key=lambda path: (path.suffix.lower() != ".png", path.name)):
        if named := OBJECT.fullmatch(path.name):
            names.add(path.name)
            first = numbered.setdefault(named[1].lower(), {}).setdefault((int(named[2] or 1), named[2] or ""), path)
            if first is not path and not quiet:
                log.warning("%s is left out: the mask of that object is %s.", path.name, first.name)
    return {name: [path for _, path in sorted(those.items())] for name, those in numbered.items()}, names


def add_file(digest: Any, file: Path | None) -> None:
    """A file's size and its beginning; that there is none for None."""
    digest.update(str(file and file.stat().st_size).encode())
    if file is not None:
        with file.open("rb") as opened:
            digest.update(opened.read(HEAD))


def _caption(picture: Path) -> str:
    """The text beside a picture, in one line."""
    path = caption_file(picture)
    if not path.exists():
        raise ValueError(
            f"{picture.name} has no caption: write what it shows into {path.name} beside it, or take the picture out of the folder."
        )
    return text_of(path)


def caption_file(picture: Path) -> Path:
    """Gives the path of the caption beside a picture, whether or not there is one: NAME.TXT if it is there, else NAME.txt."""
    capitals = picture.with_suffix(".TXT")
    return capitals if capitals.exists() and not picture.with_suffix(".txt").exists() else picture.with_suffix(".txt")


def text_of(path: Path) -> str:
    """A caption's file, in one line."""
    try:
        return " ".join(path.read_text("utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the caption {path.name} cannot be read ({error}): save it again as text in UTF-8.") from error


def _size(picture: Path) -> tuple[int, int]:
    """Height and width as it stands upright, from its head alone."""
    try:
        with Image.open(picture) as image:
            width, height = image.size
            # Pillow turns a TIFF by itself, its size at once.
            return (width, height) if image.format != "TIFF" and _orientation(image) >= 5 else (height, width)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _unreadable(picture, error) from error


def _orientation(image: Image.Image) -> int:
    """Gives a picture's orientation as cameras write it, 1 (upright) where that is damaged or no orientation."""
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds on damaged tags; the picture itself is whole
        return 1
    return turned if isinstance(turned, int) and turned in TURNS else 1


def _pair(picture: Path, mask: Path | None) -> tuple[Tensor, Tensor]:
    """[H, W, 3] and [H, W], float32 in 0..1."""
    opened = open_picture(picture)
    image = colours(opened)
    if mask is not None:
        marked = mask_of(mask, picture, opened.size)
        where = f"{mask.name}: paint the subject white in it"
    else:
        marked = alpha(opened)
        where = "its alpha channel: leave the subject opaque"
        if not is_cut_out(marked):
            raise ValueError(
                f"{picture.name} has no mask: save one beside it as {picture.stem}{MASK}, of the same size and white where the subject is, "
                "or save the picture as a PNG in which everything but the subject is transparent."
            )
    if int((marked > 0.5).sum()) < references.SMALLEST:
        raise ValueError(f"the mask of {picture.name} marks nothing ({where}), or take the picture out of the folder.")
    return image, marked


def mask_of(mask: Path, picture: Path, size: tuple[int, int]) -> Tensor:
    """[H, W] in 0..1, of the picture's size, (width, height)."""
    drawn = open_picture(mask)
    if drawn.size != size:
        sizes = [f"{width} x {height}" for width, height in (size, drawn.size)]
        raise ValueError(
            f"{picture.name} is {sizes[0]} pixels but its mask {mask.name} {sizes[1]}: draw the mask on the same picture, "
            "before or after both are resized."
        )
    return colours(drawn).mean(-1) * alpha(drawn)


def reference_of(reference: Path, picture: Path, opened: Image.Image) -> Tensor:
    """Reads the picture [H, W, 3] in 0..1 that shows another one's object on another ground; ValueError if it is of another size."""
    drawn = open_picture(reference)
    if drawn.size != opened.size:
        sizes = [f"{width} x {height}" for width, height in (opened.size, drawn.size)]
        raise ValueError(
            f"{picture.name} is {sizes[0]} pixels but its reference {reference.name} {sizes[1]}: the object has to stand in the same place "
            "of both, so bring both to one size."
        )
    return colours(drawn)


def open_picture(path: Path) -> Image.Image:
    """The first frame, upright."""
    try:
        with Image.open(path) as image:
            image.load()
            orientation = _orientation(image)
            return image.transpose(TURNS[orientation]) if orientation in TURNS else image.copy()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = "it is no picture, or of a kind that Pillow does not know" if isinstance(error, Image.UnidentifiedImageError) else error
    return ValueError(f"{path.name} cannot be read ({reason}): save it again as PNG or JPEG, or take it out of the folder.")


def colours(image: Image.Image) -> Tensor:
    """[H, W, 3] in 0..1. Pillow would clip 16-bit grey instead of scaling it."""
    if image.mode.startswith("I"):
        return _tensor(np.asarray(image, np.float32) / 65535)[..., None].repeat(1, 1, 3)
    return _tensor(np.asarray(image.convert("RGB"), np.float32) / 255)


def alpha(image: Image.Image) -> Tensor:
    """[H, W] in 0..1, 1 without an alpha channel."""
    if "transparency" not in image.info and "A" not in image.getbands():
        return torch.ones(image.height, image.width)
    return _tensor(np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255)


def is_cut_out(opaque: Tensor) -> bool:
    """Says whether an alpha channel [H, W] in 0..1 is the mask of an object where nobody said so: whether `TRANSPARENT` of it is."""
    return float((opaque < 0.5).float().mean()) >= TRANSPARENT


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32)).clamp(0, 1)
