"""The data sets that the papers measure on, as they are published: MureCom, the DreamBooth set, COCO with masks, and folders of one's own.

MureCom (bcmi/DreamCom-Image-Composition): `<Category>/bg/<n>.jpg` with `bg/bbox.txt` (lines "Category n.jpg left top right bottom",
the last column and row included; a category of several words has blanks), `<Category>/fg1` to `fg3` with `<n>.jpg`, masks `<n>.png`.
The DreamBooth set (google/dreambooth): `dataset/<subject>/<n>.jpg`, `dataset/prompts_and_classes.txt`.
COCO: `annotations/instances_<part>.json`, `<part>/<file>.jpg`.
A folder: that of MureCom, with any names. DreamEditBench is read so too, its subjects being DreamBooth's: its boxes are to be written as
bbox.txt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
LIVE = frozenset({"cat", "dog"})
"""The DreamBooth set's classes that have the prompts for live subjects."""
_PROMPT = re.compile(r"^'(.*)'\.format\(unique_token, class_token\),?$")


@dataclass(frozen=True)
class Subject:
    """One object: its name, the word for its kind, and its pictures, each with the file of its mask or None."""

    name: str
    noun: str
    pictures: tuple[Path, ...]
    masks: tuple[Path | None, ...]


@dataclass(frozen=True)
class Place:
    """A picture to paint into, and the box (left, top, right, bottom) in pixels, right and bottom not included."""

    picture: Path
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Insertion:
    """A case of DreamCom: a subject into a place."""

    subject: Subject
    place: Place


@dataclass(frozen=True)
class Prompted:
    """A case of the DreamBooth set: a subject, and a prompt with `{0}` for its token and `{1}` for its class."""

    subject: Subject
    prompt: str

    def text(self, token: str = "") -> str:
        """The prompt in words, with this token or without one."""
        return " ".join(self.prompt.format(token, self.subject.noun).split())


@dataclass(frozen=True)
class Scene:
    """A picture of MCGM's: its one or two things, and for each pose a mask for each of them, things of other pictures."""

    picture: Path
    things: tuple[Instance, ...]
    poses: tuple[tuple[Instance, ...], ...]

    @property
    def words(self) -> tuple[str, ...]:
        """What each thing is, in one word: the last of its category, as bear of teddy bear."""
        return tuple(one.category.split()[-1] for one in self.things)


@dataclass(frozen=True)
class Instance:
    """A thing in a picture of COCO: its category and outline, polygons of (x, y) pixels."""

    picture: Path
    category: str
    polygons: tuple[tuple[tuple[float, float], ...], ...]
    area: float

    def mask(self) -> np.ndarray:
        """Where it is, bool [H, W] of the picture."""
        with Image.open(self.picture) as opened:
            drawn = Image.new("1", opened.size)
        for polygon in self.polygons:
            ImageDraw.Draw(drawn).polygon([*polygon], fill=1)
        return np.array(drawn, bool)


def murecom(root: Path) -> list[Insertion]:
    """Every subject of a category into every background of it: 1,920 cases in the published set. ValueError in words for another folder."""
    categories = [folder for folder in _folders(root) if (folder / "bg" / "bbox.txt").is_file()]
    if not categories:
        raise ValueError(
            f"{root} has no folder with bg/bbox.txt: it is not MureCom, whose folders are <Category>/bg and <Category>/fg1 to fg3."
        )
    found = []
    for category in categories:
        places = list(_places(category / "bg"))
        noun = category.name.replace("_", " ").lower()
        for folder in _folders(category):
            if re.fullmatch(r"fg\d+", folder.name):
                subject = _subject(folder, f"{category.name}/{folder.name}", noun)
                found += [Insertion(subject, place) for place in places]
    if not found:
        raise ValueError(f"{root} has backgrounds but no subject: folders fg1, fg2, ... beside bg are missing.")
    return found


def _places(folder: Path) -> Iterator[Place]:
    for number, line in enumerate((folder / "bbox.txt").read_text("utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        name = next((word for word in words if Path(word).suffix.lower() in PICTURES), None)
        corners = words[words.index(name) + 1 :] if name else []
        if name is None or len(corners) != 4 or not all(re.fullmatch(r"-?\d+", corner) for corner in corners):
            raise ValueError(f"{folder / 'bbox.txt'}, line {number}: '{line}' is not a picture's name and four whole numbers.")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / 'bbox.txt'}, line {number} names {name}, which is not there.")
        left, top, right, bottom = map(int, corners)
        with Image.open(folder / name) as opened:
            width, height = ImageOps.exif_transpose(opened).size
        box = (max(0, left), max(0, top), min(width, right + 1), min(height, bottom + 1))
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f"{folder / 'bbox.txt'}, line {number}: the box of {name} is empty in its {width} x {height} pixels.")
        yield Place(folder / name, box)


def dreambooth(root: Path) -> list[Prompted]:
    """Every subject with every prompt of its kind: 750 cases in the published set. ValueError in words for another folder."""
    folder = root / "dataset" if (root / "dataset").is_dir() else root
    listed = folder / "prompts_and_classes.txt"
    if not listed.is_file():
        raise ValueError(
            f"{folder} has no prompts_and_classes.txt: it is not the DreamBooth set (github.com/google/dreambooth, its `dataset`)."
        )
    lines = [line.strip() for line in listed.read_text("utf-8").splitlines()]
    start = lines.index("subject_name,class") + 1
    classes = dict(line.split(",", 1) for line in lines[start : lines.index("Prompts")] if line)
    live_from = lines.index("Live Subject Prompts")
    objects, live = (_prompts(part) for part in (lines[:live_from], lines[live_from:]))
    found = []
    for name, noun in classes.items():
        if not (folder / name).is_dir():
            raise ValueError(f"{listed} names the subject {name}, but there is no folder {folder / name}.")
        subject = _subject(folder / name, name, noun)
        found += [Prompted(subject, prompt) for prompt in (live if noun in LIVE else objects)]
    return found


def _prompts(lines: Sequence[str]) -> list[str]:
    return [match[1] for match in map(_PROMPT.match, lines) if match]


def coco(root: Path, part: str = "val2017", smallest: float = 0.05, largest: float = 0.6) -> list[Instance]:
    """Things with an outline that take between these parts of their picture, in the order of the file. Crowds are left out."""
    file = root / "annotations" / f"instances_{part}.json"
    if not file.is_file():
        raise ValueError(f"there is no {file}: COCO's folder has annotations/instances_{part}.json and {part}/ with the pictures.")
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    pictures = {one["id"]: one for one in content["images"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    found = []
    for thing in content["annotations"]:
        picture = pictures[thing["image_id"]]
        share = thing["area"] / (picture["width"] * picture["height"])
        if thing.get("iscrowd") or not isinstance(thing["segmentation"], list) or not smallest <= share <= largest:
            continue
        polygons = tuple(tuple(zip(line[0::2], line[1::2], strict=True)) for line in thing["segmentation"] if len(line) >= 6)
        path = root / part / picture["file_name"]
        if polygons and path.is_file():
            found.append(Instance(path, names[thing["category_id"]], polygons, share))
    if not found:
        raise ValueError(f"{file} has no thing that takes {smallest:g} to {largest:g} of a picture which lies in {root / part}.")
    return found


def scenes(root: Path, single: int = 11, double: int = 4, poses: int = 4) -> list[Scene]:
    """COCO's pictures of one thing and of two kinds of things, as many as MCGM's study shows, in the order of the file.

    Poses are the outlines of things in other pictures: of the same kind where there are some, else of others; of two, a pair's.
    """
    together: dict[Path, list[Instance]] = {}
    for one in coco(root):
        together.setdefault(one.picture, []).append(one)
    alone = [tuple(things) for things in together.values() if len(things) == 1]
    pairs = [tuple(things) for things in together.values() if len(things) == 2 and things[0].category != things[1].category]
    found = []
    for chosen, among in ((alone[:single], alone), (pairs[:double], pairs)):
        for number, things in enumerate(chosen):
            kinds = {one.category for one in things}
            others = among[number + 1 :] + among[:number]
            others.sort(key=lambda those, kinds=kinds: -len(kinds & {one.category for one in those}))
            if others:
                shown = tuple(in_order_of(things, others[pose % len(others)]) for pose in range(poses))
                found.append(Scene(things[0].picture, things, shown))
    if not found:
        raise ValueError(f"{root} has no two pictures of a single thing, nor two of two kinds of things: masks to pose after are missing.")
    return found


def in_order_of(things: Sequence[Instance], others: Sequence[Instance]) -> tuple[Instance, ...]:
    """Gives as many `others` in an order in which each stands in the place of a thing of its kind, where there is one."""
    left = list(others)
    found: list[Instance | None] = []
    for thing in things:
        same = next((one for one in left if one.category == thing.category), None)
        found.append(same)
        if same is not None:
            left.remove(same)
    return tuple(one if one is not None else left.pop(0) for one in found)


def _subject(folder: Path, name: str, noun: str) -> Subject:
    """The pictures of a folder; a PNG of the name of another picture is its mask."""
    files = sorted((one for one in folder.iterdir() if one.suffix.lower() in PICTURES), key=_natural)
    stems = {one.stem for one in files if one.suffix.lower() != ".png"}
    pictures = tuple(one for one in files if one.suffix.lower() != ".png" or one.stem not in stems)
    if not pictures:
        raise ValueError(f"{folder} holds no picture of its subject.")
    masks = (one.with_suffix(".png") for one in pictures)
    return Subject(name, noun, pictures, tuple(mask if mask.is_file() and mask not in pictures else None for mask in masks))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}.")
    return sorted((one for one in root.iterdir() if one.is_dir()), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]
