"""Masks that are likely to mark the wrong thing: what an artist should look at before hours of training."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ...images.masks import touches_all_borders

MOST = 0.75
"""A mask of more than this part of its picture leaves too little around the subject to learn from."""
SAID = 3
"""So many doubtful masks are named one by one."""


def doubt(name: str, mask: Tensor) -> str | None:
    """A sentence where a mask [H, W] in 0..1 looks like that of a background, None where it does not.

    `name` is its picture's: "picture 3".
    """
    marked = mask > 0.5
    part = float(marked.float().mean())
    if touches_all_borders(marked):
        found = "touches all four borders of it"
    elif part > MOST:
        found = f"covers {100 * part:.0f} % of it"
    else:
        return None
    return f"The mask of {name} {found}. If it marks the background, invert it; else nothing is left around the subject to learn from."


def doubts(masks: Iterable[tuple[str, Tensor]]) -> tuple[str, ...]:
    """The first sentences of `doubt` on named masks, and how many more there are."""
    found = [sentence for name, mask in masks if (sentence := doubt(name, mask)) is not None]
    more = len(found) - SAID
    return (*found[:SAID], *([f"So do {more} more."] if more > 0 else []))
