"""What there is of a folder's pictures, beside them and in a cache: sizes, masks, captions, and what is wrong with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..engine.checks import ENLARGED
from . import folder as pictures
from .references import SMALLEST
from .scan_cache import Records

log = logging.getLogger(__name__)

NO_OBJECT = ".no-object"
"""Ends the name of the empty file that stands for the masks of a picture in which no object was found."""
NAMED = 5
"""So many files are named in a message; of the others, how many they are."""

Counted = Callable[[int, int], None]
"""Is told how much is done, of how much; what it raises interrupts."""


@dataclass(frozen=True)
class Entry:
    """What there is of a picture. `masks` has a file for each object; `cut_out`: its alpha channel is the mask; `barren`: no object was
    found in it. `size` is height and width, upright. `problem` says in words why the picture is of no use."""

    path: Path
    size: tuple[int, int] = (0, 0)
    masks: tuple[Path, ...] = ()
    cut_out: bool = False
    caption: str | None = None
    barren: bool = False
    problem: str = ""

    @property
    def has_object(self) -> bool:
        return self.cut_out or bool(self.masks)


def survey(folder: Path, cache: Path, on_picture: Counted | None = None, quiet: bool = False) -> list[Entry]:
    """What there is of every picture in `folder`. Each is read wholly, once: what was found is kept in the cache.

    What the cache holds of a picture that was replaced since is removed. ValueError for no picture, or two of one name.
    """
    found, beside = listed(folder, quiet)
    kept = Records(cache)
    made = _Made(folder, cache)
    entries: list[Entry] = []
    try:
        for done, path in enumerate(found, 1):
            masks = beside.get(path.stem.lower(), [])
            looked = kept.of(path, masks, _look)
            if looked.replaced:
                made.remove(path)
            caption, problem = _text(path.with_suffix(".txt"), made.text(path))
            entry = Entry(path, looked.size, tuple(masks), looked.cut_out, caption, problem=looked.problem or problem)
            if not entry.has_object:
                entry = replace(entry, masks=made.masks(path), barren=made.barren(path))
            entries.append(entry)
            if on_picture is not None:
                on_picture(done, len(found))
    finally:
        kept.write()
    return entries


def listed(folder: Path, quiet: bool = False) -> tuple[list[Path], dict[str, list[Path]]]:
    """As `folder.listing`. ValueError also for two pictures that would share caption and masks."""
    found, masks = pictures.listing(folder, "put the pictures to learn from", "", quiet)
    first: dict[str, Path] = {}
    for path in found:
        other = first.setdefault(path.stem.lower(), path)
        if other is not path:
            raise ValueError(f"{other.name} and {path.name} have one name, so their captions and masks would too: rename one of them.")
    return found, masks


class _Made:
    """What a cache holds of pictures. One that is the pictures' own folder holds nothing but markers: all else is the user's."""

    def __init__(self, folder: Path, cache: Path) -> None:
        there = cache.is_dir()
        files = sorted(path for path in cache.iterdir() if not path.name.startswith(".")) if there else []
        if there and cache.samefile(folder):
            files = [path for path in files if path.suffix == NO_OBJECT]
        self._masks = pictures.masks_among(files)[0]
        self._files = {path.name: path for path in files}

    def masks(self, picture: Path) -> tuple[Path, ...]:
        return tuple(self._masks.get(picture.stem.lower(), ()))

    def text(self, picture: Path) -> Path | None:
        return self._files.get(text_name(picture))

    def barren(self, picture: Path) -> bool:
        return marker_name(picture) in self._files

    def remove(self, picture: Path) -> None:
        """All of a picture."""
        named = (self._files.pop(name, None) for name in (text_name(picture), marker_name(picture)))
        for path in (*self._masks.pop(picture.stem.lower(), ()), *named):
            if path is not None:
                path.unlink(missing_ok=True)


def text_name(picture: Path) -> str:
    """Of the caption's file."""
    return f"{picture.stem}.txt"


def marker_name(picture: Path) -> str:
    """Of the file that says that no object was found."""
    return f"{picture.stem}{NO_OBJECT}"


def usable(entries: Sequence[Entry], size: int = 0, skip_broken: bool = False, quiet: bool = False) -> list[Entry]:
    """Those without a problem, and not too small for crops of `size`. The others are a ValueError that names them, or left out with a
    warning if `skip_broken`."""
    checked = [entry if entry.problem else replace(entry, problem=_too_small(entry, size)) for entry in entries]
    bad, good = ([entry for entry in checked if bool(entry.problem) == wanted] for wanted in (True, False))
    told = "\n".join(["", *(f"  {entry.problem}" for entry in bad[:NAMED]), *([f"  and {len(bad) - NAMED} more"] * (len(bad) > NAMED))])
    if not good or (bad and not skip_broken):
        advice = " Mend them, take them out of the folder, or leave them out with --skip-broken." if good else ""
        raise ValueError(f"{len(bad)} of {len(entries)} pictures cannot be used.{advice}{told}")
    if bad and not quiet:
        log.warning("%d of %d pictures cannot be used and are left out.%s", len(bad), len(entries), told)
    return good


def _look(path: Path, masks: Sequence[Path]) -> tuple[tuple[int, int], bool]:
    """Reads a picture and the masks beside it: its size, and whether it is cut out. ValueError for what cannot be used."""
    image = pictures.open_picture(path)
    alpha = pictures.alpha(image)
    cut_out = not masks and not bool((alpha == 1).all())
    if masks or cut_out:
        marks = [pictures.mask_of(mask, path, image) for mask in masks] or [alpha]
        seen(marks, Entry(path, masks=tuple(masks)))
    return (image.height, image.width), cut_out


def _text(*places: Path | None) -> tuple[str | None, str]:
    """What stands in the first file that is there, and what is wrong with it."""
    for path in places:
        if path is not None and path.is_file():
            try:
                return pictures.text_of(path), ""
            except ValueError as error:
                return None, str(error)
    return None, ""


def seen(marks: Sequence[Tensor], entry: Entry) -> Tensor:
    """[n, H, W] of those that mark something."""
    found = [mark for mark in marks if int((mark > 0.5).sum()) >= SMALLEST]
    if not found:
        where = f"{entry.masks[0].name}: paint the object white in it" if entry.masks else "its alpha channel: leave the object opaque"
        raise ValueError(f"the mask of {entry.path.name} marks nothing ({where}), or take the picture out of the folder.")
    return torch.stack(found)


def _too_small(entry: Entry, size: int) -> str:
    height, width = entry.size
    short = min(height, width)
    if short * ENLARGED >= size:
        return ""
    return (
        f"{entry.path.name} is {width} x {height} pixels, too small for crops of {size}: use a larger picture, or a --size of at most "
        f"{short * ENLARGED // 8 * 8}."
    )
