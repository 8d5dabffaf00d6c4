"""tiny-edit's gates, by the judge of its world: sentences, boxes, and subjects that it never saw.

Sentences whose thing and ground training never painted together; boxes and grounds on photographs that training never showed. It paints
from the files in `demo`, which everyone gets, 20 steps, at 256 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.tiny_edit import folders, grounds, judge, scenes, sentences, things, world
from demo.tiny_edit.painter import CFG, STEPS, Painter, held_out_pairs, held_out_sentences

from ..figures import Figure, rate, size_of, write
from .stock_painter import FILES, weights

SHEET = Path(__file__).resolve().parent.parent.parent / "demo" / "output" / "tiny-edit-table.png"


@dataclass(frozen=True)
class Size:
    """How many cases of each kind, and the pixels of a side."""

    captions: int = 120
    pairs: int = 60
    boxes: int = 60
    subjects: int = 48
    renders: int = 60
    size: int = 256


def judged(place: world.World, eye: judge.Judge, ground_eye: judge.GroundJudge, size: Size, seed: int = 900) -> list[Figure]:
    """How well the judge itself sees, on fresh renders."""
    rng = np.random.default_rng(seed)
    one: list[bool] = []
    right_place: list[bool] = []
    both: list[bool] = []
    ground: list[bool] = []
    subject: list[bool] = []
    for _ in range(size.renders):
        codes = [things.NAMED[index] for index in rng.choice(len(things.NAMED), 2, replace=False)]
        scene, picture = judge.random_picture(rng, place, codes[:1], size.size)
        found = eye.things(picture, 1, things.NAMED)[0]
        one.append(found.code == codes[0])
        right_place.append(abs(found.centre - scene.things[0].x) < 0.08)
        ground.append(ground_eye.name(picture) == scene.ground.name)
        _, picture = judge.random_picture(rng, place, codes, size.size)
        both.append({one.code for one in eye.things(picture, 2, things.NAMED)} == set(codes))
        unseen = things.HELD_OUT[rng.integers(len(things.HELD_OUT))]
        _, picture = judge.random_picture(rng, place, [unseen], size.size)
        subject.append(eye.look(picture, things.HELD_OUT)[0].code == unseen)
    return [
        rate("judge on fresh renders: thing right", one, 0.95),
        rate("judge on fresh renders: within 8 % of its place", right_place, 0.95),
        rate("judge on fresh renders: two things both right", both, 0.9),
        rate("judge on fresh renders: ground right", ground, 0.95),
        rate("judge on fresh renders: a thing that no training shows, most like itself", subject, 0.95),
    ]


def captions(
    place: world.World, painter: Painter, eye: judge.Judge, ground_eye: judge.GroundJudge, size: Size
) -> tuple[list[Figure], Tensor]:
    """Held-out sentences of one thing; and the pictures."""
    chosen = held_out_sentences(place, size.captions)
    pictures = painter.paint([text for text, _, _ in chosen], seed=1, size=size.size)
    thing = [eye.things(picture, 1, things.NAMED)[0].code == code for picture, (_, code, _) in zip(pictures, chosen, strict=True)]
    ground = [ground_eye.name(picture) == name for picture, (_, _, name) in zip(pictures, chosen, strict=True)]
    return [rate("thing right", thing, 0.85), rate("ground right", ground, 0.9)], pictures


def pairs(place: world.World, painter: Painter, eye: judge.Judge, size: Size, seed: int = 2) -> list[Figure]:
    """Two things on a ground, one of them held out with it."""
    rng = np.random.default_rng(seed)
    held = held_out_pairs(place)
    drawn = [(*held[rng.integers(len(held))], things.NAMED[rng.integers(len(things.NAMED))]) for _ in range(size.pairs)]
    drawn = [(code, ground, other if other != code else things.NAMED[0 if code != things.NAMED[0] else 1]) for code, ground, other in drawn]
    texts = [
        f"{sentences.together([things.words_of(code), things.words_of(other)])} {grounds.words_of(ground)}" for code, ground, other in drawn
    ]
    right = []
    for picture, (code, _, other) in zip(painter.paint(texts, seed=seed, size=size.size), drawn, strict=True):
        right.append({one.code for one in eye.things(picture, 2, things.NAMED)} == {code, other})
    return [rate("two things both right", right, 0.6)]


def photographs(place: world.World, rng: np.random.Generator, count: int, size: int) -> Tensor:
    """Crops of the held-out photographs, [count, 3, size, size] in 0..1."""
    names = place.grounds(held_out=True)
    if not names:
        raise FileNotFoundError("this world has no held-out photographs: run `python -m demo.tiny_edit.world` where apt-get is")
    crops = [scenes.ground_pixels(place, scenes.random_ground(rng, names), size) for _ in range(count)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def boxes(place: world.World, painter: Painter, eye: judge.Judge, size: Size, seed: int = 3) -> list[Figure]:
    """A thing painted into a grey box on a held-out photograph: whether it is inside, and the right one.

    From the same noise with the picture in the positive prompt alone, and in both.
    """
    rng = np.random.default_rng(seed)
    pictures = photographs(place, rng, size.boxes, size.size)
    cells = size.size // 8
    chosen = [things.NAMED[rng.integers(len(things.NAMED))] for _ in range(size.boxes)]
    asked = []
    for picture in pictures:
        width, height = (int(part) for part in rng.integers(cells * 3 // 8, cells * 5 // 8 + 1, 2))
        x = int(rng.integers(cells - width + 1))
        y = int(rng.integers(cells - height + 1))
        picture[:, y * 8 : (y + height) * 8, x * 8 : (x + width) * 8] = 128 / 255
        asked.append((x / cells, y / cells, width / cells, height / cells))
    texts = [f"fill the box with {things.with_article(things.words_of(code))}" for code in chosen]
    figures: list[Figure] = []
    for guided, where in ((1, "the picture not in the negative"), (0, "the picture in the negative too")):
        painted = painter.paint(texts, [pictures], seed=seed, size=size.size, guided=guided)
        inside: list[bool] = []
        right: list[bool] = []
        for picture, code, box in zip(painted, chosen, asked, strict=True):
            left, top, width, height = (round(part * size.size) for part in box)
            cut = picture[:, top : top + height, left : left + width]
            inside.append(judge.inside(eye.likeness(picture, code).box, box) > 0.9)
            right.append(eye.things(_squared(cut), 1, things.NAMED)[0].code == code)
        figures.append(rate(f"box: the thing inside it, {where}", inside, 0.95))
        figures.append(rate(f"box: the right thing, {where}", right))
    return figures


def _squared(picture: Tensor) -> Tensor:
    """A picture on the middle of a grey square of its longer side."""
    side = max(picture.shape[1:])
    square = torch.full((3, side, side), 0.5)
    top = (side - picture.shape[1]) // 2
    left = (side - picture.shape[2]) // 2
    square[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return square


def subjects(place: world.World, painter: Painter, eye: judge.Judge, size: Size, seed: int = 4) -> list[Figure]:
    """A thing that training never saw, from a portrait, on a held-out photograph: more like itself than like any other of the twelve.

    From the same noise with the portrait in the positive prompt alone, so that guidance goes to it as to the words, and in both.
    """
    rng = np.random.default_rng(seed)
    backgrounds = photographs(place, rng, size.subjects, size.size)
    codes = [things.HELD_OUT[number % len(things.HELD_OUT)] for number in range(size.subjects)]
    portraits = []
    for code in codes:
        thing = scenes.Placed(code, 0.5, 0.5, float(rng.uniform(0.5, 0.7)), float(rng.normal(0, 6)), bool(rng.random() < 0.5))
        scene = scenes.Scene((thing,), scenes.random_ground(rng, place.grounds()))
        portraits.append(scenes.render(place, scene, size.size).image)
    shown = torch.from_numpy(np.stack(portraits)).permute(0, 3, 1, 2).float() / 255
    texts = ["the thing of the first picture in the middle in the second picture"] * len(codes)
    painted, guided = (painter.paint(texts, [shown, backgrounds], seed=seed, size=size.size, guided=count) for count in (0, 1))

    def right(pictures: Tensor) -> list[bool]:
        return [eye.look(picture, things.HELD_OUT)[0].code == code for picture, code in zip(pictures, codes, strict=True)]

    return [
        rate("subject never seen: most like itself, its portrait not in the negative", right(guided), 0.85),
        rate("subject never seen: most like itself, its portrait in the negative too", right(painted), 0.85),
        rate("subject never seen: the same of the photograph without it", right(backgrounds)),
    ]


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = size_of(Size(), command, __doc__, arguments)
    place = world.load(folders.world(folders.DEFAULT))
    painter = Painter.load(FILES)
    eye = judge.Judge(place)
    ground_eye = judge.GroundJudge(place)
    figures = judged(place, eye, ground_eye, size)
    found, pictures = captions(place, painter, eye, ground_eye, size)
    figures += found
    figures += pairs(place, painter, eye, size)
    figures += boxes(place, painter, eye, size)
    figures += subjects(place, painter, eye, size)
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    tiles = (pictures[:64].permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8)
    across = [np.concatenate(list(tiles[row : row + 8]), 1) for row in range(0, len(tiles) - 7, 8)]
    Image.fromarray(np.concatenate(across)).save(SHEET)
    notes = {"settings": f"{STEPS} steps of Euler, CFG {CFG}, {size.size} pixels", "weights": weights()}
    write("tiny-edit", command, figures, notes, whole=size == Size())
