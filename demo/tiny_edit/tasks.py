"""The tasks that tiny-edit learns: which pictures of a record are references, which one is painted, and the sentence that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import grounds, records, sentences, things
from .records import CHANGED, ELSEWHERE, FULL, GROUND, MASKED, OTHER_PORTRAIT, PORTRAIT, REPLACED
from .scenes import LEFT, RIGHT

KINDS: tuple[float, ...] = (0.5, 0.3, 0.2)
"""How many of the steps have no reference, one, and two."""
PORTRAITS: tuple[int, ...] = (PORTRAIT, OTHER_PORTRAIT)


@dataclass(frozen=True)
class Task:
    """A task: its name among the sentences, the slots of its references and of what is painted, and how often it is drawn."""

    name: str
    references: tuple[int, ...]
    target: int
    chance: float
    named: bool = False
    count: str = "any"

    def suits(self, about: dict[str, Any]) -> bool:
        """Whether the record can be used: things named where the sentence must name them; one thing, or several."""
        several = len(about["codes"]) > 1
        if self.named and not about["named"]:
            return False
        return self.count == "any" or (self.count == "several") == several


TASKS: tuple[Task, ...] = (
    Task("paint", (), FULL, 0.55, named=True),
    Task("paint replaced", (), REPLACED, 0.2, named=True),
    Task("paint elsewhere", (), ELSEWHERE, 0.2, named=True),
    Task("paint portrait", (), PORTRAIT, 0.25, named=True),
    Task("paint other portrait", (), OTHER_PORTRAIT, 0.25, named=True),
    Task("ground", (), GROUND, 0.05),
    Task("fill", (MASKED,), FULL, 0.3, named=True),
    Task("add", (GROUND,), FULL, 0.1, named=True, count="one"),
    Task("add to others", (CHANGED,), FULL, 0.05, named=True, count="several"),
    Task("remove", (FULL,), GROUND, 0.05, count="one"),
    Task("remove from others", (FULL,), CHANGED, 0.05, count="several"),
    Task("replace", (FULL,), REPLACED, 0.15, named=True),
    Task("move", (FULL,), CHANGED, 0.1, count="one"),
    Task("new ground", (FULL,), ELSEWHERE, 0.1),
    Task("subject", (PORTRAIT,), FULL, 0.2, count="one"),
    Task("subject elsewhere", (PORTRAIT,), ELSEWHERE, 0.2, count="one"),
    Task("compose", (PORTRAIT, GROUND), FULL, 0.4, count="one"),
    Task("exchange", (FULL, OTHER_PORTRAIT), REPLACED, 0.25),
    Task("fill from reference", (MASKED, PORTRAIT), FULL, 0.35),
    Task("add from reference", (GROUND, PORTRAIT), FULL, 0.25, count="one"),
    Task("add from reference to others", (CHANGED, PORTRAIT), FULL, 0.15, count="several"),
)


def place_of(x: float) -> str:
    """The place of a centre: as `scenes.Placed.place` says it."""
    if x < LEFT:
        return "on the left"
    return "on the right" if x > RIGHT else "in the middle"


def sentence(rng: np.random.Generator, task: Task, about: dict[str, Any]) -> str:
    """A true sentence for the task and the record."""
    focus = about["focus"]
    own = things.words_of(about["codes"][focus])
    other = things.words_of(about["other"])
    place = place_of(about["x"][focus])
    moved = place_of(about["moved_x"])
    where = {"fill from reference": place, "move": moved}.get(task.name, place)
    the = own if about["named"] and (not task.references or task.references[0] == FULL or rng.random() < 0.6) else sentences.UNNAMED
    the_other = other if about["named"] and rng.random() < 0.6 else sentences.UNNAMED
    seen, centres, ground_name = _painted(task, about)
    ground = grounds.words_of(ground_name)
    order = sorted(range(len(seen)), key=lambda index: centres[index])
    places = [place_of(centres[index]) for index in order] if rng.random() < 0.4 and len(seen) < 3 else None
    fields = {
        "a": things.with_article(own),
        "the": the,
        "all": sentences.together([seen[index] for index in order], places),
        "other": things.with_article(other),
        "the_other": the_other,
        "ground": ground,
        "place": where,
        "to": sentences.TO[where],
    }
    return sentences.say(rng, _template(task, about), **fields)


def _painted(task: Task, about: dict[str, Any]) -> tuple[list[str], list[float], str]:
    """Gives the words and centres of the things in the painted picture, and the name of its ground."""
    words = [things.words_of(code) for code in about["codes"]]
    if task.target in PORTRAITS:
        number = PORTRAITS.index(task.target)
        x, ground = about["portraits"][number]
        return [(words[about["focus"]], things.words_of(about["other"]))[number]], [x], ground
    if task.target == REPLACED:
        words[about["focus"]] = things.words_of(about["other"])
    return words, about["x"], about["elsewhere"] if task.target == ELSEWHERE else about["ground"]


def _template(task: Task, about: dict[str, Any]) -> str:
    for name in ("paint", "add from reference", "add", "remove", "subject"):
        if task.name.startswith(name):
            return name
    if task.name == "new ground" and len(about["codes"]) > 1:
        return "new ground of all"
    return task.name


def cells_of(task: Task) -> tuple[int, ...]:
    """The record's cell masks that the loss counts more: things that are painted, and things of the first reference that must go.

    A portrait that is a reference stands on another ground than what is painted: nothing of it must go.
    """
    edited = [slot for slot in task.references[:1] if slot not in PORTRAITS]
    slots = [slot for slot in (task.target, *edited) if slot in records.WEIGHTS]
    return tuple(sorted({records.WEIGHTS[slot] for slot in slots}))
