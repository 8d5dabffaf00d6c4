"""Points and boxes as people type them, as a node's picture writes them, and as core's JSON: read, or refused in words."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, TypeGuard

from .masks import Box

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
_LONGEST_TEXT = 100_000


def parse_points(text: Any, name: str, height: int, width: int) -> tuple[tuple[float, float], ...]:
    """Read points as `200,150; 370,290`, or in core SAM3's format `[{"x": 120, "y": 80}, ...]` as text or list, in pixels.

    Nothing for an empty text. ValueError, with `name` in it, if it is neither or a point lies outside of the picture.
    """
    wanted = f'{name}: write the points as 120,80; 200,150 or as [{{"x": 120, "y": 80}}] in pixels'
    points = []
    for x, y in _entries(text, ("x", "y"), wanted, "a point"):
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"{name}: the point x={x:g}, y={y:g} lies outside of the picture, which is {width} x {height} pixels.")
        points.append((x, y))
    return tuple(points)


def parse_boxes(text: Any, name: str) -> list[Box]:
    """Read boxes as `10,20,200,100; ...` (left, top, width, height) or `{"x": 10, "y": 20, "width": 200, "height": 100}`, in pixels.

    Coordinates are rounded to whole pixels. Nothing for an empty text. ValueError, with `name` in it, if it is neither.
    """
    wanted = f"{name}: write a box as left,top,width,height in pixels, for example 10,20,200,100, and ; between boxes"
    boxes: list[Box] = []
    for x, y, width, height in _entries(text, ("x", "y", "width", "height"), wanted, "a box"):
        left = round(x)
        top = round(y)
        boxes.append({"x": left, "y": top, "width": round(x + width) - left, "height": round(y + height) - top})
    return boxes


def _entries(text: Any, keys: tuple[str, ...], wanted: str, what: str) -> list[tuple[float, ...]]:
    """The numbers of each entry of a text, or of a list of dicts, in the order of `keys`."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return []
    entries = _split(text, keys, wanted) if isinstance(text, str) else text
    if isinstance(entries, dict) and len(keys) > 2:
        entries = [entries]
    if not isinstance(entries, list):
        raise ValueError(f"{wanted}. A list was expected, got {str(entries)[:80]!r}.")
    found = []
    for entry in entries:
        numbers = [entry.get(key) for key in keys] if isinstance(entry, dict) else []
        real = [float(number) for number in numbers if _is_number(number)]
        if len(real) != len(keys):
            raise ValueError(f"{wanted}. This is not {what}: {str(entry)[:80]!r}.")
        found.append(tuple(real))
    return found


def _split(text: str, keys: tuple[str, ...], wanted: str) -> Any:
    """JSON where the text looks like it, else one dict for each part between semicolons or line ends; a part that is none stays text.

    Full-width digits, commas, semicolons and brackets, as East Asian keyboards write them, count as the others (NFKC).
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"{wanted}. This text has {len(text)} characters, which nobody typed.")
    text = unicodedata.normalize("NFKC", text)
    if text.lstrip()[0] in "[{":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{wanted}. This is not JSON: {text[:80]!r}.") from None
    entries: list[Any] = []
    for part in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        inner = part[1:-1] if part[0] == "(" and part[-1] == ")" else part
        words = re.split(r"\s*,\s*|\s+", inner.strip())
        if len(words) == len(keys) and all(_NUMBER.fullmatch(word) for word in words):
            entries.append(dict(zip(keys, map(float, words), strict=True)))
        else:
            entries.append(part)
    return entries


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
