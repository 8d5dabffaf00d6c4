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


def small_flux() -> Any:
    """A Flux of width 256 with 2 double and 4 single blocks, of random weights, on the device."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    small: dict[str, Any] = {
        "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 64, "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 4,
        "depth": 2, "depth_single_blocks": 4, "axes_dim": [16, 24, 24], "theta": 10000, "patch_size": 2, "qkv_bias": True,
        "guidance_embed": False, "txt_ids_dims": [],
    }  # fmt: skip
    flux = Flux(**small, dtype=torch.float32, device=device(), operations=comfy.ops.disable_weight_init).eval()
    for parameter in flux.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return flux
