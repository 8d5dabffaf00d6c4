"""A loss, its parameters and its state files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from maskprompt.training.engine import checkpoint, loop
from torch import Tensor, nn

STEPS = 12


class Interrupt(BaseException): ...


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": nn.Parameter(torch.randn(3, 4, generator=generator)), "b": nn.Parameter(torch.randn(4, generator=generator))}


def loss_over(values: dict[str, nn.Parameter]) -> loop.LossOf:
    """A regression on random inputs of each step."""

    def loss(step: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(5, 3, generator=generator)
        return ((x @ values["a"] + values["b"] - x.sum(1, keepdim=True)) ** 2).mean()

    return loss


def until(step: int) -> Callable[[loop.Progress], None]:
    def on_step(progress: loop.Progress) -> None:
        if progress.step == step:
            raise Interrupt

    return on_step


def settings(**more: Any) -> loop.Settings:
    return loop.Settings(**{"steps": STEPS, "learning_rate": 0.05, "seed": 3, **more})


def trained(values: dict[str, nn.Parameter], file: checkpoint.StateFile | None = None, stop: int = 0, **more: Any) -> loop.Progress:
    return loop.run(values, loss_over(values), settings(**more), file, until(stop))


def file_in(folder: Path, fingerprint: str = "this", every: int = 100) -> checkpoint.StateFile:
    return checkpoint.StateFile(folder / "deep" / "state.pt", fingerprint, every)


def same(one: dict[str, nn.Parameter], other: dict[str, nn.Parameter]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def nan_loss(values: dict[str, nn.Parameter], step: int) -> Tensor:
    return values["a"].sum() * torch.nan
