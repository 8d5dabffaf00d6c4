"""The training loop: optimizer, moving average, resuming, and what happens after each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .checkpoint import Learning, StateFile

RECENT = 20

LossOf = Callable[[int, torch.Generator], Tensor]
"""The loss of a step: its number from 0, and the random numbers to use."""


@dataclass(frozen=True)
class Settings:
    """AdamW at a constant rate. `clip` is the largest norm of all gradients together (0: any), `average` the decay of a moving
    average of the weights (0: none). `rates` are other rates for the parameters whose names begin so. A step's gradient is the mean of
    `accumulate` losses, each with random numbers of its own."""

    steps: int
    learning_rate: float
    seed: int = 0
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    average: float = 0.0
    rates: tuple[tuple[str, float], ...] = ()
    accumulate: int = 1

    def rate(self, name: str) -> float:
        """Of a parameter."""
        return next((rate for start, rate in self.rates if name.startswith(start)), self.learning_rate)


@dataclass
class Progress:
    """How far a training is: steps done, and the loss of each."""

    step: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def recent(self) -> float:
        """The mean loss of the last `RECENT` steps, which is what is shown: a single step's says little."""
        return sum(self.losses[-RECENT:]) / len(self.losses[-RECENT:])


def random_numbers(seed: int, step: int, process: int = 0) -> torch.Generator:
    """The random numbers of one step, the same whether or not the training was interrupted before it."""
    further, lane = divmod(process, 97)  # of more than 97 parts none is another's at the step after
    # PyTorch's generator on the CPU takes 32 bits of a seed. The golden ratio's are as far as can be from small numbers and each other.
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 97 + lane + further * 0x9E3779B1) % 2**63)


def run(
    parameters: dict[str, nn.Parameter],
    loss_of: LossOf,
    settings: Settings,
    state: StateFile | None = None,
    on_step: Callable[[Progress], None] | None = None,
    process: int = 0,
    share: Callable[[Sequence[Tensor]], None] | None = None,
    fetch: Callable[[int], None] | None = None,
) -> Progress:
    """Trains the parameters in place until `settings.steps`, from the state file if it holds this training's state.

    `on_step` is called after each step and may raise to interrupt: the state is written, and what it raised goes on. An exception while
    the weights are being changed writes no state. `share` replaces loss and gradients by their mean over several processes, of which
    this is number `process`; only number 0 writes. `fetch` is asked before each step, by its number, for what its loss needs of other
    models.
    With an average, the parameters hold it at the end. RuntimeError where the loss or a gradient is not a number, before it can
    spoil the weights.
    """
    values = list(parameters.values())
    average = {name: value.detach().clone() for name, value in parameters.items()} if settings.average else {}
    learning = Learning(parameters, average, _optimizer(parameters, settings), 0, [])
    if state is not None:
        state.resume(learning, settings.steps)
    writer = state if process == 0 else None
    between_steps = True
    try:
        while learning.step < settings.steps:
            if fetch is not None:
                fetch(learning.step)
            learning.optimizer.zero_grad(set_to_none=True)
            loss = _backward(loss_of, learning.step, settings, process)
            if share is not None:
                share([loss, *(value.grad for value in values if value.grad is not None)])
            # After sharing: a process whose loss is no number then stops all of them, and none waits for it.
            norm = nn.utils.clip_grad_norm_(values, settings.clip or math.inf)
            if not (bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))):
                raise RuntimeError(_not_a_number(learning.step, settings.learning_rate))
            between_steps = False
            learning.optimizer.step()
            _follow(average, parameters, settings.average, learning.step)
            learning.losses.append(float(loss))
            learning.step += 1
            between_steps = True
            if writer is not None and _due(writer, learning.step, settings.steps):
                writer.write(learning, finished=learning.step >= settings.steps)
            if on_step is not None:
                on_step(Progress(learning.step, learning.losses))
    except BaseException:
        if writer is not None and learning.step > 0 and between_steps:
            writer.write(learning, finished=learning.step >= settings.steps)
        raise
    finally:
        for value in values:
            value.grad = None
    with torch.no_grad():
        for name, value in average.items():
            parameters[name].copy_(value)
    return Progress(learning.step, learning.losses)


def _backward(loss_of: LossOf, step: int, settings: Settings, process: int) -> Tensor:
    """Adds a step's gradient, part by part; the mean loss. Parts are numbered through all processes: two of one part are as one of two."""
    whole = torch.zeros(())
    parts = settings.accumulate
    for part in range(parts):
        loss = loss_of(step, random_numbers(settings.seed, step, process * parts + part)) / parts
        loss.backward()
        whole = whole.to(loss) + loss.detach()
    return whole


def _due(state: StateFile, step: int, steps: int) -> bool:
    return step % state.every == 0 if step < steps else state.last


def _optimizer(parameters: dict[str, nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """AdamW, in one kernel on CUDA: the default there holds a further copy of all weights while it works."""
    fused = True if all(value.is_cuda for value in parameters.values()) else None
    groups: dict[float, list[nn.Parameter]] = {}
    for name, value in parameters.items():
        groups.setdefault(settings.rate(name), []).append(value)
    parts = [{"params": values, "lr": rate} for rate, values in groups.items()]
    return torch.optim.AdamW(parts, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay, fused=fused)


def _follow(average: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float, step: int) -> None:
    """The average takes a part of the new weights; a larger one at the beginning, which it then soon forgets."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, value in average.items():
        value.lerp_(parameters[name].detach(), weight)


def _not_a_number(step: int, rate: float) -> str:
    if step == 0:
        return "the loss is not a number (NaN) before anything was learned: the model's half precision overflows. Load it in another one."
    return (
        f"the loss is not a number (NaN) at step {step + 1}: the learning rate ({rate:g}) is too high for this model. Use a tenth of it. "
        "Nothing was learned from this step."
    )
