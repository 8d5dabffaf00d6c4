"""What a training will take, told before it starts.

A step's share is reckoned from the UNet's blocks. Against the peak of a real step (float32, on a CPU, memory in use): SD 1.5's
blocks at 160 channels with gradient checkpointing +9 % at 64x64 latents and +13 % at 32x32, without +13 %; at 128 channels and
64x64 without +15 %; SDXL's at 96 channels and 64x64 with +50 %, without +19 %. The C library of a CPU may keep more for itself than is
in use: up to 1.5 times as much without checkpointing and three times with it. On an H100 (`nox -s gpu`): with checkpointing -5 to +10 %;
without it -24 % when a number of bfloat16 was reckoned at 3 bytes, so it is 4.5 now, which by the same peaks is -6 %.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .learner import Learner
from .model_copy import blocks_of, compute_dtype
from .trainable_weights import Method

log = logging.getLogger(__name__)

GIB = 1024**3
AUTOMATIC_FULL = 15.5 * GIB
"""From this much memory on, `auto` trains all weights if they fit: what a card of 16 GB reports."""
SPARE = 1.1
"""A tenth is left for the system and for what allocators lose."""
COPIES = 4
"""What learns is held so often in float32: its value, gradient, and the optimizer's two moments."""
RESIDUAL = 4.0
TRANSFORMER = 32.0
"""What a block keeps for the gradient, in multiples of its cells times channels (in and out together for a residual block)."""
BETWEEN = 3.0
"""What lies between blocks, which is kept even where the blocks are computed twice, in multiples of each block's output."""
AT_WORK = 1.5
"""While a block is computed again and its gradient taken, it holds this multiple of what it keeps."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on the training device: the model's weights, what the optimizer adds to what learns, and a step's activations."""

    weights: int
    learning: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.learning + self.activations

    @property
    def state(self) -> int:
        """Bytes on disk, at most: what learns without its gradient, twice, as a new state is written beside the old one."""
        return 2 * self.learning * COPIES // (COPIES + 1)

    def __str__(self) -> str:
        parts = (("weights", self.weights), ("what learns", self.learning), ("a step", self.activations))
        return f"{self.total / GIB:.1f} GB ({', '.join(f'{name} {size / GIB:.1f}' for name, size in parts)})"


def estimate(learner: Learner, shape: tuple[int, int, int, int], checkpointing: bool, average: bool = False, beside: int = 0) -> Estimate:
    """Of a `Learner` on latents of `shape` [B, C, h, w]; `beside`: how many weights learn in a network beside it."""
    trained = beside + sum(value.numel() for value in learner.parameters.values())
    weights = 0 if learner.method == "full" else learner.patcher.model_size()
    return Estimate(int(weights), 4 * (COPIES + average) * trained, activations(learner.patcher, shape, checkpointing, learner.method))


def estimate_full(model: Any, shape: tuple[int, int, int, int], checkpointing: bool, average: bool = False, beside: int = 0) -> Estimate:
    """What training all weights of a MODEL would take, without a learner; `beside` as in `estimate`."""
    trained = beside + sum(value.numel() for value in model.model.diffusion_model.parameters())
    return Estimate(0, 4 * (COPIES + average) * trained, activations(model, shape, checkpointing, "full"))


def activations(model: Any, shape: tuple[int, int, int, int], checkpointing: bool, method: Method) -> int:
    """Bytes that a step on latents of `shape` [B, C, h, w] holds besides weights and what the optimizer needs."""
    unet = model.model.diffusion_model
    compute = compute_dtype(model)
    kept, between = _cells(unet, shape)
    if checkpointing:
        size = 4 if compute == torch.float32 else 3  # under bfloat16 the norms' results stay float32
        return int(size * (sum(between) * BETWEEN + max(kept) * AT_WORK))
    size = 4 if compute == torch.float32 else 4.5  # under bfloat16 the norms keep their inputs in float32 too, beside those in bfloat16
    stored = torch.float32 if method == "full" else model.model.get_dtype()
    cast = 0 if stored == compute else sum(value.numel() for value in unet.parameters()) * compute.itemsize
    return int(size * (sum(between) * BETWEEN + sum(kept))) + cast


def _cells(unet: Any, shape: tuple[int, int, int, int]) -> tuple[list[float], list[int]]:
    """For each block of a UNet in turn: how many numbers it keeps for the gradient, and how many it hands on."""
    cells = shape[0] * shape[2] * shape[3]
    kept = []
    handed = []
    for part in [*unet.input_blocks, unet.middle_block, *unet.output_blocks]:
        for module in part or ():
            kind = type(module).__name__
            for block in blocks_of(module):
                width = block.norm1.normalized_shape[0] if hasattr(block, "norm1") else block.out_channels
                handed.append(cells * width)
                kept.append(cells * (width * TRANSFORMER if hasattr(block, "norm1") else (block.channels + width) * RESIDUAL))
            cells = cells // 4 if kind == "Downsample" else cells * 4 if kind == "Upsample" else cells
    return kept, handed


def check(needed: Estimate, device: Any, method: str) -> None:
    """Logs the estimate; ValueError if the device cannot hold it at all, a warning if it is tight."""
    there = total_memory(device)
    if needed.weights + needed.learning > there:
        instead = {"full": "`method` lora", "lora": "a smaller rank, or a smaller model"}.get(method, "a smaller model")
        raise ValueError(
            f"this training needs about {needed}, but the device ({device}) has {there / GIB:.1f} GB in all. What would do: {instead}."
        )
    if needed.total * SPARE > there:
        log.warning("Training needs about %s and %s has %.1f GB: it may run out of memory. A smaller size or batch needs less.",
                    needed, device, there / GIB)  # fmt: skip
    else:
        log.info("Training needs about %s of %.1f GB on %s.", needed, there / GIB, device)


def total_memory(device: Any) -> int:
    """Bytes that a device has in all."""
    from comfy import model_management

    found: Any = model_management.get_total_memory(device)
    return int(found)


def available_memory(device: Any) -> int:
    """Bytes that a training can have of a device: what is free, and what ComfyUI's own models hold, which make room for it."""
    from comfy import model_management

    free: Any = model_management.get_free_memory(device)
    loaded = [one for one in model_management.current_loaded_models if one.model is not None and one.device == device]
    return int(free) + sum(int(one.model_loaded_memory()) for one in loaded)


def chosen(device: Any, full: Estimate, disk: int | None, begun: Callable[[Method], bool]) -> Method:
    """What `auto` means for a training: what it was begun with, so that it goes on whatever is free now; else as `method_for` says."""
    methods: tuple[Method, ...] = ("full", "lora")
    for method in methods:
        if begun(method):
            return method
    return method_for(device, full, disk)


def method_for(device: Any, full: Estimate | None = None, disk: int | None = None) -> Method:
    """What `auto` means on a device: all weights where it has 16 GB of its own memory and room for `full` now, else a LoRA.

    `disk`: bytes that are free where the training's state will lie, if that is known.
    """
    from comfy import model_management

    if model_management.is_device_cpu(device) or total_memory(device) < AUTOMATIC_FULL:
        return "lora"
    if full is None:
        return "full"
    free = available_memory(device)
    if full.total * SPARE > free:
        log.info("auto trains a LoRA: all weights need about %s, and %s has %.1f GB free.", full, device, free / GIB)
        return "lora"
    if disk is not None and full.state > disk:
        log.info("auto trains a LoRA: the state of all weights needs %.1f GB of disk, and %.1f GB are free.", full.state / GIB, disk / GIB)
        return "lora"
    return "full"
