"""What tiny-edit learns from: records of eight pictures that belong together.

The eight pictures of a record: the ground alone; one to three things on it; the same without one thing and with a grey box where it
was; with that thing replaced; with it moved (or, among several things, taken away); the things on another ground; that thing, and the
one that replaces it, alone on other grounds, larger and turned. Every task of the training is a choice among them, so one record serves
many times. Record number n of a size and seed is always the same. `shards` encodes and keeps them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import folders, places, scenes, things, world

GROUND, FULL, MASKED, REPLACED, CHANGED, ELSEWHERE, PORTRAIT, OTHER_PORTRAIT = range(8)
PICTURES = 8
"""The slots of a record. CHANGED: the only thing moved, or the focus of several taken away."""
WEIGHTS: dict[int, int] = {FULL: 0, REPLACED: 1, CHANGED: 2, ELSEWHERE: 0, MASKED: 3, PORTRAIT: 4, OTHER_PORTRAIT: 5}
"""Which of a record's cell masks says where a slot's things are; a masked picture's is the hidden box."""
MASKS = 6
PORTRAIT_SIZES = (0.45, 0.75)


@dataclass(frozen=True)
class Record:
    """`pictures` uint8 [8, S, S, 3]; `cells` bool [6, S/8, S/8]; `places` int8 [8, 3, S/16, S/16]; `about`: what sentences need to know."""

    pictures: np.ndarray
    cells: np.ndarray
    places: np.ndarray
    about: dict[str, Any]


def held_out(code: str, ground: str) -> bool:
    """About an eighth of the pairs of a named thing and a ground, which no picture that is painted in training shows together."""
    return code in things.NAMED and zlib.crc32(f"{code}/{ground}".encode()) % 8 == 0


def fitting_ground(rng: np.random.Generator, place: world.World, codes: Iterable[str]) -> scenes.Ground:
    """A random ground that may be shown with all of these things."""
    while True:
        ground = scenes.random_ground(rng, place.grounds())
        if not any(held_out(code, ground.name) for code in codes):
            return ground


def plan(rng: np.random.Generator, place: world.World) -> tuple[scenes.Scene, int, dict[str, Any]]:
    """The record's main scene, which of its things is in focus, and whether its things are named."""
    named = rng.random() < 0.5
    count = int(rng.choice(3, p=(0.5, 0.42, 0.08))) + 1 if named else 1
    pool = things.NAMED if named else things.TRAINING
    codes = [pool[index] for index in rng.choice(len(pool), count, replace=False)]
    ground = fitting_ground(rng, place, codes)
    layout = scenes.random_layout(rng, codes, scenes.horizon_of(place, ground))
    if not named:
        layout = (replace(layout[0], hue=float(rng.choice((0.0, rng.random())))),)
    return scenes.Scene(layout, ground), int(rng.integers(count)), {"named": named}


def portrait(rng: np.random.Generator, place: world.World, thing: scenes.Placed) -> scenes.Scene:
    """The same thing alone, large, turned and lit anew, on a ground of its own."""
    ground = fitting_ground(rng, place, [thing.code])
    (alone,) = scenes.random_layout(rng, [thing.code], scenes.horizon_of(place, ground), PORTRAIT_SIZES)
    return scenes.Scene((replace(alone, hue=thing.hue),), ground)


def suiting_ground(rng: np.random.Generator, place: world.World, layout: tuple[scenes.Placed, ...], but: str) -> scenes.Ground:
    """Another ground, on which the things stand below the horizon if one can be found."""
    lowest = min(thing.bottom for thing in layout)
    codes = [thing.code for thing in layout]
    ground = fitting_ground(rng, place, codes)
    for _ in range(12):
        horizon = scenes.horizon_of(place, ground)
        if ground.name != but and (horizon < lowest or horizon > scenes.FLOATING):
            break
        ground = fitting_ground(rng, place, codes)
    return ground


def record(rng: np.random.Generator, place: world.World, size: int) -> Record:
    """Draws one record."""
    scene, focus, about = plan(rng, place)
    thing = scene.things[focus]
    pool = things.NAMED if about["named"] else things.TRAINING
    shown = {one.code for one in scene.things}
    others = [code for code in pool if code not in shown and not held_out(code, scene.ground.name)]
    other = replace(thing, code=others[rng.integers(len(others))], flip=bool(rng.random() < 0.5))
    if not about["named"]:
        other = replace(other, hue=float(rng.choice((0.0, rng.random()))))
    with_other = tuple(other if index == focus else one for index, one in enumerate(scene.things))
    if len(scene.things) == 1:
        changed = (scenes.moved(thing, rng),)
    else:
        changed = tuple(one for index, one in enumerate(scene.things) if index != focus)
    elsewhere = suiting_ground(rng, place, scene.things, scene.ground.name)
    portraits = [portrait(rng, place, thing), portrait(rng, place, other)]
    wanted = {
        GROUND: scenes.Scene((), scene.ground),
        FULL: scene,
        REPLACED: scenes.Scene(with_other, scene.ground),
        CHANGED: scenes.Scene(changed, scene.ground),
        ELSEWHERE: scenes.Scene(scene.things, elsewhere),
        PORTRAIT: portraits[0],
        OTHER_PORTRAIT: portraits[1],
    }
    rendered = {slot: scenes.render(place, wanted[slot], size) for slot in wanted}
    images = {slot: rendered[slot].image for slot in rendered}
    x, y, width, height = scenes.box_around(rng, rendered[FULL].boxes[focus], size)
    box = np.zeros((size, size), np.float32)
    box[y : y + height, x : x + width] = 1
    others_only = images[GROUND] if len(scene.things) == 1 else images[CHANGED]
    images[MASKED] = np.where(box[..., None] > 0, np.uint8(128), others_only)
    masks = {WEIGHTS[slot]: rendered[slot].masks.max(0, initial=0) for slot in (FULL, REPLACED, CHANGED, PORTRAIT, OTHER_PORTRAIT)}
    masks[WEIGHTS[MASKED]] = box
    wanted[MASKED] = wanted[CHANGED] if len(scene.things) > 1 else wanted[GROUND]
    box_parts = [x / size, y / size, width / size, height / size]
    about = {
        **about,
        "codes": [one.code for one in scene.things],
        "x": [one.x for one in scene.things],
        "focus": focus,
        "other": other.code,
        "moved_x": changed[0].x,
        "ground": scene.ground.name,
        "elsewhere": elsewhere.name,
        "portraits": [[one.things[0].x, one.ground.name] for one in portraits],
        "box": box_parts,
    }
    cells = np.stack([_cells(masks[number]) for number in range(MASKS)])
    found = [places.places_of(place, wanted[slot].things, size // 16, box_parts if slot == MASKED else None) for slot in range(PICTURES)]
    return Record(np.stack([images[slot] for slot in range(PICTURES)]), cells, np.stack(found), about)


def _cells(mask: np.ndarray) -> np.ndarray:
    """A mask [S, S] to latent cells bool [S/8, S/8] that it covers by a tenth or more."""
    height, width = mask.shape
    return mask.reshape(height // 8, 8, width // 8, 8).mean((1, 3)) > 0.1


_WORLD: dict[Path, world.World] = {}


def numbered(folder: Path, size: int, seed: int, number: int) -> Record:
    """Record `number` of a size and seed. The world is read once in each process."""
    if folder not in _WORLD:
        _WORLD[folder] = world.load(folders.world(folder))
    return record(np.random.default_rng([seed, size, number]), _WORLD[folder], size)


def halved(one: Record) -> Record:
    """The record at half of the size, its pictures averaged and its cells covered where one of four was."""
    count, size = one.pictures.shape[:2]
    small = one.pictures.reshape(count, size // 2, 2, size // 2, 2, 3).mean((2, 4))
    cells = one.cells.reshape(len(one.cells), size // 16, 2, size // 16, 2)
    return Record(np.rint(small).astype(np.uint8), np.asarray(cells.any((2, 4))), places.halved(one.places), one.about)
