"""Picture files as what the experiments learn from and paint after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..cache import keep, sha
from . import data, scoring
from .data import Instance
from .sampling import sha_of


def opened(picture: Path, mask: Path) -> tuple[Tensor, Tensor]:
    """A picture [H, W, 3] and its mask [H, W], upright, in 0..1."""
    from maskprompt.training.data import folder

    shown = folder.open_picture(picture)
    return folder.colours(shown), folder.mask_of(mask, picture, shown.size)


def square(picture: Path, size: int) -> Tensor:
    """A picture stretched to [1, size, size, 3]."""
    from maskprompt.images import crops

    return crops.scale(scoring.image_of(picture)[None], size, size)


def marks(things: Sequence[Instance], size: int) -> Tensor:
    """Their masks, stretched alike: [N, size, size], 0 or 1."""
    from maskprompt.images.masks import resize

    return torch.cat([resize(torch.from_numpy(one.mask())[None].float(), size, size) for one in things]).round()


@dataclass(frozen=True)
class Coco:
    """COCO's pictures with all their things and a caption, as Mask-ControlNet (`objects`) and MECA learn from.

    Captions are annotations/captions_<part>.json's first; without that file they name the things.
    """

    pictures: tuple[tuple[Instance, ...], ...]
    captions: list[str]
    sizes: list[tuple[int, int]]
    objects: bool
    have_references: bool = False

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int, /) -> Any:
        from maskprompt.training.data.captions import Picture
        from maskprompt.training.data.objects import Example

        things = self.pictures[number]
        image = scoring.image_of(things[0].picture)
        if self.objects:
            return Example(image, torch.stack([torch.from_numpy(one.mask()).float() for one in things]), self.captions[number])
        largest = max(things, key=lambda one: one.area)
        return Picture(image, self.captions[number], torch.from_numpy(largest.mask()).float())

    @cached_property
    def _print(self) -> str:
        known = [[things[0].picture.name, [one.polygons for one in things]] for things in self.pictures]
        return sha(json.dumps([known, self.captions]).encode())

    def fingerprint(self) -> str:
        """The same for the same names, captions and outlines; the pictures of so large a set are not read."""
        return self._print


def learned_from(root: Path, size: int, objects: bool) -> Any:
    """What a folder holds to learn from: COCO's, its train2017 if it is there, or a folder as train.py takes it. Pictures of COCO that are
    too small for crops of `size` are left out. ValueError in words where there is nothing."""
    if not (root / "annotations").is_dir():
        return _own_folder(root, objects)
    from maskprompt.training.engine.checks import ENLARGED

    part = "train2017" if (root / "annotations" / "instances_train2017.json").is_file() else "val2017"
    together: dict[Path, list[Instance]] = {}
    for one in data.coco(root, part, 0.01):
        together.setdefault(one.picture, []).append(one)
    sizes = {picture: _size(picture) for picture in together}
    found = {picture: tuple(things) for picture, things in together.items() if min(sizes[picture]) * ENLARGED >= size}
    if not found:
        raise ValueError(f"no picture in {root / part} is large enough for crops of {size}: take a smaller one, --set size={size // 2}.")
    written = _captions(root / "annotations" / f"captions_{part}.json")
    captions = [written.get(picture.name) or _named(things) for picture, things in found.items()]
    return Coco(tuple(found.values()), captions, [sizes[picture] for picture in found], objects)


def _own_folder(root: Path, objects: bool) -> Any:
    from maskprompt.training.data import folder
    from maskprompt.training.data.object_folder import ObjectFolder

    return ObjectFolder(root).finished() if objects else folder.captioned(root)


def _captions(file: Path) -> dict[str, str]:
    """The first caption of each picture, by its file's name."""
    if not file.is_file():
        return {}
    content = json.loads(file.read_text("utf-8"))
    names = {one["id"]: one["file_name"] for one in content["images"]}
    found: dict[str, str] = {}
    for one in content["annotations"]:
        found.setdefault(names[one["image_id"]], " ".join(one["caption"].split()))
    return found


def _named(things: Sequence[Instance]) -> str:
    return "a photo of " + " and ".join(f"a {kind}" for kind in dict.fromkeys(one.category for one in things))


def _size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as shown:
        return shown.height, shown.width


def found_mask(sam: Any, picture: Path, file: Path) -> Path:
    """The mask of the thing in the middle of a picture that SAM finds, kept in `file`; the best of what it offers at the middle."""
    from maskprompt.images.masks import tidied
    from maskprompt.models.sam.model import Prompt

    if not file.is_file():
        image = scoring.image_of(picture)
        height, width = image.shape[:2]
        answer = sam.ask(image, Prompt(points=((width / 2, height / 2, True),)))
        best = int(answer.scores.argmax())
        mask = tidied(sam.full_size(answer.logits[best : best + 1], height, width)[0] > 0)
        if not bool(mask.any()):
            raise ValueError(f"SAM finds nothing in the middle of {picture}: put a mask beside it, {picture.with_suffix('.png').name}.")
        file.parent.mkdir(parents=True, exist_ok=True)
        shown = Image.fromarray((mask.numpy() * 255).astype("uint8"))
        keep(file, lambda part: shown.save(part, "PNG"))
    return file


def mask_file(sam: Any, picture: Path, mask: Path | None, folder: Path) -> Path:
    """A picture's own mask, else what SAM finds. ValueError where there is neither."""
    if mask is not None:
        return mask
    if sam is None:
        raise ValueError(f"{picture} has no mask: put {picture.with_suffix('.png').name} beside it, or let SAM find it with --sam FILE.")
    return found_mask(sam, picture, folder / f"{picture.parent.name}-{picture.stem}-{sha_of(picture)}.png")
