"""Prompt Region and Masked Attention on a transformer that paints (tiny-edit), by its world's judge.

nox -s tables -- transformer

Two things, each to stand in its own half, the first named on the right in every other case: by one prompt, by one prompt that says the
places, and by Prompt Region. And a thing to be painted into a grey box beside another thing, on a photograph that training never showed:
without Masked Attention and with each of its choices, layers by thirds of the depth among them. All ways of a case have the same noise.
The pairs' figures are kept as soon as they are there (transformer-regions), the boxes' after them (transformer-masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.tiny_edit import folders, grounds, judge, scenes, sentences, things, world
from demo.tiny_edit.painter import held_out_pairs

from ..cache import image_of, sha_of
from ..figures import Figure, mean, rate, size_of, write
from .halves import MIDDLES, half
from .stock_painter import Painting, StockPainter, weights


@dataclass(frozen=True)
class Size(Painting):
    """How many cases of each kind, beside the size of a picture."""

    pairs: int = 60
    boxes: int = 40


@dataclass(frozen=True)
class Pair:
    """Two things in the prompt's order, and their ground. `swapped`: the first shall stand on the right."""

    first: str
    second: str
    ground: str
    swapped: bool

    @property
    def sides(self) -> tuple[str, str]:
        """Where the first and the second shall stand."""
        return ("right", "left") if self.swapped else ("left", "right")

    @property
    def middles(self) -> tuple[float, float]:
        """Where across the picture that is."""
        return MIDDLES[self.sides[0]], MIDDLES[self.sides[1]]

    def text(self, places: bool) -> str:
        """One prompt that names both."""
        said = [f"on the {side}" for side in self.sides]
        names = [things.words_of(code) for code in (self.first, self.second)]
        return f"{sentences.together(names, said if places else None)} {grounds.words_of(self.ground)}"


@dataclass(frozen=True)
class Asking:
    """How two things are asked for: by one prompt, with their places or without, or by Prompt Region with this `base` and `own_pass`."""

    places: bool = False
    base: str = ""
    own_pass: float = 0

    @property
    def name(self) -> str:
        """What the way is called in the table."""
        if not self.base:
            return "one prompt with places" if self.places else "one prompt"
        own = f", own_pass {self.own_pass:g}" if self.own_pass else ""
        return f"Prompt Region, {self.base}{own}"


@dataclass(frozen=True)
class Box:
    """A thing for a grey box in a picture [1, S, S, 3] that shows another thing; the mask of the box [1, S, S], and the picture whole."""

    code: str
    other: str
    masked: Tensor
    mask: Tensor
    whole: Tensor


@dataclass(frozen=True)
class Masking:
    """How Masked Attention is set; `cross` without `itself` is words alone, neither is off."""

    name: str
    cross: bool = True
    itself: str = "off"
    layers: str = "all"


MASKINGS: tuple[Masking, ...] = (
    Masking("off", cross=False),
    Masking("words in the box only"),
    *(
        Masking(f"paper, {layers}", itself="paper", layers=layers)
        for layers in ("paper", "all", "first third", "middle third", "last third")
    ),
    *(Masking(f"renormalised, {layers}", itself="renormalised", layers=layers) for layers in ("paper", "all")),
)
"""The node's choices. *paper* among its layers is all but the last third of a transformer's."""


def pairs(place: world.World, count: int, seed: int = 21) -> list[Pair]:
    """Pairs of named things; the first on a ground on which training never showed it."""
    rng = np.random.default_rng(seed)
    held = held_out_pairs(place)
    found: list[Pair] = []
    while len(found) < count:
        code, ground = held[rng.integers(len(held))]
        other = things.NAMED[rng.integers(len(things.NAMED))]
        if other != code:
            found.append(Pair(code, other, ground, len(found) % 2 == 0))
    return found


def boxes(place: world.World, count: int, size: int, seed: int = 22) -> list[Box]:
    """A thing stands in one half of a held-out photograph, or the grounds of training where there is none; the box is in the other."""
    rng = np.random.default_rng(seed)
    names = place.grounds(held_out=True) or place.grounds()
    found: list[Box] = []
    for number in range(count):
        code, other = (things.NAMED[index] for index in rng.choice(len(things.NAMED), 2, replace=False))
        middle = (0.27, 0.73)[number % 2]
        ground = scenes.random_ground(rng, names)
        scene = scenes.Scene((scenes.Placed(other, middle, 0.6, 0.4, flip=bool(rng.random() < 0.5)),), ground)
        whole = image_of(scenes.render(place, scene, size).image)[None]
        mask = torch.zeros(1, size, size)
        left = round((1 - middle) * size) // 8 * 8 - size * 3 // 16
        mask[:, size * 3 // 8 : size * 7 // 8, max(0, left) : left + size * 7 // 16] = 1
        masked = torch.where(mask[..., None] > 0, torch.tensor(128 / 255), whole)
        found.append(Box(code, other, masked, mask, whole))
    return found


class Painter(StockPainter):
    """Paints the cases as graphs of the nodes do."""

    def pair(self, case: Pair, way: Asking, size: Size, seed: int) -> Tensor:
        """Two things on a ground, [3, S, S] in 0..1."""
        how = {"case": asdict(case), "way": asdict(way), "steps": size.steps, "seed": seed}
        return self.once(size.size, lambda: self._pair(case, way, size, seed), **how)

    def _pair(self, case: Pair, way: Asking, size: Size, seed: int) -> Tensor:
        from maskprompt.nodes.prompt_region import PromptRegionNode

        model = self.model
        if way.base:
            for code, side in zip((case.first, case.second), case.sides, strict=True):
                text = f"{sentences.together([things.words_of(code)])} {grounds.words_of(case.ground)}"
                (model,) = PromptRegionNode.execute(
                    model, self.words(text), half(side, size.size), 1.0, way.base, own_pass=way.own_pass
                ).args
        positive = self.words(case.text(way.places))
        return self.sample(model, positive, self.words(""), size.size, size.steps, seed)

    def box(self, case: Box, way: Masking, size: Size, seed: int) -> Tensor:
        """The thing into the box, the masked picture as reference."""
        given = {"box": sha_of(case.masked), "code": case.code}
        how = {**given, "way": [way.cross, way.itself, way.layers], "steps": size.steps, "seed": seed}
        return self.once(size.size, lambda: self._box(case, way, size, seed), **how)

    def _box(self, case: Box, way: Masking, size: Size, seed: int) -> Tensor:
        from maskprompt.nodes.dreamcom import MaskedAttention

        (model,) = MaskedAttention.execute(self.model, case.mask, way.cross, way.itself, way.layers).args
        text = f"fill the box with {things.with_article(things.words_of(case.code))}"
        positive, negative = (self.showing(self.words(words), [case.masked]) for words in (text, ""))
        return self.sample(model, positive, negative, size.size, size.steps, seed)


def askings() -> tuple[Asking, ...]:
    """The node's choices, and prompts without it."""
    from maskprompt.nodes.prompt_region import EVERYWHERE, OUTSIDE

    regions = [Asking(base=base, own_pass=own) for base, own in ((EVERYWHERE, 0), (OUTSIDE, 0), (OUTSIDE, 0.4), (OUTSIDE, 1))]
    return (Asking(), Asking(places=True), *regions)


def measure_pairs(painter: Any, eye: judge.Looking[Any], ground_eye: judge.GroundJudge, found: Sequence[Pair], size: Size) -> list[Figure]:
    """Both things there, and each in its half, by way; and the ground.

    Each half is looked at alone too: regions meet in the middle, where a judge that knows whole things takes two that touch for others.
    """
    figures: list[Figure] = []
    for way in askings():
        there: list[bool] = []
        placed: list[bool] = []
        alone: list[bool] = []
        ground: list[bool] = []
        for number, case in enumerate(found):
            picture = painter.pair(case, way, size, number)
            seen = {one.code: one.centre for one in eye.things(picture, 2, things.NAMED)}
            wanted = dict(zip((case.first, case.second), case.middles, strict=True))
            there.append(seen.keys() == wanted.keys())
            placed.append(there[-1] and all(abs(seen[code] - middle) < 0.25 for code, middle in wanted.items()))
            halves = [torch.where(half(side, size.size) > 0.5, picture, 0.5) for side in case.sides]
            alone.append([eye.look(part, things.NAMED)[0].code for part in halves] == [case.first, case.second])
            ground.append(ground_eye.name(picture) == case.ground)
        name = way.name
        print(f"{name}: {np.mean(placed):.2f}", flush=True)
        figures.append(rate(f"{name}: both things there", there))
        figures.append(rate(f"{name}: both things there, each in its own half", placed))
        figures.append(rate(f"{name}: each half, looked at alone, shows its own thing", alone))
        for told, seen in (("each in its own half", placed), ("each half, looked at alone, shows its own thing", alone)):
            for swapped, where in ((False, "left"), (True, "right")):
                of_these = [one for one, case in zip(seen, found, strict=True) if case.swapped == swapped]
                figures.append(rate(f"{name}: {told}, the first named on the {where}", of_these))
        figures.append(rate(f"{name}: ground right", ground))
    return figures


def measure_boxes(painter: Any, eye: judge.Looking[Any], found: Sequence[Box], size: Size) -> list[Figure]:
    """The right thing in the box, and how far the picture around it is from what was given, by way."""
    figures: list[Figure] = []
    for way in MASKINGS:
        right: list[bool] = []
        stranger: list[bool] = []
        outside: list[float] = []
        for number, case in enumerate(found):
            picture = painter.box(case, way, size, number)
            inside = torch.where(case.mask > 0.5, picture, torch.tensor(0.5))
            likest = eye.things(inside, 1, things.NAMED)[0].code
            right.append(likest == case.code)
            stranger.append(likest == case.other)
            around = case.mask[0] < 0.5
            outside.append(float((picture - case.whole[0].movedim(-1, 0)).abs().mean(0)[around].mean()))
        print(f"Masked Attention {way.name}: {np.mean(right):.2f}", flush=True)
        figures.append(rate(f"Masked Attention, {way.name}: the right thing in the box", right))
        figures.append(rate(f"Masked Attention, {way.name}: the thing beside it in the box", stranger))
        figures.append(mean(f"Masked Attention, {way.name}: mean difference around the box", outside))
    return figures


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = size_of(Size(), command, __doc__, arguments)
    place = world.load(folders.world(folders.DEFAULT))
    eye = judge.Judge(place, things.NAMED)
    notes = {"settings": size.settings, "weights": weights()}
    whole = place.whole and size == Size()
    painter = Painter()
    figures = measure_pairs(painter, eye, judge.GroundJudge(place), pairs(place, size.pairs), size)
    write("transformer-regions", command, figures, notes, whole=whole)
    figures = measure_boxes(painter, eye, boxes(place, size.boxes, size.size), size)
    write("transformer-masks", command, figures, notes, whole=whole)
