"""Pictures with captions and masks of their objects, from a folder: what a picture lacks may lie in a cache (see `annotate`)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..mask_controlnet.examples import Example
from . import folder as pictures
from .folder_scan import NAMED, Entry, seen, survey, text_name, usable

log = logging.getLogger(__name__)

CACHE = ".maskprompt"
"""The cache's usual name, in the folder of the pictures."""


def masked(folder: Path, cache: Path | None = None, size: int = 0, skip_broken: bool = False, quiet: bool = False) -> MaskedFolder:
    """All pictures of `folder`, by name, with captions and masks: `NAME.txt`, and `NAME.mask.png`, `NAME.mask-2.png` and so on for each
    object, beside the picture or in `cache`; or the picture's alpha channel, opaque where the object is.

    Pictures without an object are left out, with a warning; `quiet` has none about broken ones. ValueError that names the files and says
    what would do: as `usable`, and for pictures that have neither mask nor marker, or no caption.
    """
    place = cache or folder / CACHE
    entries = usable(survey(folder, place, quiet=quiet), size, skip_broken, quiet)
    check_complete(*lacking(entries))
    barren = [entry for entry in entries if not entry.has_object]
    if len(barren) == len(entries):
        raise ValueError(
            f"in none of the {len(entries)} pictures in {folder} an object was found: give them masks ({_mask_advice(barren)})."
        )
    if barren:
        log.warning("No object was found in %s: left out, unless they get masks (%s).", _named(barren), _mask_advice(barren))
    kept = [entry for entry in entries if entry.has_object]
    captions = [entry.caption or "" for entry in kept]
    if not any(captions):
        raise ValueError(f"every caption of {folder} is empty: write into each what its picture shows.")
    return MaskedFolder(kept, captions, [entry.size for entry in kept])


@dataclass(frozen=True)
class MaskedFolder:
    """Pictures and masks that are read from the disk when they are asked for; see `mask_controlnet_samples.Examples`."""

    entries: Sequence[Entry]
    captions: Sequence[str]
    sizes: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int, /) -> Example:
        entry = self.entries[number]
        image = pictures.open_picture(entry.path)
        marks = [pictures.mask_of(mask, entry.path, image) for mask in entry.masks] or [pictures.alpha(image)]
        return Example(pictures.colours(image), seen(marks, entry), self.captions[number])

    def fingerprint(self) -> str:
        """Of captions, sizes of files and their beginnings: names do not matter."""
        digest = hashlib.sha256()
        for entry, caption in zip(self.entries, self.captions, strict=True):
            digest.update(f"{caption}\n{len(entry.masks)}\n".encode())
            for file in (entry.path, *entry.masks):
                pictures.add_file(digest, file)
        return digest.hexdigest()[:16]


def lacking(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The pictures in which objects are still to be found, and those that lack a caption, unless no object was found in them."""
    bare = [entry for entry in entries if not entry.has_object and not entry.barren]
    return bare, [entry for entry in entries if entry.caption is None and (entry.has_object or not entry.barren)]


def check_complete(bare: Sequence[Entry], wordless: Sequence[Entry]) -> None:
    """ValueError where masks or captions are missing and nothing can make them."""
    if bare:
        raise ValueError(
            f"{_named(bare)}: no mask says where an object is. Let a SAM file find the objects (--sam), or give masks "
            f"({_mask_advice(bare)})."
        )
    if wordless:
        raise ValueError(
            f"{_named(wordless)}: there is no caption. Let BLIP write the captions (--blip), or write what a picture shows into "
            f"NAME.txt beside it, such as {text_name(wordless[0].path)}."
        )


def _named(entries: Sequence[Entry]) -> str:
    """ "2 pictures (a.jpg, b.png)"."""
    names = ", ".join(entry.path.name for entry in entries[:NAMED])
    more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
    return f"{len(entries)} picture{'s' if len(entries) > 1 else ''} ({names}{more})"


def _mask_advice(entries: Sequence[Entry]) -> str:
    return f"NAME.mask.png beside NAME.jpg, such as {entries[0].path.stem}{pictures.MASK}, of the same size and white on the object"
