"""What an artist would write for each task, exactly true of the pictures.

A template's fields: `a` is the thing with its article ("a fox"), `the` the thing with "the", `all` all things of the picture, `other` and
`the_other` the thing that comes instead, `ground` where it stands ("on a beach"), `place` "on the left", `to` "to the left".
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from . import grounds, things

UNNAMED = "thing"

TEMPLATES: dict[str, tuple[str, ...]] = {
    "paint": ("{all} {ground}", "{all} {ground}", "a photo of {all} {ground}", "a picture of {all} {ground}", "{all}"),
    "ground": ("nothing {ground}", "an empty photo {ground}"),
    "fill": ("{a}", "{a} {ground}", "paint {a} into the box", "fill the box with {a}", "{all} {ground}"),
    "add": ("add {a} {place}", "put {a} {place}", "add {a}"),
    "remove": ("remove the {the}", "take the {the} away", "the same picture without the {the}"),
    "replace": (
        "replace the {the} with {other}",
        "turn the {the} into {other}",
        "change the {the} to {other}",
        "{other} instead of the {the}",
    ),
    "move": ("move the {the} {to}", "put the {the} {place}", "the same {the} but {place}"),
    "new ground": ("put the {the} {ground}", "the same {the} {ground}", "change the background so that the {the} is {ground}"),
    "new ground of all": ("put them {ground}", "the same things {ground}", "change the background : {all} {ground}"),
    "subject": (
        "the {the} of the picture {ground} {place}",
        "this {the} {place} {ground}",
        "the same {the} {ground}",
        "this {the} {ground}",
    ),
    "compose": (
        "the {the} of the first picture {place} in the second picture",
        "put the {the} of the first picture into the second picture {place}",
        "the {the} of picture 1 on the ground of picture 2 {place}",
        "the first picture's {the} in the second picture",
    ),
    "exchange": (
        "replace the {the} of the first picture with the {the_other} of the second picture",
        "replace the {the} with the {the_other} of the second picture",
        "the {the_other} of the second picture instead of the {the}",
    ),
    "fill from reference": (
        "the {the} of the second picture",
        "fill the box with the {the} of the second picture",
        "paint the {the} of picture 2 into the box",
    ),
    "add from reference": (
        "put the {the} of the second picture {place}",
        "add the {the} of the second picture {place}",
        "add the {the} of picture 2 {place}",
        "add the {the} of the second picture",
    ),
}
TO: dict[str, str] = {"on the left": "to the left", "in the middle": "to the middle", "on the right": "to the right"}


def vocabulary() -> list[str]:
    """Every word that a sentence can have."""
    texts = [words for template in TEMPLATES.values() for words in template]
    fixed = [" ".join(part for part, *_ in string.Formatter().parse(text) if part) for text in texts]
    named = [things.words_of(code) for code in (*things.NAMED, *things.HELD_OUT)]
    places = [word for pair in TO.items() for word in pair]
    known = [*fixed, *named, *places, *(grounds.words_of(name) for name in (*grounds.TRAINING, *grounds.HELD_OUT)), "a an and the", UNNAMED]
    return sorted({word for text in known for word in text.split()})


def say(rng: np.random.Generator, task: str, **fields: str) -> str:
    """A sentence of the task."""
    choices = TEMPLATES[task]
    return choices[rng.integers(len(choices))].format(**fields)


def together(words: Sequence[str], places: Sequence[str] | None = None) -> str:
    """Things named from left to right: "a fox and a mug", or with their places."""
    parts = [things.with_article(word) for word in words]
    if places is not None:
        parts = [f"{part} {place}" for part, place in zip(parts, places, strict=True)]
    return " and ".join(parts)
