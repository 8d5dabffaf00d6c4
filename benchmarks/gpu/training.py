"""What a training step takes on UNets of real size: seconds, and the true peak of memory against what the pack estimates beforehand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from .. import figures as results
from . import shapes
from .checks import Check, Setting, figure, release
from .shapes import Shape

STEPS = 4
UNDERESTIMATED = 1.1
"""The true peak may be so many times what was estimated, as much as `training.memory` leaves spare."""


def steps(shape: Shape, dtype: torch.dtype, method: Any, checkpointing: bool) -> Callable[[Setting], list[results.Figure]]:
    """DreamCom's step: an inpainting UNet under masked cross-attention, AdamW, on random latents."""

    def run(setting: Setting) -> list[results.Figure]:
        from maskprompt.attention import grid, masked_attention
        from maskprompt.training.engine import learner, loop, memory

        model = shapes.model(shape, setting, dtype, inpainting=shape.family == "SD15")
        learns = learner.Learner(model, method, 16, checkpointing=checkpointing)
        size = (1, 4, shape.latent, shape.latent)
        expected = memory.estimate(learns, size, checkpointing)
        del model
        release()
        pixels = torch.zeros(1, 8 * shape.latent, 8 * shape.latent)
        pixels[:, :, : 4 * shape.latent] = 1
        patches = (masked_attention.MaskedCrossAttention(grid.RegionMask(pixels)),)
        values: dict[str, Any] = {"pooled_output": torch.randn(1, 1280)} if shape.family == "SDXL" else {}
        text = [[torch.randn(1, 77, shape.text), values]]
        taken: list[float] = []
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with learns.loaded(), torch.enable_grad():
            device = learns.device

            def loss(step: int, generator: torch.Generator) -> torch.Tensor:
                noisy = torch.randn(size, generator=generator).to(device)
                sigmas = torch.full((1,), 1.5, device=device)
                found = learns.denoised(noisy, sigmas, learns.conditions(text, noisy, _inpainting(shape, size)), patches)
                return (found - torch.randn(size, generator=generator).to(device)).square().mean()

            began = [time.perf_counter()]

            def after(_progress: Any) -> None:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - began[0])
                began[0] = time.perf_counter()

            def train() -> Any:
                return loop.run(learns.parameters, loss, loop.Settings(STEPS, 1e-5), None, after)

            progress = train()
            held = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        if len(progress.losses) != STEPS or not all(map(math.isfinite, progress.losses)):
            raise RuntimeError(f"the steps' losses are {progress.losses}")
        label = f"a training step of {shape.name}, {str(dtype).removeprefix('torch.')}, {method}"
        label += ", with checkpointing" if checkpointing else ", without checkpointing"
        found = [figure(f"{label}: seconds", sorted(taken[1:])[len(taken[1:]) // 2])]
        found.append(figure(f"{label}: estimated peak in GB", expected.total / 1e9))
        if held:
            found.append(figure(f"{label}: peak in GB", held / 1e9))
            found.append(figure(f"{label}: peak against the estimate", held / expected.total, UNDERESTIMATED if setting.decides else None))
        return found

    return run


def _inpainting(shape: Shape, size: tuple[int, int, int, int]) -> dict[str, Any]:
    """What Inpaint Model Conditioning sets; nothing for a model without a mask."""
    if shape.family != "SD15":
        return {}
    mask = torch.zeros(1, 1, size[2] * 8, size[3] * 8)
    mask[..., : size[3] * 4] = 1
    return {"concat_latent_image": torch.randn(size), "concat_mask": mask}


def checks(setting: Setting) -> list[Check]:
    found = []
    half = setting.dtypes[0]
    single = setting.dtypes[-1]
    for shape in shapes.shapes(setting):
        cases = [(half, "lora", True), (single, "lora", False), (single, "full", True)]
        if shape.family == "SDXL":
            cases = [(half, "lora", True)]
        for dtype, method, checkpointing in cases:
            name = (
                f"training: {shape.name}, {str(dtype).removeprefix('torch.')}, {method}, checkpointing {'on' if checkpointing else 'off'}"
            )
            found.append(Check(name, steps(shape, dtype, method, checkpointing), 15))
    return found
