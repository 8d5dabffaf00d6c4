"""The loop around tiny-edit's steps: learning rate, losses, log, savings, and an end when it is asked for."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import shards, tasks

if TYPE_CHECKING:
    from ..trainer import Log
    from .train import Training


class Losses:
    """Holds the losses since they were last told, by the number of references; on the device, which need not be waited for."""

    def __init__(self) -> None:
        self.held: dict[int, list[Tensor]] = {kind: [] for kind in range(len(tasks.KINDS))}

    def add(self, kind: int, loss: Tensor) -> None:
        """Holds the loss of a step."""
        self.held[kind].append(loss)

    def check(self, step: int) -> None:
        """Raises FloatingPointError if one of them is not finite."""
        for values in self.held.values():
            if values and not torch.stack(values).isfinite().all():
                raise FloatingPointError(f"a loss before step {step} is not finite; the last state is as it was")

    def told(self, step: int) -> str:
        """Gives their means by kind, "-" where there was none, and forgets them."""
        self.check(step)
        means = [f"{torch.stack(values).mean().item():.4f}" if values else "-" for values in self.held.values()]
        self.held = {kind: [] for kind in self.held}
        return " ".join(means)


def rate_of(training: Training, minutes: float, cool: float) -> float:
    """Gives the learning rate: it rises over the optimizer's first 300 steps, and falls to a fiftieth over the last `cool` minutes."""
    rate = training.rate * min(1.0, (training.step + 1 - training.warm_from) / 300)
    left = minutes - training.spent
    return rate * max(0.02, left / cool) if cool and left < cool else rate


def profiled(training: Training, steps: int, minutes: float, cool: float, rows: int = 16) -> str:
    """Makes steps under PyTorch's profiler, and tells what takes the device's time, and what the processor's; to be found in the log."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    begun = time.monotonic()
    with profile(activities=activities) as told:
        for _ in range(steps):
            training.advance(rate_of(training, minutes, cool))
        if on_gpu:
            torch.cuda.synchronize()
    took = time.monotonic() - begun
    averages = told.key_averages()
    tables = [averages.table(f"self_{kind}_time_total", rows) for kind in (["cuda"] if on_gpu else []) + ["cpu"]]
    return "\n".join([f"{steps} steps under the profiler took {took / steps:.3f} s each", *tables])


def run(training: Training, minutes: float, steps: int | None, cool: float, log: Log, save_minutes: float = 5) -> None:
    """Steps until the minutes (of all runs together) or the steps are over, or the process is asked to end, by Ctrl-C too; saves then.

    KeyboardInterrupt after Ctrl-C.
    """
    ending: list[int] = []
    previous = {kind: signal.signal(kind, lambda number, frame: ending.append(number)) for kind in (signal.SIGTERM, signal.SIGINT)}
    begun = time.monotonic() - training.spent * 60
    saved = training.spent
    told = (time.monotonic(), training.step)
    losses = Losses()
    try:
        while not ending and training.spent < minutes and (steps is None or training.step < steps):
            rate = rate_of(training, minutes, cool)
            losses.add(*training.advance(rate))
            training.spent = (time.monotonic() - begun) / 60
            if training.step % 100 == 0:
                means = losses.told(training.step)
                now = time.monotonic()
                pace = (now - told[0]) / (training.step - told[1])
                beside = [f"{value.item():.4f}" if value is not None else "-" for value in (training.placed, training.matched)]
                held = training.bank.shards if training.bank else 0
                log(
                    f"step {training.step} samples {training.samples} minute {training.spent:.1f} size {training.stage().size} "
                    f"loss {means} places {beside[0]} matches {beside[1]} rate {rate:.2e} s/step {pace:.3f} records {held * shards.SHARD}"
                )
                told = (now, training.step)
            if training.spent - saved > save_minutes:
                saved = training.spent
                losses.check(training.step)
                training.save()
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
    losses.check(training.step)
    training.save()
    log(f"stopped at step {training.step}, {training.samples} samples, minute {training.spent:.1f}")
    if signal.SIGINT in ending:
        raise KeyboardInterrupt
