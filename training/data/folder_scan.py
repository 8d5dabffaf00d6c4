"""What there is of a folder's pictures, beside them and in a cache: sizes, masks, captions, references, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import folder as pictures
from .pictures import marking
from .scan_cache import ScanCache

NO_OBJECT = ".no-object"
"""Ends the name of the empty file that stands for the masks of a picture in which no object was found."""
REFERENCE = ".reference"
"""Ends the name, without its ending, of a picture that shows another one's object on another ground."""

Counted = Callable[[int, int], None]
"""Is told how much is done, of how much; what it raises interrupts."""


@dataclass(frozen=True)
class PictureFiles:
    """What there is of a picture. `size`: height and width, upright. `masks`: a file for each object. `cut_out`: its alpha channel is the
    mask. `caption`: None where there is none. `no_object`: none was found in it. `reference`: the file that shows its object on another
    ground. `problem`: says in words why the picture is of no use."""

    path: Path
    size: tuple[int, int] = (0, 0)
    masks: tuple[Path, ...] = ()
    cut_out: bool = False
    caption: str | None = None
    no_object: bool = False
    reference: Path | None = None
    problem: str = ""

    @property
    def has_object(self) -> bool:
        return self.cut_out or bool(self.masks)


def scan(folder: Path, cache: Path, on_picture: Counted | None = None, quiet: bool = False) -> list[PictureFiles]:
    """Reads every picture in `folder` wholly, with what lies beside it; those that the cache knows are not read again.

    What the cache holds of a picture that was replaced since is removed. ValueError for no picture, or two of one name.
    """
    listing = Listing(folder, quiet)
    annotations = Annotations(folder, cache)
    known = ScanCache(cache)
    found: list[PictureFiles] = []
    try:
        for done, path in enumerate(listing.pictures, 1):
            masks = listing.masks.get(path.stem.lower(), [])
            reference = listing.references.get(path.stem.lower())
            measured = known.of(path, masks, reference, _measure)
            if measured.replaced:
                annotations.remove(path)
            caption, problem = _text(pictures.caption_file(path), annotations.text(path))
            one = PictureFiles(
                path, measured.size, tuple(masks), measured.cut_out, caption, reference=reference, problem=measured.problem or problem
            )
            if not one.has_object and not one.problem:
                one = replace(one, masks=annotations.masks(path), no_object=annotations.no_object(path))
                one = replace(one, problem=_problem_of_cached(one, known))
            found.append(one)
            if on_picture is not None:
                on_picture(done, len(listing.pictures))
    finally:
        known.write()
    return found


class Listing:
    """The pictures of a folder, by name; of each name without ending, in lower case, the masks in their order and the reference.

    ValueError for no picture, or for two that would share caption and masks.
    """

    def __init__(self, folder: Path, quiet: bool = False) -> None:
        found, self.masks = pictures.listing(folder, "put the pictures to learn from", "", quiet)
        names = {path.stem.lower() for path in found}
        self.pictures: list[Path] = []
        self.references: dict[str, Path] = {}
        first: dict[str, Path] = {}
        for path in found:
            name = path.stem.lower()
            target = name.removesuffix(REFERENCE)
            same = self.references if target != name and target in names else first
            other = same.setdefault(target if same is self.references else name, path)
            if other is not path:
                raise pictures.namesakes(other, path)
            if same is first:
                self.pictures.append(path)


class Annotations:
    """What a cache holds of pictures. One that is the pictures' own folder holds nothing but markers: all else is the user's."""

    def __init__(self, folder: Path, cache: Path) -> None:
        there = cache.is_dir()
        files = sorted(path for path in cache.iterdir() if not path.name.startswith(".")) if there else []
        if there and cache.samefile(folder):
            files = [path for path in files if path.suffix == NO_OBJECT]
        self._masks = pictures.masks_among(files, quiet=True)[0]
        self._files = {path.name: path for path in files}

    def masks(self, picture: Path) -> tuple[Path, ...]:
        return tuple(self._masks.get(picture.stem.lower(), ()))

    def text(self, picture: Path) -> Path | None:
        return self._files.get(text_name(picture))

    def no_object(self, picture: Path) -> bool:
        return marker_name(picture) in self._files

    def remove(self, picture: Path) -> None:
        """Takes away all of a picture."""
        named = (self._files.pop(name, None) for name in (text_name(picture), marker_name(picture)))
        for path in (*self._masks.pop(picture.stem.lower(), ()), *named):
            if path is not None:
                path.unlink(missing_ok=True)


def text_name(picture: Path) -> str:
    """Names the caption's file."""
    return f"{picture.stem}.txt"


def marker_name(picture: Path) -> str:
    """Names the file that says that no object was found."""
    return f"{picture.stem}{NO_OBJECT}"


def objects_in(marks: Sequence[Tensor], one: PictureFiles) -> Tensor:
    """Stacks the masks of a picture that mark something: [n, H, W]. ValueError where none does."""
    found = marking(torch.stack(list(marks)))
    if not len(found):
        place = f"{one.masks[0].name}: paint the object white in it" if one.masks else "its alpha channel: leave the object opaque"
        raise ValueError(f"the mask of {one.path.name} marks nothing ({place}), or take the picture out of the folder.")
    return found


def _measure(path: Path, masks: Sequence[Path], reference: Path | None) -> tuple[tuple[int, int], bool]:
    """Reads a picture and what lies beside it: its size, and whether it is cut out. ValueError for what cannot be used."""
    image = pictures.open_picture(path)
    alpha = pictures.alpha(image)
    cut_out = not masks and pictures.is_cut_out(alpha)
    if masks or cut_out:
        marks = [pictures.mask_of(mask, path, image.size) for mask in masks] or [alpha]
        objects_in(marks, PictureFiles(path, masks=tuple(masks)))
    if reference is not None:
        pictures.reference_of(reference, path, image)
    return (image.height, image.width), cut_out


def _problem_of_cached(one: PictureFiles, known: ScanCache) -> str:
    """Says what is wrong with the masks that the cache holds of a picture, which somebody may have mended there; else nothing."""
    if not one.masks:
        return ""

    def measure(mask: Path, more: Sequence[Path], _reference: Path | None) -> tuple[tuple[int, int], bool]:
        height, width = one.size
        objects_in([pictures.mask_of(path, one.path, (width, height)) for path in (mask, *more)], one)
        return one.size, False

    problem = known.of(one.masks[0], one.masks[1:], None, measure).problem
    return f"{problem} Deleted from {one.masks[0].parent}, it is made anew." if problem else ""


def _text(*places: Path | None) -> tuple[str | None, str]:
    """Reads the first file that is there: what stands in it, and what is wrong with it."""
    for path in places:
        if path is not None and path.is_file():
            try:
                return pictures.text_of(path), ""
            except ValueError as error:
                return None, str(error)
    return None, ""
