"""What was found when a folder's pictures were read, so that a hundred thousand of them are read wholly only once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import folder as pictures

log = logging.getLogger(__name__)

NAME = "pictures.json"
VERSION = 2

Measure = Callable[[Path, Sequence[Path], Path | None], tuple[tuple[int, int], bool]]
"""Of a picture, the masks and the reference beside it: height and width, and whether the picture is cut out. ValueError for what is of no
use."""


@dataclass(frozen=True)
class Measured:
    """What is known of a picture; `replaced`: it is another one than last time."""

    size: tuple[int, int] = (0, 0)
    cut_out: bool = False
    problem: str = ""
    replaced: bool = False


class ScanCache:
    """What is known of pictures, and of a cache's masks, by their names, from the file in a cache folder."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / NAME
        self._known = _read(self.path)
        self._changed = False

    def of(self, path: Path, masks: Sequence[Path], reference: Path | None, measure: Measure) -> Measured:
        """Gives what is known, or what `measure` finds if the picture, a mask or the reference beside it is not the file that it was."""
        known = self._known.get(path.name)
        beside = (*masks, reference) if reference is not None else masks
        files = {one.name: _stat(one) for one in (path, *beside)}
        replaced = False
        if known is not None and known["files"] == files:
            return Measured((known["size"][0], known["size"][1]), known["cut_out"])
        try:
            head = _head(path)
            replaced = known is not None and known["head"] != head
            size, cut_out = measure(path, masks, reference)
        except (ValueError, OSError) as error:
            if replaced:
                del self._known[path.name]
                self._changed = True
            return Measured(problem=str(error), replaced=replaced)
        self._keep(path, files, head, size, cut_out)
        return Measured(size, cut_out, replaced=replaced)

    def add(self, path: Path, masks: Sequence[Path], size: tuple[int, int]) -> None:
        """Keeps what is known of files that were just written: they are not read to be measured."""
        self._keep(path, {one.name: _stat(one) for one in (path, *masks)}, _head(path), size, False)

    def _keep(self, path: Path, files: dict[str, list[int]], head: str, size: tuple[int, int], cut_out: bool) -> None:
        self._known[path.name] = {"files": files, "head": head, "size": list(size), "cut_out": cut_out}
        self._changed = True

    def write(self) -> None:
        """Writes what was found; where that fails, the next training only begins later."""
        if not self._changed:
            return
        try:
            write_whole({self.path: json.dumps({"version": VERSION, "pictures": self._known}).encode()})
            self._changed = False
        except OSError as error:
            log.info("%s could not be written (%s): the pictures will be read again next time.", self.path, error)


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Files that are there wholly or not at all, and nearly at once; their folders are made. OSError where that fails."""
    unfinished = {path.with_name(f".{path.name}.{os.getpid()}.unfinished"): path for path in files}
    try:
        for place, path in unfinished.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files[path])
        for place, path in unfinished.items():
            place.replace(path)
    finally:
        for place in unfinished:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """The records of a file; none of one that is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_bytes())
        known: dict[str, Any] = content["pictures"] if content["version"] == VERSION else {}
        if all({"files", "head", "size", "cut_out"} <= one.keys() and len(one["size"]) == 2 for one in known.values()):
            return known
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return {}


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _head(path: Path) -> str:
    digest = hashlib.sha256()
    pictures.add_file(digest, path)
    return digest.hexdigest()[:16]
