"""Whose settings an experiment takes, and what its command changes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .sampling import Sampling

TITLES = {"paper": "the paper's settings", "ours": "our settings"}


@dataclass(frozen=True)
class Preset:
    """Settings of a training and of painting: `training` are fields of the method's options that differ from their defaults, `pictures`
    how many are painted of each case. `title` says whose they are, and what the command changed."""

    name: str
    training: Mapping[str, Any]
    sampling: Sampling
    pictures: int = 1
    title: str = ""


def chosen(given: Any, options: type[Any], known: Sequence[Preset]) -> list[Preset]:
    """Those that a command asks for, with what it changes. ValueError for an option that the training does not have."""
    changed = dict(_read(options, text) for text in given.set)
    said = _told({**changed, "sampling steps": given.paint_steps, "pictures": given.pictures})
    found = []
    for preset in known:
        if given.preset in (preset.name, "both"):
            sampling = replace(preset.sampling, steps=given.paint_steps or preset.sampling.steps)
            training = {**preset.training, **changed}
            found.append(Preset(preset.name, training, sampling, given.pictures or preset.pictures, TITLES[preset.name] + said))
    return found


def _told(changed: Mapping[str, Any]) -> str:
    """What a command changes of a preset, in words; None for what it leaves."""
    found = [f"{name} {value}" for name, value in changed.items() if value is not None]
    return f" but {', '.join(found)}" if found else ""


def _read(options: type[Any], text: str) -> tuple[str, Any]:
    """An option and its value of OPTION=VALUE."""
    from maskprompt.training.engine.options import described

    name, _, value = text.partition("=")
    known = described(options)
    kinds = {one.name: one.default for one in dataclasses.fields(options) if one.name in known}
    if name not in kinds or not value:
        raise ValueError(f"--set {text}: an option, an equals sign and a value are needed. The options are {', '.join(kinds)}.")
    usual = kinds[name]
    try:
        if isinstance(usual, bool):
            return name, {"on": True, "off": False}[value]
        read: Any = float if usual is None else type(usual)
        found = read(value)
        found = None if usual is None and found == 0 else found
    except (KeyError, ValueError):
        kind = "on or off" if isinstance(usual, bool) else "a whole number" if isinstance(usual, int) else "a number"
        raise ValueError(f"--set {text}: {name} takes {kind}.") from None
    choices = known[name][1].choices
    if choices and found not in choices:
        raise ValueError(f"--set {text}: {name} is one of {', '.join(choices)}.")
    return name, found
