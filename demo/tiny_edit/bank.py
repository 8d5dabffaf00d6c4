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
from .shards import SENTENCES, SHARD, file_of
from .text import Vocabulary
from .transformer import TEXT_LENGTH

WORDLESS = 0.1
"""The part of the samples without words: half of them as an empty prompt, half with all of the words' features zero."""
TARGETS = np.array([task.target for task in tasks.TASKS])
REFERENCES = np.array([(*task.references, 0, 0)[:2] for task in tasks.TASKS])
CELLS = np.array([[place in tasks.cells_of(task) for place in range(records.MASKS)] for task in tasks.TASKS], np.uint8)
"""What tasks paint, show and count, a row for each: a batch is looked up at once."""


@dataclass(frozen=True)
class Batch:
    """Samples of one kind.

    `target` is what is painted [B, C, h, w], `references` of the same shape, `weights` the loss's [B, 1, h, w], `words` rows of the
    vocabulary [B, 24]; the words of `silent` samples [B] are not heard. `places` are those of the tokens of the painted picture, then of
    the references, int8 [B, L, 3].
    """

    target: Tensor
    references: list[Tensor]
    weights: Tensor
    words: Tensor
    silent: Tensor
    places: Tensor


class Bank:
    """Records in fp16 on a device. `fill` takes shards from the folder as they come, up to `capacity` records."""

    def __init__(self, folder: Path, size: int, capacity: int, device: torch.device) -> None:
        cells = size // 8
        self.folder = folder
        self.size = size
        self.device = device
        self.shards = 0
        self.most = (capacity + SHARD - 1) // SHARD
        self.about: list[dict[str, Any]] = []
        self.latents = torch.empty(self.most * SHARD, records.PICTURES, CHANNELS, cells, cells, dtype=torch.half, device=device)
        self.cells = torch.empty(self.most * SHARD, records.MASKS, cells, cells, dtype=torch.uint8, device=device)
        self.places = torch.empty(self.most * SHARD, records.PICTURES, 3, cells // 2, cells // 2, dtype=torch.int8, device=device)
        self.words = np.empty((self.most * SHARD, len(tasks.TASKS), SENTENCES, TEXT_LENGTH), np.int16)
        self.suiting: dict[str, list[int]] = {task.name: [] for task in tasks.TASKS}

    def fill(self, shards: int) -> None:
        """Reads shards from the folder until there are so many; stops early at one that is not there."""
        while self.shards < min(shards, self.most):
            file = file_of(self.folder, self.size, self.shards)
            if not file.is_file():
                return
            shard = torch.load(file, weights_only=True, map_location="cpu")
            if not {"words", "places"} <= shard.keys() or shard["words"].shape[1] != len(tasks.TASKS):
                raise ValueError(f"the shards in {file.parent} are of an earlier version: delete that folder, and they are made anew")
            begin = len(self.about)
            end = begin + len(shard["about"])
            self.latents[begin:end] = shard["latents"].to(self.device)
            bits = np.unpackbits(shard["cells"].numpy(), axis=-1)[..., : self.size // 8]
            self.cells[begin:end] = torch.from_numpy(bits).to(self.device)
            self.places[begin:end] = shard["places"].to(self.device)
            self.words[begin:end] = shard["words"].numpy()
            self.about += shard["about"]
            for number in range(begin, end):
                for task in tasks.TASKS:
                    if task.suits(self.about[number]):
                        self.suiting[task.name].append(number)
            self.shards += 1

    def batch(self, rng: np.random.Generator, kind: int, count: int, vocabulary: Vocabulary) -> Batch:
        """Draws `count` samples of tasks with `kind` references."""
        of_kind = [number for number, task in enumerate(tasks.TASKS) if len(task.references) == kind and self.suiting[task.name]]
        chances = np.array([tasks.TASKS[number].chance for number in of_kind])
        drawn = np.array(of_kind)[rng.choice(len(of_kind), count, p=chances / chances.sum())]
        numbers = np.zeros(count, np.int64)
        for task in of_kind:
            suiting = self.suiting[tasks.TASKS[task].name]
            of_task = np.flatnonzero(drawn == task)
            numbers[of_task] = [suiting[place] for place in rng.integers(len(suiting), size=len(of_task))]
        words = self.words[numbers, drawn, rng.integers(SENTENCES, size=count)].astype(np.int64)
        silent = rng.random(count) < WORDLESS
        words[silent] = vocabulary.rows("")
        index = self._sent(numbers)
        references = [self.latents[index, self._sent(REFERENCES[drawn, place])].float() for place in range(kind)]
        cells = (self.cells[index] * self._sent(CELLS[drawn])[:, :, None, None]).amax(1, keepdim=True).float()
        weights = 0.4 + 3 * F.max_pool2d(cells, 3, 1, 1)
        slots = [TARGETS[drawn], *(REFERENCES[drawn, place] for place in range(kind))]
        found = torch.cat([self.places[index, self._sent(slot)].flatten(2) for slot in slots], 2)
        mute = self._sent(silent & (rng.random(count) < 0.5))
        return Batch(
            self.latents[index, self._sent(TARGETS[drawn])].float(),
            references,
            weights / weights.mean((1, 2, 3), keepdim=True),
            self._sent(words),
            mute,
            found.transpose(1, 2),
        )

    def _sent(self, values: np.ndarray) -> Tensor:
        """Puts the values on the device without waiting for what it does: the next batch is drawn while a GPU learns from this one."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)
