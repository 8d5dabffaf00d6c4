"""What a call shows under core's Context Windows: some pictures of the batch, some frames, or some rows or columns of the picture.

Some pictures under AnimateDiff-Evolved's windows too, which tells them in an option of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .grid import Size, Window

ANIMATED = "ad_params"
"""AnimateDiff-Evolved's option; `sub_idxs` in it are the pictures of the batch that a window shows, None for all."""
SIDEWAYS = "Context Windows over the picture's height or width"


def pictures(options: Mapping[str, Any], count: int) -> Sequence[int]:
    """Tell which pictures of the whole batch the `count` rows of each half of CFG are.

    RuntimeError where the window and the call disagree.
    """
    window = options.get("context_window")
    own = options.get(ANIMATED)
    shown = own.get("sub_idxs") if isinstance(own, Mapping) else None
    if window is not None and window.dim == 0:
        shown = _indices(window)
    if shown is None:
        return range(count)
    if len(shown) != count:
        raise RuntimeError(
            f"a context window shows {count} pictures of the batch where its window names {len(shown)}, so it is not known which mask is "
            "whose. Bypass that node, or MaskPrompt's."
        )
    return [int(index) for index in shown]


def frames(options: Mapping[str, Any], dimensions: int) -> tuple[tuple[int, ...], int] | None:
    """Tell which latent frames of how many a call shows whose latents have so many dimensions; None for all of them."""
    window = options.get("context_window")
    if window is None or dimensions != 5 or window.dim != 2:
        return None
    return tuple(_indices(window)), int(getattr(window, "total_frames", 0))


def place(options: Mapping[str, Any], size: Size, dimensions: int = 4) -> tuple[Size, Window]:
    """Give the whole latent's size and the part of it that a call of `size` (height, width) sees, all in latent pixels.

    That is all of it, but for windows over rows or columns. RuntimeError where these do not lie side by side.
    """
    window = options.get("context_window")
    axis = -1 if window is None else window.dim - (dimensions - 2)
    if window is None or axis not in (0, 1):
        return size, (0, 0, *size)
    shown = _indices(window)
    whole = int(getattr(window, "total_frames", 0))
    if len(shown) != size[axis] or shown != list(range(shown[0], shown[0] + len(shown))) or whole <= shown[-1]:
        raise RuntimeError(f"{SIDEWAYS} shows parts of the picture that do not lie side by side: a mask cannot be placed. Bypass it.")
    if axis == 0:
        return (whole, size[1]), (shown[0], 0, *size)
    return (size[0], whole), (0, shown[0], *size)


def _indices(window: Any) -> list[int]:
    """List what a window shows along its dimension, in the call's order, with the entry that core may put before it."""
    anchor = getattr(window, "causal_anchor_index", None)
    before = [int(anchor)] if anchor is not None and anchor >= 0 else []
    return [*before, *(int(index) for index in window.index_list)]
