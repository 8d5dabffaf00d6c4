"""What Mask-ControlNet's table asks for: references with one object or two, and the grounds they are to stand on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo import photos, scenes, subjects
from demo.subjects import Subject

from ..cache import image_of

REFERENCES = 4
GROUNDS = 4
"""Of each subject, and on how many other grounds each is painted."""


@dataclass(frozen=True)
class Case:
    """A reference and what is asked for. `number` is the marked object's; `others` are not to be painted."""

    subject: Subject
    scene: scenes.Scene
    number: int
    ground: str

    @property
    def prompt(self) -> str:
        """Says neither colour nor pattern: those are to come from the reference."""
        article = "an" if self.subject.shape[0] in "aeiou" else "a"
        ground = "a photo" if self.ground == scenes.PHOTO else self.ground
        return f"{article} {self.subject.shape} on {ground}"

    @property
    def rendered(self) -> scenes.Rendered:
        return rendered(self.scene)


@functools.cache
def rendered(scene: scenes.Scene) -> scenes.Rendered:
    return scenes.render(scene, subjects.SIZE)


def real(case: Case) -> scenes.Scene:
    """What is asked for, rendered: the object alone, in its place."""
    same = case.scene.ground == case.ground
    return scenes.Scene((case.scene.things[case.number],), case.ground, case.scene.seed if same else case.scene.seed + 1)


def pictures_of(cases: Sequence[Case]) -> Tensor:
    return torch.stack([image_of(case.rendered.image) for case in cases])


def masks_of(cases: Sequence[Case]) -> Tensor:
    return torch.stack([torch.from_numpy(case.rendered.masks[case.number]) for case in cases])


@functools.cache
def cases_of(subject: Subject) -> tuple[Case, ...]:
    """Each reference on each of the other grounds that suit it. Every other reference has a photograph behind it, of the held-out ones."""
    rng = subjects.random_numbers(subject, 0, 3)
    known = [photos.load(name) for name in photos.HELD_OUT]
    suiting = subject.grounds()
    found = []
    for number in range(REFERENCES):
        photo = photos.crop(known[int(rng.integers(len(known)))], rng, subjects.SIZE) if number % 2 else None
        ground = scenes.PHOTO if photo is not None else str(rng.choice(suiting))
        size = float(rng.uniform(0.4, 0.65))
        x, y = (float(one) for one in rng.uniform(size / 2 + 0.02, 1 - size / 2 - 0.02, 2))
        thing = scenes.Thing(subject.shape, subject.paint, x, y, size, float(rng.uniform(-8, 8)))
        scene = scenes.Scene((thing,), ground, int(rng.integers(2**30)), photo)
        others = [str(one) for one in rng.permutation([one for one in suiting if one != ground])[:GROUNDS]]
        found += [Case(subject, scene, 0, one) for one in others]
    return tuple(found)


@functools.cache
def pairs_of(subject: Subject) -> tuple[Case, ...]:
    """References with the subject and another object of its shape in other colours, so that no prompt tells them apart: first the one
    marked, then the other, for each of several grounds."""
    rng = subjects.random_numbers(subject, 0, 4)
    found = []
    apart = [name for name in scenes.COLOURS if name not in subject.colours]
    for _ in range(REFERENCES):
        one, two = (str(name) for name in rng.choice(apart, 2, replace=False))
        other = Subject(subject.shape, scenes.Paint(one, two, subject.paint.pattern))
        suiting = [ground for ground in subject.grounds() if ground in other.grounds()] or subject.grounds()
        ground, asked = (str(name) for name in rng.choice(suiting, 2, replace=len(suiting) < 2))
        sizes = rng.uniform(0.36, 0.46, 2)
        first = bool(rng.random() < 0.5)
        places = ((0.26, float(rng.uniform(0.4, 0.6))), (0.74, float(rng.uniform(0.4, 0.6))))
        both = (subject, other) if first else (other, subject)
        things = tuple(scenes.Thing(s.shape, s.paint, x, y, float(size)) for s, (x, y), size in zip(both, places, sizes, strict=True))
        scene = scenes.Scene(things, ground, int(rng.integers(2**30)))
        found += [Case(both[number], scene, number, asked) for number in (0, 1)]
    return tuple(found)
