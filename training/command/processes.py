"""Several processes that train one model together, each on a device of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

BUCKET = 2**25
"""Gradients are averaged in messages of about this many numbers: few messages, and no second copy of a whole model's gradients."""
PATIENCE = timedelta(minutes=30)
"""How long processes wait for the first one, which writes the state and paints previews."""


class UnreadyError(ValueError):
    """Some process cannot train; every one of them knows it."""


class Processes:
    """This process (`number` of `count`) among those that a launcher started, each on a device of its own; 0 of 1 without a launcher."""

    def __init__(self, cpu: bool) -> None:
        self.count, self.number = (int(os.environ.get(name, usual)) for name, usual in (("WORLD_SIZE", 1), ("RANK", 0)))
        self.ready_all = False
        self.state: Any = None
        if self.count > 1:
            self._join(cpu)

    def _join(self, cpu: bool) -> None:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ValueError(f"{self.count} processes were started, which takes accelerate: pip install accelerate") from error
        if not cpu and torch.cuda.is_available():
            here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            devices = torch.cuda.device_count()
            if here > devices:
                raise ValueError(f"{here} processes were started on a machine with {devices} GPU(s): --num_processes {devices} would do.")
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        self.state = PartialState(cpu=cpu, timeout=PATIENCE)

    @property
    def first(self) -> bool:
        return self.number == 0

    def ready(self, start: str = "", problem: str = "") -> None:
        """Waits until all are ready to train. `UnreadyError` in every process if one has a problem, or if they would not `start` alike."""
        if self.state is None or self.ready_all:
            return
        starts = self.told(start, problem)
        self.ready_all = True
        if len(set(starts)) > 1:
            raise UnreadyError(
                f"the processes would start differently ({'; '.join(starts)}): give all of them the same files, and keep the state file "
                "on a disk that all machines see."
            )

    def told(self, word: str, problem: str = "") -> list[str]:
        """What every process says, in their order, when all have said something. `UnreadyError` in every process if one has a problem."""
        if self.state is None:
            return [word]
        from accelerate.utils import gather_object

        words, problems = zip(*gather_object([(word, problem)]), strict=True)
        if any(problems):
            self.ready_all = True
            raise UnreadyError("\n".join(dict.fromkeys(filter(None, problems))))
        return list(words)

    def highest(self, number: int) -> int:
        """The highest of all processes' numbers."""
        return number if self.state is None else int(self._reduced(torch.tensor([number], device=self.state.device), "max"))

    def share(self, gradients: Sequence[Tensor]) -> None:
        """Replaces gradients by their mean over all processes."""
        for dtype in {gradient.dtype: None for gradient in gradients}:
            bucket: list[Tensor] = []
            for gradient in (one for one in gradients if one.dtype == dtype):
                if bucket and sum(one.numel() for one in bucket) + gradient.numel() > BUCKET:
                    self._share(bucket)
                    bucket = []
                bucket.append(gradient)
            self._share(bucket)

    def _share(self, bucket: list[Tensor]) -> None:
        mean = self._reduced(torch.cat([one.flatten() for one in bucket]), "mean")
        for one, part in zip(bucket, mean.split([one.numel() for one in bucket]), strict=True):
            one.copy_(part.view_as(one))

    def _reduced(self, tensor: Tensor, how: str) -> Tensor:
        from accelerate.utils import reduce

        result: Any = reduce(tensor, how)
        return result

    def leave(self) -> None:
        """Parts in peace: all have come to the end."""
        if self.state is not None:
            self.state.destroy_process_group()


def cpu_only() -> bool:
    """Whether there is nothing but the processor, or `accelerate launch --cpu` asks for it."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return True
    known = getattr(torch, "accelerator", None)  # not in older versions of PyTorch
    return not (known.is_available() if known else torch.cuda.is_available() or torch.backends.mps.is_available())
