"""What every benchmark measures with: seconds of two sides taken in turns, and the most bytes that a run holds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from demo import tiny_model

SD15: dict[str, Any] = {**tiny_model.UNET, "model_channels": 320, "num_heads": 8, "num_head_channels": -1, "context_dim": 768}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(run: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Times of both, after one unmeasured run of each, taken in turns so that a slow moment hits both."""
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].append(seconds((first, second)[which]))
    return times


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make and that are still held: their most at once in `most`."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.storages.setdefault(StorageWeakRef(storage), storage.nbytes())
        self.storages = {storage: size for storage, size in self.storages.items() if not storage.expired()}
        self.most = max(self.most, sum(self.storages.values()))
        return result


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that a run holds at once beyond what was there before it (on a CPU: in the operators' results)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with Held() as held:
        run()
    return held.most
