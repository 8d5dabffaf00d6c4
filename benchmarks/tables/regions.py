"""Two texts, each in its own region, on the tiny model, by the judge: Prompt Region against core's Set Mask and one plain prompt.

Pairs of things that training never showed on their ground. In half of the cases what the prompt names first shall stand on the right,
against what the tiny model learned (it was shown captions from left to right). Painted pictures and scores stay in demo/work/regions under
keys of their settings, which know nothing of the code: delete that folder after a change to what paints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo import judge, scenes, subjects, tiny_model
from demo.painter import CFG, SAMPLER, SCHEDULER, Painter

from ..cache import Kept, pictures_in, records_in, sha
from ..figures import Figure, rate, size_of, write
from .regions_methods import METHODS, PLAIN, Method
from .tiny_model import words

FORMAT = 2
WORK = tiny_model.ROOT / "demo" / "work" / "regions"
SHEET = tiny_model.ROOT / "demo" / "output" / "regions-table.png"
STEPS = 15
PAGE = 25
"""Cases that are painted together: all methods paint a page from the same noise."""
LEFT = (0, 60)
RIGHT = (68, 128)
"""Columns of the two regions, of 128; they reach from top to bottom."""


@dataclass(frozen=True)
class Size:
    """How large a run is; the figures are kept only of the whole one."""

    cases: int = 100
    seeds: int = 1


@dataclass(frozen=True)
class Case:
    """Two things as (shape, colour), in the prompt's order, and their ground. `swapped`: the first shall stand on the right."""

    first: tuple[str, str]
    second: tuple[str, str]
    ground: str
    swapped: bool

    @property
    def columns(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the first thing's region, and of the second's."""
        return (RIGHT, LEFT) if self.swapped else (LEFT, RIGHT)

    @property
    def both(self) -> str:
        """One prompt that names both."""
        return f"{words(*self.first)} and {words(*self.second, self.ground)}"

    @property
    def masks(self) -> Tensor:
        """The two regions [2, 128, 128]."""
        found = torch.zeros(2, subjects.SIZE, subjects.SIZE)
        for mask, (start, end) in zip(found, self.columns, strict=True):
            mask[:, start:end] = 1
        return found


@dataclass(frozen=True)
class Score:
    """What the judge sees: each thing anywhere, and in its own region; and the ground."""

    there: tuple[bool, bool]
    placed: tuple[bool, bool]
    ground: bool


def cases(count: int, seed: int = 0) -> list[Case]:
    """Fewer are the first of more. Other shapes and other colours, each lost on no ground and never in training on this one."""
    found: list[Case] = []
    number = 0
    while len(found) < count:
        rng = np.random.default_rng([seed, number])
        number += 1
        shapes = [str(name) for name in rng.permutation(list(scenes.SHAPES))[:2]]
        colours = [str(name) for name in rng.permutation(list(scenes.COLOURS))[:2]]
        suiting = subjects.Subject(shapes[0], scenes.Paint(colours[0], colours[1], "halves")).grounds()
        grounds = [ground for ground in suiting if all(scenes.held_out(*one, ground) for one in zip(shapes, colours, strict=True))]
        if grounds:
            things = list(zip(shapes, colours, strict=True))
            found.append(Case(things[0], things[1], str(rng.choice(grounds)), len(found) % 2 == 0))
    return found


@dataclass
class Bench:
    """Paints and judges; each thing once."""

    size: Size

    def __post_init__(self) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        self.painter = Painter()
        self.eye = judge.load()
        self.kept = Kept(WORK, {"format": FORMAT, "checkpoint": sha(tiny_model.CHECKPOINT.read_bytes())})
        self.eyes = sha(judge.FILE.read_bytes())
        made = cases(self.size.cases)
        self.pages = [made[start : start + PAGE] for start in range(0, len(made), PAGE)]

    def page(self, page: Sequence[Case], method: Method, seed: int) -> Path:
        """The file of one set of painted pictures, one below the other."""
        how = [*list(asdict(method).values())[1:], seed, SAMPLER, SCHEDULER, STEPS, CFG]
        return self.kept.file("painted", cases=[asdict(case) for case in page], how=how).with_suffix(".png")

    def painted(self, page: Sequence[Case], method: Method, seed: int) -> Tensor:
        """The pictures of a page [B, 128, 128, 3]."""
        return pictures_in(self.page(page, method, seed), subjects.SIZE, lambda: self.paint(page, method, seed))

    @torch.no_grad()
    def paint(self, page: Sequence[Case], method: Method, seed: int) -> Tensor:
        """As the nodes and KSampler do."""
        import comfy.sample

        model, positive = method.prepared(self.painter, page)
        negative = [[self.painter.text([""] * len(page)), {}]]
        latent = torch.zeros(len(page), 4, subjects.SIZE // 8, subjects.SIZE // 8)
        noise = comfy.sample.prepare_noise(latent, 1000 * seed + self.pages.index(list(page)))
        done = comfy.sample.sample(
            model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent, seed=seed, disable_pbar=True
        )  # fmt: skip
        return self.painter.vae.decode(done).clamp(0, 1)

    def scores(self, method: Method) -> list[Score]:
        found: list[Score] = []
        for page in self.pages:
            for seed in range(self.size.seeds):
                found += self._judged(page, method, seed)
        print(f"{method.name}: {np.mean([all(score.placed) for score in found]):.2f}", flush=True)
        return found

    def _judged(self, page: Sequence[Case], method: Method, seed: int) -> list[Score]:
        pictures = self.painted(page, method, seed)
        file = self.kept.file("scores", of=self.page(page, method, seed).stem, judge=self.eyes).with_suffix(".json")

        def judged() -> list[Score]:
            masks = torch.stack([case.masks for case in page], 1)
            return list(map(score_of, page, *(judge.look(self.eye, pictures, region) for region in (None, *masks))))

        return [Score(tuple(one["there"]), tuple(one["placed"]), one["ground"]) for one in records_in(file, judged)]


def score_of(case: Case, whole: judge.Verdict, first: judge.Verdict, second: judge.Verdict) -> Score:
    """What the judge sees in the whole picture, and in each region alone: there things that touch at the border are apart.

    An object counts by its shape and its colour. It is placed if it is seen so in its region, and what of it lies beyond does not hide
    its shape.
    """
    things = (case.first, case.second)
    placed = [_among(thing, verdict) for thing, verdict in zip(things, (first, second), strict=True)]
    there = [own or _among(thing, whole) for thing, own in zip(things, placed, strict=True)]
    return Score((there[0], there[1]), (placed[0], placed[1]), whole.ground == case.ground)


def _among(thing: tuple[str, str], verdict: judge.Verdict) -> bool:
    return any((found.shape, found.colour) == thing for found in verdict.objects)


def tables(bench: Bench) -> list[Figure]:
    """All figures, those of both things first."""
    pages = [case for page in bench.pages for case in page for _ in range(bench.size.seeds)]
    scores = {method: bench.scores(method) for method in METHODS}
    figures = [rate(f"{method.name}: both in their own regions", [all(one.placed) for one in found]) for method, found in scores.items()]
    for method, found in scores.items():
        figures += [
            rate(f"{method.name}: both somewhere", [all(one.there) for one in found]),
            rate(f"{method.name}: a thing in its own region", [part for one in found for part in one.placed]),
            rate(f"{method.name}: the ground", [one.ground for one in found]),
        ]
        for swapped, told in ((True, "the first shall stand on the right"), (False, "the first shall stand on the left")):
            of = [all(one.placed) for one, case in zip(found, pages, strict=True) if case.swapped == swapped]
            figures.append(rate(f"{method.name}: both in their own regions, {told}", of))
    return figures


def sheet(bench: Bench, count: int = 8) -> None:
    """For a human: the first cases, each method's picture, and what the judge says of it."""
    from demo.contact_sheet import picture_of, save_sheet

    page = bench.pages[0]
    rows: list[Any] = []
    for number, method in enumerate(METHODS, 1):
        print(f"on the sheet {number}: {method.name}", flush=True)
    for index, case in enumerate(page[:count]):
        row = []
        for number, method in enumerate(METHODS, 1):
            score = bench._judged(page, method, 0)[index]
            row.append(
                (f"{number}: {sum(score.placed)} placed, {sum(score.there)} there", picture_of(bench.painted(page, method, 0)[index]))
            )
        rows.append((f"{case.both}; the first {'right' if case.swapped else 'left'}", row))
    save_sheet(SHEET, rows, 160)


def main(command: str, arguments: Sequence[str] = ()) -> None:
    usual = Size()
    bench = Bench(size_of(usual, command, __doc__, arguments))
    figures = tables(bench)
    sheet(bench)
    notes = {
        "painting": f"{SAMPLER}, {STEPS} steps, CFG {CFG}; whole pictures of {subjects.SIZE} px",
        "cases": "two things of other shapes and colours, no triple with the ground ever in training; the regions are the two halves",
        "in its own region": "the judge, which is shown the region alone, finds an object of that shape and colour there",
        "one plain prompt": f"'{PLAIN.name}' names both and knows nothing of regions: half of its places are right by chance",
        "checkpoint": tiny_model.CHECKPOINT.name,
    }
    write("regions", command, figures, notes, bench.size == usual)
