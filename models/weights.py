"""A file's weights held against the network that is to take them: names, shapes, and numbers that are numbers. No ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SHOWN = 3
"""So many names stand in a message; of the others, how many they are."""

Shapes = Mapping[str, Sequence[int]]
"""The shape of each weight, by its name."""


@dataclass(frozen=True)
class Differences:
    """Where weights are not a network's: names it has and they lack, names it does not have, and names whose shapes are others; sorted."""

    missing: tuple[str, ...]
    surplus: tuple[str, ...]
    misshapen: tuple[str, ...]


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Lists the shape of every weight and buffer that a network saves, by its name."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def differences(given: Mapping[str, Tensor], wanted: Shapes) -> Differences:
    """Compares the names and shapes of weights with those wanted."""
    common = sorted(given.keys() & wanted.keys())
    return Differences(
        missing=tuple(sorted(wanted.keys() - given.keys())),
        surplus=tuple(sorted(given.keys() - wanted.keys())),
        misshapen=tuple(name for name in common if tuple(given[name].shape) != tuple(wanted[name])),
    )


def check_shapes(given: Mapping[str, Tensor], wanted: Shapes, title: str) -> None:
    """Refuses weights whose names or shapes are not exactly those wanted: ValueError in words, which begin with the file's `title`."""
    found = differences(given, wanted)
    for what, names in (("lacks", found.missing), ("has too many:", found.surplus)):
        if names:
            raise ValueError(f"{title} {what} {', '.join(names[:SHOWN])} ({len(names)} in all): it is damaged or of another kind.")
    if found.misshapen:
        name = found.misshapen[0]
        raise ValueError(
            f"{title}: {name} has the shape {list(given[name].shape)} where {list(wanted[name])} is needed: it is damaged or of another "
            "kind."
        )


def check_numbers(given: Mapping[str, Tensor], title: str) -> None:
    """Refuses weights that are no floating-point numbers, or NaN, or infinite: ValueError in words, which begin with the file's `title`."""
    for name, value in given.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(
                f"{title}: {name} holds numbers of the kind {kind}, where weights are floating-point numbers: it is damaged or of another "
                "kind."
            )
        if not finite(value):
            raise ValueError(
                f"{title} holds numbers that are none (NaN or infinite), first in {name}: its training failed, or the file is damaged. "
                "Take another copy, or train it again."
            )


def finite(value: Tensor) -> bool:
    """Says whether all numbers of a floating-point tensor are finite, without a copy of it where its kind can be compared."""
    if value.numel() == 0:
        return True
    whole = value.float() if value.dtype.itemsize == 1 else value  # kinds of 8 bits cannot be compared
    lowest, highest = torch.aminmax(whole)
    return bool(lowest.isfinite()) and bool(highest.isfinite())
