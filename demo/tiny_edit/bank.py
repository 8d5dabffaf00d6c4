"""The records of one size on the training's device, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import records, tasks
from .latents import CHANNELS
from .text import Vocabulary

WORDLESS = 0.1
"""The part of the samples without words: half of them as an empty prompt, half with all of the words' features zero."""


@dataclass(frozen=True)
class Batch:
    """Samples of one kind.

    `target` is what is painted [B, C, h, w], `references` of the same shape, `weights` the loss's [B, 1, h, w], `words` rows of the
    vocabulary [B, 24]; the words of `silent` samples [B] are not heard.
    """

    target: Tensor
    references: list[Tensor]
    weights: Tensor
    words: Tensor
    silent: Tensor


class Bank:
    """Records in fp16 on a device. `fill` takes shards from the folder as they come, up to `capacity` records."""

    def __init__(self, folder: Path, size: int, capacity: int, device: torch.device) -> None:
        cells = size // 8
        self.folder = folder
        self.size = size
        self.device = device
        self.shards = 0
        self.most = (capacity + records.SHARD - 1) // records.SHARD
        self.about: list[dict[str, Any]] = []
        self.latents = torch.empty(self.most * records.SHARD, records.PICTURES, CHANNELS, cells, cells, dtype=torch.half, device=device)
        self.cells = torch.empty(self.most * records.SHARD, 4, cells, cells, dtype=torch.uint8, device=device)
        self.suiting: dict[str, list[int]] = {task.name: [] for task in tasks.TASKS}

    def fill(self, shards: int) -> None:
        """Reads shards from the folder until there are so many; stops early at one that is not there."""
        while self.shards < min(shards, self.most):
            file = records.shard_file(self.folder, self.size, self.shards)
            if not file.is_file():
                return
            shard = torch.load(file, weights_only=True, map_location="cpu")
            begin = len(self.about)
            end = begin + len(shard["about"])
            self.latents[begin:end] = shard["latents"].to(self.device)
            bits = np.unpackbits(shard["cells"].numpy(), axis=-1)[..., : self.size // 8]
            self.cells[begin:end] = torch.from_numpy(bits).to(self.device)
            self.about += shard["about"]
            for number in range(begin, end):
                for task in tasks.TASKS:
                    if task.suits(self.about[number]):
                        self.suiting[task.name].append(number)
            self.shards += 1

    def batch(self, rng: np.random.Generator, kind: int, count: int, vocabulary: Vocabulary) -> Batch:
        """Draws `count` samples of tasks with `kind` references."""
        choices = [task for task in tasks.TASKS if len(task.references) == kind and self.suiting[task.name]]
        chances = np.array([task.chance for task in choices])
        drawn = [choices[index] for index in rng.choice(len(choices), count, p=chances / chances.sum())]
        numbers = [self.suiting[task.name][rng.integers(len(self.suiting[task.name]))] for task in drawn]
        rows = []
        silent = rng.random(count) < WORDLESS
        for index, (task, number) in enumerate(zip(drawn, numbers, strict=True)):
            sentence = tasks.sentence(rng, task, self.about[number])
            rows.append(vocabulary.rows("" if silent[index] else sentence))
        index = self._sent(np.array(numbers))
        targets = self._sent(np.array([task.target for task in drawn]))
        references = []
        for place in range(kind):
            slots = self._sent(np.array([task.references[place] for task in drawn]))
            references.append(self.latents[index, slots].float())
        counted = np.zeros((count, 4), np.uint8)
        for sample, task in enumerate(drawn):
            for place in tasks.cells_of(task):
                counted[sample, place] = 1
        cells = (self.cells[index] * self._sent(counted)[:, :, None, None]).amax(1, keepdim=True).float()
        weights = 0.4 + 3 * F.max_pool2d(cells, 3, 1, 1)
        mute = self._sent(silent & (rng.random(count) < 0.5))
        return Batch(
            self.latents[index, targets].float(),
            references,
            weights / weights.mean((1, 2, 3), keepdim=True),
            self._sent(np.array(rows)),
            mute,
        )

    def _sent(self, values: np.ndarray) -> Tensor:
        """The values on the device, without waiting for what it does: the next batch is drawn while a GPU learns from this one."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)
