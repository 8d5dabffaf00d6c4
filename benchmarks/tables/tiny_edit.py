"""tiny-edit's gates, by the judge of its world: sentences, boxes, and subjects that it never saw.

Sentences whose thing and ground training never painted together; boxes and grounds on photographs that training never showed. It paints
from the files in `demo`, which everyone gets, 20 steps, at 256 pixels; painted pictures stay in demo/work/tiny-edit-table.

Bars are held against the judge. Beside it stands what a second judge says, which compares the cut-outs themselves, and what a viewer saw in
the same pictures (`benchmarks/viewed`), who was shown them without their sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.pack import ROOT
from demo.tiny_edit import folders, grounds, judge, matching, scenes, sentences, things, warps, world
from demo.tiny_edit.painter import CFG, STEPS, Painter, held_out_pairs, held_out_sentences

from ..cache import Kept, pictures_in, sha_of
from ..figures import Figure, rate, size_of, write
from .stock_painter import FILES, weights
from .viewer import Viewer

SHEET = ROOT / "demo" / "output" / "tiny-edit-table.png"
WORK = ROOT / "demo" / "work" / "tiny-edit-table"


@dataclass(frozen=True)
class Size:
    """How many cases of each kind, and the pixels of a side."""

    captions: int = 120
    pairs: int = 60
    boxes: int = 60
    subjects: int = 48
    renders: int = 60
    size: int = 256


@dataclass(frozen=True)
class Witness:
    """A judge, what is added to the names of its rows, and whether bars are held against it."""

    eye: judge.Looking[Any]
    by: str = ""
    barred: bool = True

    def rate(self, name: str, right: Sequence[bool], at_least: float | None = None) -> Figure:
        """Gives a row of this judge."""
        return rate(f"{name}{self.by}", right, at_least if self.barred else None)


def witnesses_of(place: world.World) -> tuple[Witness, Witness]:
    """Gives the judge, and the one that matches cut-outs."""
    return Witness(judge.Judge(place)), Witness(matching.Matcher(place), ", by matching cut-outs", barred=False)


@dataclass
class KeptPainter:
    """Paints a set of pictures once; the same set is read after that."""

    painter: Any
    kept: Kept = field(default_factory=lambda: Kept(WORK, {"weights": weights(), "settings": f"{STEPS} {CFG}"}))

    def paint(self, texts: Sequence[str], references: Sequence[Tensor] = (), seed: int = 0, size: int = 256, guided: int = 0) -> Tensor:
        """As `Painter.paint`, in steps of 1/255."""
        self.kept.folder.mkdir(parents=True, exist_ok=True)
        shown = [sha_of(pictures) for pictures in references]
        file = self.kept.file("painted", texts=list(texts), shown=shown, seed=seed, size=size, guided=guided).with_suffix(".png")

        def painted() -> Tensor:
            return self.painter.paint(texts, references, seed=seed, size=size, guided=guided).permute(0, 2, 3, 1)

        return pictures_in(file, size, painted).permute(0, 3, 1, 2)


def bent(picture: Tensor, number: int) -> Tensor:
    """A render [3, S, S] as an unpractised painter would have painted it: bent as far as the judge's training goes, and soft."""
    generator = torch.Generator().manual_seed(number)
    nobody = torch.zeros(1, *picture.shape[1:], dtype=torch.uint8)
    moved, _ = warps.bent(picture[None], nobody, torch.ones(1), generator)
    return warps.blurred(moved, picture.shape[-1] / 64)[0]


def judged(place: world.World, witness: Witness, ground_eye: judge.GroundJudge, size: Size, seed: int = 900) -> list[Figure]:
    """How well a judge itself sees, on fresh renders, and on the same bent and blurred."""
    rng = np.random.default_rng(seed)
    eye = witness.eye
    found: dict[str, list[bool]] = {
        name: [] for name in ("one", "place", "ground", "both", "subject", "bent one", "bent both", "bent subject")
    }
    for number in range(size.renders):
        codes = [things.NAMED[index] for index in rng.choice(len(things.NAMED), 2, replace=False)]
        scene, picture = judge.random_picture(rng, place, codes[:1], size.size)
        seen = eye.things(picture, 1, things.NAMED)[0]
        found["one"].append(seen.code == codes[0])
        found["place"].append(abs(seen.centre - scene.things[0].x) < 0.08)
        if witness.barred:
            found["ground"].append(ground_eye.name(picture) == scene.ground.name)
        found["bent one"].append(eye.things(bent(picture, number), 1, things.NAMED)[0].code == codes[0])
        _, picture = judge.random_picture(rng, place, codes, size.size)
        found["both"].append({one.code for one in eye.things(picture, 2, things.NAMED)} == set(codes))
        found["bent both"].append({one.code for one in eye.things(bent(picture, number), 2, things.NAMED)} == set(codes))
        unseen = things.HELD_OUT[rng.integers(len(things.HELD_OUT))]
        _, picture = judge.random_picture(rng, place, [unseen], size.size)
        found["subject"].append(eye.look(picture, things.HELD_OUT)[0].code == unseen)
        found["bent subject"].append(eye.look(bent(picture, number), things.HELD_OUT)[0].code == unseen)
    rows = [
        witness.rate("judge on fresh renders: thing right", found["one"], 0.95),
        witness.rate("judge on fresh renders: within 8 % of its place", found["place"], 0.95),
        witness.rate("judge on fresh renders: two things both right", found["both"], 0.9),
        witness.rate("judge on fresh renders: a thing that no training shows, most like itself", found["subject"], 0.95),
        witness.rate("judge on renders bent and blurred: thing right", found["bent one"]),
        witness.rate("judge on renders bent and blurred: two things both right", found["bent both"]),
        witness.rate("judge on renders bent and blurred: a thing that no training shows, most like itself", found["bent subject"]),
    ]
    return [*rows, rate("judge on fresh renders: ground right", found["ground"], 0.95)] if witness.barred else rows


def captions(
    place: world.World, painter: Any, witnesses: Sequence[Witness], ground_eye: judge.GroundJudge, size: Size
) -> tuple[list[Figure], Tensor]:
    """Held-out sentences of one thing; and the pictures."""
    chosen = held_out_sentences(place, size.captions)
    pictures = painter.paint([text for text, _, _ in chosen], seed=1, size=size.size)
    figures = []
    for witness in witnesses:
        right = [
            witness.eye.things(picture, 1, things.NAMED)[0].code == code for picture, (_, code, _) in zip(pictures, chosen, strict=True)
        ]
        figures.append(witness.rate("thing right", right, 0.85))
    ground = [ground_eye.name(picture) == name for picture, (_, _, name) in zip(pictures, chosen, strict=True)]
    return [*figures, rate("ground right", ground, 0.9)], pictures


def drawn_pairs(place: world.World, count: int, seed: int) -> list[tuple[str, str, str]]:
    """Two things and a ground, the first held out with it: (thing, ground, other)."""
    rng = np.random.default_rng(seed)
    held = held_out_pairs(place)
    drawn = [(*held[rng.integers(len(held))], things.NAMED[rng.integers(len(things.NAMED))]) for _ in range(count)]
    return [(code, ground, other if other != code else things.NAMED[0 if code != things.NAMED[0] else 1]) for code, ground, other in drawn]


def pairs(
    place: world.World, painter: Any, witnesses: Sequence[Witness], size: Size, viewer: Viewer | None = None, seed: int = 2
) -> list[Figure]:
    """Two things on a ground, one of them held out with it."""
    drawn = drawn_pairs(place, size.pairs, seed)
    texts = [
        f"{sentences.together([things.words_of(code), things.words_of(other)])} {grounds.words_of(ground)}" for code, ground, other in drawn
    ]
    pictures = painter.paint(texts, seed=seed, size=size.size)
    figures: list[Figure] = []
    verdicts: list[list[bool]] = []
    for witness in witnesses:
        seen = [{one.code for one in witness.eye.things(picture, 2, things.NAMED)} for picture in pictures]
        verdicts.append([found == {code, other} for found, (code, _, other) in zip(seen, drawn, strict=True)])
        figures.append(witness.rate("two things both right", verdicts[-1], 0.6))
    if viewer:
        figures += viewer.of_pairs("two things both right", [(code, other) for code, _, other in drawn], verdicts)
    return figures


def photographs(place: world.World, rng: np.random.Generator, count: int, size: int) -> Tensor:
    """Crops of the held-out photographs, [count, 3, size, size] in 0..1."""
    names = place.grounds(held_out=True)
    if not names:
        raise FileNotFoundError("this world has no held-out photographs: run `python -m demo.tiny_edit.world` where apt-get is")
    crops = [scenes.ground_pixels(place, scenes.random_ground(rng, names), size) for _ in range(count)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def boxes(
    place: world.World, painter: Any, witnesses: Sequence[Witness], size: Size, viewer: Viewer | None = None, seed: int = 3
) -> list[Figure]:
    """A thing painted into a grey box on a held-out photograph: whether it is inside, and the right one; and whether it would be in a box
    that has nothing to do with it.

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
        verdicts: list[list[bool]] = []
        names: list[list[bool]] = []
        for witness in witnesses:
            inside: list[bool] = []
            elsewhere: list[bool] = []
            right: list[bool] = []
            for picture, code, box, other in zip(painted, chosen, asked, [*asked[1:], asked[0]], strict=True):
                found = witness.eye.likeness(picture, code).box
                inside.append(judge.inside(found, box) > 0.9)
                elsewhere.append(judge.inside(found, other) > 0.9)
                right.append(witness.eye.things(_squared(_cut(picture, box)), 1, things.NAMED)[0].code == code)
            verdicts.append(inside)
            names.append(right)
            figures.append(witness.rate(f"box: the thing inside it, {where}", inside, 0.95))
            figures.append(witness.rate(f"box: the thing inside the next picture's box, {where}", elsewhere))
            figures.append(witness.rate(f"box: the right thing, {where}", right))
        if viewer:
            figures += viewer.of_boxes(f"box: the thing inside it, {where}", guided, verdicts)
            figures += viewer.of_named(f"box: the right thing, {where}", guided, chosen, names)
    return figures


def _cut(picture: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """The part of a picture [3, S, S] in a box of parts of it."""
    left, top, width, height = (round(part * picture.shape[-1]) for part in box)
    return picture[:, top : top + height, left : left + width]


def _squared(picture: Tensor) -> Tensor:
    """A picture on the middle of a grey square of its longer side."""
    side = max(picture.shape[1:])
    square = torch.full((3, side, side), 0.5)
    top = (side - picture.shape[1]) // 2
    left = (side - picture.shape[2]) // 2
    square[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return square


def subjects(
    place: world.World, painter: Any, witnesses: Sequence[Witness], size: Size, viewer: Viewer | None = None, seed: int = 4
) -> list[Figure]:
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
    name = "subject never seen: most like itself"
    figures: list[Figure] = []
    for guided, where in ((1, "its portrait not in the negative"), (0, "its portrait in the negative too")):
        painted = painter.paint(texts, [shown, backgrounds], seed=seed, size=size.size, guided=guided)
        verdicts = [_most_like(witness, painted, codes) for witness in witnesses]
        figures += [witness.rate(f"{name}, {where}", right, 0.85) for witness, right in zip(witnesses, verdicts, strict=True)]
        if viewer:
            figures += viewer.of_subjects(f"{name}, {where}", guided, codes, verdicts)
    empty = "subject never seen: the same of the photograph without it"
    return [*figures, *(witness.rate(empty, _most_like(witness, backgrounds, codes)) for witness in witnesses)]


def _most_like(witness: Witness, pictures: Tensor, codes: Sequence[str]) -> list[bool]:
    """Says of each picture whether, of the things that training never saw, it is most like this one."""
    return [witness.eye.look(picture, things.HELD_OUT)[0].code == code for picture, code in zip(pictures, codes, strict=True)]


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = size_of(Size(), command, __doc__, arguments)
    place = world.load(folders.world(folders.DEFAULT))
    painter = KeptPainter(Painter.load(FILES))
    witnesses = witnesses_of(place)
    ground_eye = judge.GroundJudge(place)
    whole = place.whole and size == Size()
    viewer = Viewer.load(weights()) if whole else None
    figures = [figure for witness in witnesses for figure in judged(place, witness, ground_eye, size)]
    found, pictures = captions(place, painter, witnesses, ground_eye, size)
    figures += found
    figures += pairs(place, painter, witnesses, size, viewer)
    figures += boxes(place, painter, witnesses, size, viewer)
    figures += subjects(place, painter, witnesses, size, viewer)
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    tiles = (pictures[:64].permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8)
    across = [np.concatenate(list(tiles[row : row + 8]), 1) for row in range(0, len(tiles) - 7, 8)]
    Image.fromarray(np.concatenate(across)).save(SHEET)
    notes = {"settings": f"{STEPS} steps of Euler, CFG {CFG}, {size.size} pixels", "weights": weights()}
    write("tiny-edit", command, figures, notes, whole=whole)
