"""An option of a training stands once: its default, range and meaning, from which node inputs and command lines are made.

    size: int = option(512, "Side of the training crops in pixels.", lowest=64, highest=2048, step=8)

is a field of a method's `Options` (a dataclass). What every method asks alike stands here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

KEY = "option"
AUTO = "auto"
"""The choice of `method` that takes all weights where they fit, else a LoRA."""

Options = TypeVar("Options")


@dataclass(frozen=True)
class Option:
    """What is known of a field beside its default.

    `sentence`: its meaning, a node's tooltip and a command's help. `name`: the node's input, where it is called otherwise.
    `lowest`, `highest`: of a number. A whole number's highest is where a node's widget ends; a command line may go beyond.
    `step`, `round`: of the widget; a whole number is a multiple of `step`. `choices`: of a text. `advanced`: a node hides it at first,
    and graphs may lack it. `more`: what only this kind of widget knows.
    """

    sentence: str
    name: str = ""
    lowest: float | None = None
    highest: float | None = None
    step: float | None = None
    round: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def option(default: Any, sentence: str, **about: Any) -> Any:
    """A field of an options class; `about` as in `Option`. None as default is a number that 0 leaves to the method."""
    return dataclasses.field(default=default, metadata={KEY: Option(sentence, **about)})


def described(options: type[Any]) -> dict[str, tuple[Any, Option]]:
    """The fields that have a meaning: default and `Option` by name."""
    return {one.name: (one.default, one.metadata[KEY]) for one in dataclasses.fields(options) if KEY in one.metadata}


def from_inputs(options: type[Options], given: Mapping[str, Any], **more: Any) -> Options:
    """Options of what a node was given, by its names; what an old graph lacks is at its default. `more`: fields that are no plain input."""
    found: dict[str, Any] = {}
    for field, (default, about) in described(options).items():
        name = about.name or field
        if field not in more and name in given:
            found[field] = (given[name] or None) if default is None else given[name]
    return options(**found, **more)


def written(options: Any, *later: str) -> str:
    """Options as a fingerprint has them: without the fields that came `later`, where these are at their default.

    So trainings that were interrupted before there was such a choice go on.
    """
    text = str(options)
    for field in dataclasses.fields(options):
        if field.name in later:
            text = text.replace(f", {field.name}={field.default!r}", "")
    return text


def check_numbers(options: Any, node: str) -> None:
    """ValueError for a number that is none (NaN), infinite or too low, which ComfyUI's own limits let pass; `node` says whose it is."""
    for field, (_, about) in described(type(options)).items():
        value = getattr(options, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value) or (about.lowest is not None and value < about.lowest):
            limits = f"from {about.lowest:g} to {about.highest:g}" if about.highest is not None else f"of at least {about.lowest or 0:g}"
            raise ValueError(f"{node}: {about.name or field} is {value}. A number {limits} is needed.")


def steps(default: int, sentence: str, name: str = "", lowest: int = 1, highest: int = 100_000) -> Any:
    return option(default, sentence, name=name, lowest=lowest, highest=highest)


def method(default: str, sentence: str) -> Any:
    return option(default, sentence, choices=(AUTO, "lora", "full"))


def rate(default: float | None, sentence: str, lowest: float = 0.0) -> Any:
    return option(default, sentence, name="learning_rate", lowest=lowest, highest=1.0, step=1e-7, round=1e-9)


def rank() -> Any:
    return option(16, "How much detail the LoRA can hold: its size. More makes a larger file.", lowest=1, highest=256)


def batch(default: int, sentence: str) -> Any:
    return option(default, sentence, name="batch_size", lowest=1, highest=64)


def size(sentence: str, step: int = 8) -> Any:
    return option(512, sentence, lowest=64, highest=2048, step=step)


def seed() -> Any:
    return option(0, "The same seed trains the same.", lowest=0, highest=2**53, more={"control_after_generate": False})


def average(example: float, of: str = "the weights", last: str = "the last weights.") -> Any:
    """`of`: what the average is of; `last`: what 0 takes."""
    sentence = f"Steadier results: a moving average of {of} is kept with this decay, for example {example:g}. 0: {last}"
    return option(0.0, sentence, lowest=0.0, highest=0.9999, step=0.001, advanced=True)


def checkpointing() -> Any:
    return option(True, "Needs far less memory and about a third more time.", name="gradient_checkpointing", advanced=True)


def share(default: float, sentence: str, step: float = 0.05, highest: float = 1.0) -> Any:
    """A number from 0 on, by default to 1, that a node hides at first."""
    return option(default, sentence, lowest=0.0, highest=highest, step=step, advanced=True)


def switch(default: bool, sentence: str, name: str = "") -> Any:
    """Something on or off that a node hides at first."""
    return option(default, sentence, name=name, advanced=True)


def names(options: type[Any], without: Sequence[str] = ()) -> list[str]:
    """The fields that have a meaning, in order."""
    return [field for field in described(options) if field not in without]
