"""What Reference Region does for tiny-edit's pictures, by its world's judge: a thing in its region, without what is hidden.

nox -s tables -- references

Things that no training showed, on photographs that none showed. Three questions: one thing of a portrait into one half of a photograph,
with and without a region, with and without the rest of the portrait hidden, and with the portrait in the negative prompt too or not (a
task that tiny-edit learned); the same while words put
another thing into the other half; and two portraits, a half for each (a task that it did not learn). tiny-edit paints from the files that
ComfyUI loads, in ComfyUI's own sampler. The figures of each question are kept as soon as they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo import tiny_model
from demo.tiny_edit import folders, judge, things, world

from ..cache import sha_of
from ..figures import Figure, mean, rate, size_of, write
from .halves import MIDDLES, half, other_side
from .references_cases import Case, Two, cases, twos
from .stock_painter import Painting, StockPainter, weights

SHEET = tiny_model.ROOT / "demo" / "output" / "references-table.png"


@dataclass(frozen=True)
class Size(Painting):
    """How many cases of each question, beside the size of a picture."""

    cases: int = 100
    words: int = 50
    twos: int = 50


@dataclass(frozen=True)
class Way:
    """Whether a reference has a region, whether only its thing is shown, and whether the negative prompt has it too."""

    region: bool
    show: bool = True
    in_negative: bool = True

    @property
    def name(self) -> str:
        """How the way is called in the table."""
        shown = "its thing alone shown" if self.show else "all of it shown"
        return f"{'a region' if self.region else 'no region'}, {shown}{self.prompts}"

    @property
    def prompts(self) -> str:
        """What a name ends with where the negative prompt lacks the reference."""
        return "" if self.in_negative else ", not in the negative"


WAYS: tuple[Way, ...] = (Way(False, False), Way(False), Way(True, False), Way(True), Way(True, in_negative=False))
"""Region and `show` each with and without; in the last, guidance goes to the reference as it does to the words."""
TWO_WAYS: tuple[Way, ...] = (Way(False), Way(True), Way(False, in_negative=False), Way(True, in_negative=False))


@dataclass(frozen=True)
class Shown:
    """A reference [1, S, S, 3], the region where it acts and what is shown of it [1, S, S], and whether the negative prompt has it too."""

    image: Tensor
    region: Tensor | None = None
    show: Tensor | None = None
    in_negative: bool = True


class Painter(StockPainter):
    """Paints the cases as graphs of the nodes do."""

    def paint(self, case: Case, size: Size, way: Way, seed: int) -> Tensor:
        """The thing of the portrait into the photograph, [3, S, S] in 0..1."""
        how = {"given": _given(case), "side": case.side, "way": asdict(way), "steps": size.steps, "seed": seed}
        return self.once(size.size, lambda: self._paint(self.model, case, size, way, seed), **how)

    def with_words(self, case: Case, size: Size, region: bool, seed: int) -> Tensor:
        """The same, its thing alone shown, while a Prompt Region in the other half says what is there."""
        from maskprompt.nodes.prompt_region import EVERYWHERE, PromptRegionNode

        def painted() -> Tensor:
            text = self.words(things.with_article(things.words_of(case.named)))
            mask = half(other_side(case.side), size.size)
            (model,) = PromptRegionNode.execute(self.model, text, mask, 1.0, EVERYWHERE).args
            return self._paint(model, case, size, Way(region), seed)

        how = {"given": _given(case), "side": case.side, "region": region, "beside": case.named, "steps": size.steps, "seed": seed}
        return self.once(size.size, painted, **how)

    def two(self, case: Two, size: Size, way: Way, seed: int) -> Tensor:
        """The things of two portraits, one in each half, each alone shown, [3, S, S] in 0..1."""

        def painted() -> Tensor:
            first, second = case.sides
            text = f"the thing of the first picture on the {first} and the thing of the second picture on the {second}"
            shown = [
                Shown(portrait, half(side, size.size) if way.region else None, mask, way.in_negative)
                for portrait, side, mask in zip(case.portraits, case.sides, case.shown, strict=True)
            ]
            return self._shown(self.model, text, shown, size, seed)

        given = [sha_of(part) for part in (*case.portraits, *case.shown)]
        how = {"given": given, "sides": case.sides, "way": asdict(way), "steps": size.steps, "seed": seed}
        return self.once(size.size, painted, **how)

    def _paint(self, model: Any, case: Case, size: Size, way: Way, seed: int) -> Tensor:
        text = f"the thing of the first picture on the {case.side} in the second picture"
        asked = Shown(case.portrait, half(case.side, size.size) if way.region else None, case.shown if way.show else None, way.in_negative)
        return self._shown(model, text, [asked, Shown(case.photograph)], size, seed)

    @torch.no_grad()
    def _shown(self, model: Any, text: str, shown: Sequence[Shown], size: Size, seed: int) -> Tensor:
        """A picture from references."""
        from maskprompt.nodes.reference_region import ReferenceRegionNode

        positive, negative = self.words(text), self.words("")
        for one in shown:
            beside = negative if one.in_negative else None
            model, positive, with_it, _ = ReferenceRegionNode.execute(
                model, positive, negative=beside, image=one.image, vae=self.vae, region=one.region, show=one.show
            ).args
            negative = with_it if one.in_negative else negative
        return self.sample(model, positive, negative, size.size, size.steps, seed)


def _given(case: Case) -> list[str]:
    """What the picture of a case depends on."""
    return [sha_of(part) for part in (case.portrait, case.shown, case.photograph)]


def measure(painter: Any, eye: judge.Looking[Any], ground_eye: judge.GroundJudge, found: Sequence[Case], size: Size) -> list[Figure]:
    """Each case in all ways from the same noise: its thing and its ground, and how far the other half is from the photograph."""
    figures: list[Figure] = []
    for way in WAYS:
        there: list[bool] = []
        place: list[bool] = []
        stranger: list[bool] = []
        ground: list[bool] = []
        elsewhere: list[float] = []
        for number, case in enumerate(found):
            picture = painter.paint(case, size, way, number)
            likest = eye.look(picture, things.HELD_OUT)[0]
            there.append(likest.code == case.code)
            place.append(there[-1] and abs(likest.centre - MIDDLES[case.side]) < 0.25)
            stranger.append(likest.code == case.other)
            ground.append(ground_eye.name(picture) == case.ground)
            outside = half(other_side(case.side), size.size)[0] > 0.5
            elsewhere.append(float((picture - case.photograph[0].movedim(-1, 0)).abs().mean(0)[outside].mean()))
        name = way.name
        print(f"{name}: {sum(place) / len(place):.2f}", flush=True)
        figures.append(rate(f"{name}: the thing is there", there))
        figures.append(rate(f"{name}: the thing is there, in its place", place))
        figures.append(rate(f"{name}: the other thing of the reference is there in its stead", stranger))
        figures.append(rate(f"{name}: the reference's ground is named", ground))
        figures.append(mean(f"{name}: mean difference from the photograph in the other half", elsewhere))
    photographs = [ground_eye.name(case.photograph[0].movedim(-1, 0)) == case.ground for case in found]
    figures.append(rate("the photograph itself: the reference's ground is named", photographs))
    return figures


def measure_words(painter: Any, eye: judge.Looking[Any], found: Sequence[Case], size: Size) -> list[Figure]:
    """Each half looked at alone: the reference's thing in its own, and the thing that words put into the other."""
    figures: list[Figure] = []
    for region in (False, True):
        told: list[bool] = []
        subject: list[bool] = []
        for number, case in enumerate(found):
            picture = painter.with_words(case, size, region, number)
            own, beside = (torch.where(half(side, size.size) > 0.5, picture, 0.5) for side in (case.side, other_side(case.side)))
            told.append(eye.look(beside, things.NAMED)[0].code == case.named)
            subject.append(eye.look(own, things.HELD_OUT)[0].code == case.code)
        name = f"words beside it, {'a region' if region else 'no region'}"
        print(f"{name}: {sum(told) / len(told):.2f}", flush=True)
        figures.append(rate(f"{name}: their thing is in the other half", told))
        figures.append(rate(f"{name}: the reference's thing is in its own", subject))
    return figures


def measure_twos(painter: Any, eye: judge.Looking[Any], found: Sequence[Two], size: Size) -> list[Figure]:
    """Each half looked at alone: the thing of its own portrait, or that of the other's."""
    figures: list[Figure] = []
    for way in TWO_WAYS:
        own: list[float] = []
        both: list[bool] = []
        changed: list[bool] = []
        for number, case in enumerate(found):
            picture = painter.two(case, size, way, number)
            halves = [torch.where(half(side, size.size) > 0.5, picture, 0.5) for side in case.sides]
            seen = tuple(eye.look(part, things.HELD_OUT)[0].code for part in halves)
            own.append(float(np.mean([one == code for one, code in zip(seen, case.codes, strict=True)])))
            both.append(seen == case.codes)
            changed.append(seen == case.codes[::-1])
        name = f"two references, {'a region each' if way.region else 'no regions'}{way.prompts}"
        print(f"{name}: {sum(both) / len(both):.2f}", flush=True)
        figures.append(mean(f"{name}: a half has its own thing", own))
        figures.append(rate(f"{name}: both have", both))
        figures.append(rate(f"{name}: they changed places", changed))
    return figures


def sheet(painter: Any, found: Sequence[Case], size: Size, count: int = 6) -> None:
    """For a human: the first cases, none chosen, what is given and each way's picture."""
    from demo.contact_sheet import picture_of, save_sheet

    rows: list[Any] = []
    for number, case in enumerate(found[:count]):
        alone = torch.where(case.shown[0][..., None] > 0.5, case.portrait[0], 0.5)
        given = (("the reference", case.portrait[0]), ("its thing alone", alone), ("the photograph", case.photograph[0]))
        painted = [(way.name, painter.paint(case, size, way, number).movedim(0, -1)) for way in WAYS]
        title = f"the {things.words_of(case.code)} on the {case.side}"
        rows.append((title, [(name, picture_of(pixels)) for name, pixels in (*given, *painted)]))
    save_sheet(SHEET, rows, size.size)


def main(command: str, arguments: Sequence[str] = ()) -> None:
    size = size_of(Size(), command, __doc__, arguments)
    place = world.load(folders.world(folders.DEFAULT))
    eye = judge.Judge(place)
    drawn = cases(place, max(size.cases, size.words), size.size)
    notes = {"settings": size.settings, "weights": weights()}
    whole = place.whole and size == Size()
    painter = Painter()
    figures = measure(painter, eye, judge.GroundJudge(place), drawn[: size.cases], size)
    write("references", command, figures, notes, whole=whole)
    sheet(painter, drawn, size)
    figures = measure_words(painter, eye, drawn[: size.words], size)
    write("references-words", command, figures, notes, whole=whole)
    figures = measure_twos(painter, eye, twos(place, size.twos, size.size), size)
    write("references-two", command, figures, notes, whole=whole)
