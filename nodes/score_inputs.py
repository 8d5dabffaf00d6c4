"""What the two score nodes share: the models in use, one progress bar over several rounds, and inputs that come as lists."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..models import files
from .progress import TrainingProgress

CATEGORY = "MaskPrompt/See and measure"
NONE = "none"
"""The choice of no model: its scores are left out."""

_used: weakref.WeakKeyDictionary[Any, tuple[str, list[Any]]] = weakref.WeakKeyDictionary()
"""For each node its kind, and the models that its kind used last: they live as long as ComfyUI keeps the objects of the graph's nodes."""


def register(node: Any, kind: str) -> None:
    """Let the models that nodes of this kind use live as long as this node's object."""
    _used[node] = (kind, [])


def loaded(load: Callable[[str], Any], folder: str, name: str, advice: str) -> Any:
    """Give the network of that file, the one in use where it is the same and its file did not change; None for no file."""
    if name == NONE:
        return None
    path = files.find_file(folder, name, advice)
    key = (path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns)
    held = next((one for _, models in _used.values() for one in models if getattr(one, "read_from", None) == key), None)
    if held is not None:
        return held
    network = load(path)
    network.read_from = key
    return network


def hold(kind: str, models: list[Any]) -> None:
    """Keep these models as long as a node of this kind is in the graph; those that the kind had before are let go."""
    for node, (own, _) in list(_used.items()):
        if own == kind:
            _used[node] = (kind, models)


def first(lists: dict[str, list[Any]], name: str, default: Any) -> Any:
    """Give what a single input holds, where every input comes as a list; the default if it is not wired."""
    values = lists.get(name)
    return values[0] if values else default


class Bar:
    """One progress bar over several rounds of pictures."""

    def __init__(self, node: str | None, pictures_in_all: int) -> None:
        self.progress = TrainingProgress(node, max(1, pictures_in_all), first=False)
        self.before = 0

    def round(self, what: str, count: int) -> Callable[[int], None]:
        """What to call after some of a round of `count` pictures are done."""
        start = self.before
        self.before += count

        def after(done: int) -> None:
            self.progress.bar.update_absolute(start + done)
            self.progress.tell(what, done, count)

        return after
