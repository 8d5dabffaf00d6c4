"""A folder of pictures with captions and masks of their objects. What a picture lacks may lie in a cache, or is made by SAM and BLIP."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import annotate
from . import folder as pictures
from .folder_scan import REFERENCE, Counted, PictureFiles, objects_in, scan, text_name
from .objects import Example

log = logging.getLogger(__name__)

CACHE = ".maskprompt"
"""The cache's usual name, in the folder of the pictures."""
NAMED = 5
"""So many files are named in a message; of the others, how many they are."""


class ObjectFolder:
    """All pictures of a folder, by name, as examples (`objects.Examples`); scanned once, and read when they are asked for.

    Captions and masks are `NAME.txt`, and `NAME.mask.png`, `NAME.mask-2.png` and so on for each object, beside the picture or in `cache`;
    or the picture's alpha channel, opaque where the object is. `NAME.reference.png` shows the same object in the same place, on another
    ground. Once the folder is `finished`, pictures without an object are left out.

    ValueError that names the files and says what would do, for pictures that cannot be used (left out with `skip_broken`, with a warning
    unless `quiet`) or are too small for crops of `size` (0: none is).
    """

    def __init__(
        self,
        folder: Path,
        cache: Path | None = None,
        size: int = 0,
        skip_broken: bool = False,
        quiet: bool = False,
        on_picture: Counted | None = None,
    ) -> None:
        self.folder = folder
        self.cache = cache or folder / CACHE
        self._take(usable(scan(folder, self.cache, on_picture, quiet), size, skip_broken, quiet))

    def _take(self, found: Sequence[PictureFiles]) -> None:
        self.pictures = tuple(found)
        # Once: a hundred thousand pictures take a while, and every sample asks.
        self.captions = [one.caption or "" for one in found]
        self.sizes = [one.size for one in found]

    def _change(self, changed: Sequence[PictureFiles]) -> None:
        found = {one.path: one for one in changed}
        self._take([found.get(one.path, one) for one in self.pictures])

    @property
    def without_mask(self) -> list[PictureFiles]:
        """The pictures in which objects are still to be found."""
        return [one for one in self.pictures if not one.has_object and not one.no_object]

    @property
    def without_caption(self) -> list[PictureFiles]:
        """The pictures that lack a caption, unless no object was found in them."""
        return [one for one in self.pictures if one.caption is None and (one.has_object or not one.no_object)]

    def find_objects(self, model: annotate.Segmenter, on_picture: Counted, choice: annotate.Choice | None = None) -> None:
        """Lets a SAM find the objects that no mask marks, and writes them into the cache."""
        self._change(annotate.make_masks(self.without_mask, self.cache, model, on_picture, choice))

    def write_captions(self, write: annotate.Writer, on_picture: Counted) -> None:
        """Lets a BLIP write the captions that are missing, into the cache."""
        self._change(annotate.make_captions(self.without_caption, self.cache, write, on_picture))

    def check_complete(self, masks: bool = True, captions: bool = True) -> None:
        """Refuses a folder in which masks or captions are missing, where nothing will make them: ValueError."""
        if masks and (missing := self.without_mask):
            raise ValueError(
                f"{_named(missing)}: no mask says where an object is. Let a SAM file find the objects (--sam), or give masks "
                f"({_mask_advice(missing)})."
            )
        if captions and (missing := self.without_caption):
            raise ValueError(
                f"{_named(missing)}: there is no caption. Let BLIP write the captions (--blip), or write what a picture shows into "
                f"NAME.txt beside it, such as {text_name(missing[0].path)}."
            )

    def check_references(self) -> None:
        """Refuses a folder in which a picture has no reference beside it: ValueError."""
        missing = [one for one in self.pictures if one.reference is None]
        if missing:
            raise ValueError(
                f"{_named(missing)}: there is no reference. Put a picture of the same object in the same place, on another ground, beside "
                f"it, such as {missing[0].path.stem}{REFERENCE}.png, or train on other --pairs."
            )

    def finished(self) -> ObjectFolder:
        """Leaves out the pictures in which no object was found, with a warning. ValueError where something is missing, or nothing left."""
        self.check_complete()
        without = [one for one in self.pictures if not one.has_object]
        if len(without) == len(self.pictures):
            raise ValueError(
                f"in none of the {len(without)} pictures in {self.folder} an object was found: give them masks ({_mask_advice(without)})."
            )
        if without:
            log.warning("No object was found in %s: left out, unless they get masks (%s).", _named(without), _mask_advice(without))
        self._take([one for one in self.pictures if one.has_object])
        if not any(self.captions):
            raise ValueError(f"every caption of {self.folder} is empty: write into each what its picture shows.")
        return self

    @property
    def have_references(self) -> bool:
        return all(one.reference is not None for one in self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int, /) -> Example:
        one = self.pictures[number]
        image = pictures.open_picture(one.path)
        marks = [pictures.mask_of(mask, one.path, image.size) for mask in one.masks] or [pictures.alpha(image)]
        reference = None if one.reference is None else pictures.reference_of(one.reference, one.path, image)
        return Example(pictures.colours(image), objects_in(marks, one), one.caption or "", reference)

    def fingerprint(self) -> str:
        """Of captions, sizes of files and their beginnings: names do not matter."""
        digest = hashlib.sha256()
        for one in self.pictures:
            digest.update(f"{one.caption or ''}\n{len(one.masks)}\n".encode())
            beside = (one.reference,) if one.reference is not None else ()
            for file in (one.path, *one.masks, *beside):
                pictures.add_file(digest, file)
        return digest.hexdigest()[:16]


def usable(found: Sequence[PictureFiles], size: int = 0, skip_broken: bool = False, quiet: bool = False) -> list[PictureFiles]:
    """Picks those without a problem, and not too small for crops of `size`. The others are a ValueError that names them, or left out with
    a warning if `skip_broken`."""
    checked = [one if one.problem else replace(one, problem=pictures.too_small(one.path, one.size, size)) for one in found]
    good = [one for one in checked if not one.problem]
    bad = [one for one in checked if one.problem]
    told = "\n".join(["", *(f"  {one.problem}" for one in bad[:NAMED]), *([f"  and {len(bad) - NAMED} more"] * (len(bad) > NAMED))])
    if not good or (bad and not skip_broken):
        advice = " Mend them, take them out of the folder, or leave them out with --skip-broken." if good else ""
        raise ValueError(f"{len(bad)} of {len(found)} pictures cannot be used.{advice}{told}")
    if bad and not quiet:
        log.warning("%d of %d pictures cannot be used and are left out.%s", len(bad), len(found), told)
    return good


def _named(found: Sequence[PictureFiles]) -> str:
    """ "2 pictures (a.jpg, b.png)"."""
    return f"{len(found)} picture{'s' if len(found) > 1 else ''} ({pictures.some([one.path.name for one in found])})"


def _mask_advice(found: Sequence[PictureFiles]) -> str:
    return f"NAME.mask.png beside NAME.jpg, such as {found[0].path.stem}{pictures.MASK}, of the same size and white on the object"
