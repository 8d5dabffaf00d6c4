"""Records drawn, encoded and put into words once, in shards: files of 64 records, from which every step of the training is read.

python -m demo.tiny_edit.shards --size 128 --count 2048
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..trainer import device_of, learns_in_bfloat16
from . import folders, records, tasks
from .latents import Latents
from .records import Record
from .text import Vocabulary
from .transformer import TEXT_LENGTH

SHARD = 64
SENTENCES = 8
"""How many sentences a record has for each task."""


@dataclass(frozen=True)
class Drawn:
    """Holds a record, its half if that is wanted too, and its sentences as rows of the vocabulary, int16 [tasks, 8, 24]."""

    record: Record
    half: Record | None
    words: np.ndarray


def file_of(folder: Path, size: int, number: int) -> Path:
    """Names the file of a shard."""
    return folder / folders.SHARDS / f"{size}-{number:05d}.pt"


def sentences_for(rng: np.random.Generator, about: dict[str, Any], vocabulary: Vocabulary) -> np.ndarray:
    """Says sentences of a record for every task that it suits, as rows of the vocabulary, int16 [tasks, 8, 24]; zeros for other tasks."""
    words = np.zeros((len(tasks.TASKS), SENTENCES, TEXT_LENGTH), np.int16)
    for number, task in enumerate(tasks.TASKS):
        if task.suits(about):
            words[number] = [vocabulary.rows(tasks.sentence(rng, task, about)) for _ in range(SENTENCES)]
    return words


_VOCABULARY: dict[Path, Vocabulary] = {}


def numbered(folder: Path, size: int, seed: int, halves: bool, number: int) -> Drawn:
    """Draws record `number` of a size and seed. The vocabulary is read once in each process."""
    if folder not in _VOCABULARY:
        _VOCABULARY[folder] = Vocabulary.load(folder)
    one = records.numbered(folder, size, seed, number)
    words = sentences_for(np.random.default_rng([seed, size, number, 1]), one.about, _VOCABULARY[folder])
    return Drawn(one, records.halved(one) if halves else None, words)


def drawn(folder: Path, size: int, seed: int, halves: bool, shards: Iterable[int], workers: int) -> Generator[list[Drawn], None, None]:
    """Draws the records of these shards with so many processes, two shards ahead (0: with this one, as they are asked for)."""
    draw = partial(numbered, folder, size, seed, halves)
    if not workers:
        for shard in shards:
            yield [draw(number) for number in range(shard * SHARD, (shard + 1) * SHARD)]
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[list[Future[Drawn]]] = deque()
        try:
            for shard in shards:
                waiting.append([pool.submit(draw, number) for number in range(shard * SHARD, (shard + 1) * SHARD)])
                if len(waiting) > 2:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


def encode(latents: Latents, found: list[Record], words: list[np.ndarray]) -> dict[str, Any]:
    """Encodes a shard: latents fp16 [N, 8, C, S/8, S/8], cells as bits, places, what tasks need, and words int16 [N, tasks, 8, 24]."""
    kept: list[Tensor] = []
    for one in found:
        pictures = torch.from_numpy(one.pictures).to(latents.device).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=learns_in_bfloat16(latents.device)):
            kept.append(latents.encode(pictures).half())
    return {
        "latents": torch.stack(kept).cpu(),
        "cells": torch.from_numpy(np.packbits(np.stack([one.cells for one in found]), axis=-1)),
        "places": torch.from_numpy(np.stack([one.places for one in found])),
        "about": [one.about for one in found],
        "words": torch.from_numpy(np.stack(words)),
    }


def make(
    folder: Path, size: int, count: int, seed: int = 0, workers: int = 0, device: torch.device | None = None, halves: bool = False
) -> Iterator[int]:
    """Makes the shards that are missing of `count` records; yields how many shards there are after each.

    With `halves` each shard is also stored at half of the size, from the same pictures.
    """
    (folder / folders.SHARDS).mkdir(parents=True, exist_ok=True)
    latents = Latents.load(folder, device or device_of())
    numbers = range((count + SHARD - 1) // SHARD)
    sizes = (size, size // 2) if halves else (size,)
    missing = [number for number in numbers if not all(file_of(folder, one, number).is_file() for one in sizes)]
    coming = drawn(folder, size, seed, halves, missing, workers)
    try:
        for number in numbers:
            if number in missing:
                found = next(coming)
                words = [one.words for one in found]
                smaller = [one.half for one in found if one.half is not None]
                if smaller:
                    folders.save(encode(latents, smaller, words), file_of(folder, size // 2, number))
                folders.save(encode(latents, [one.record for one in found], words), file_of(folder, size, number))
            yield number + 1
    finally:
        coming.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders.arguments(parser)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, a multiple of 16")
    parser.add_argument("--count", type=int, default=2048, help="records")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw (0: this one)")
    parser.add_argument("--halves", action="store_true", help="store the same pictures at half of the size too")
    options = parser.parse_args()
    folders.begin(options)
    for shards in make(options.folder, options.size, options.count, workers=options.workers, halves=options.halves):
        print(f"{shards * SHARD} records of {options.size} pixels", flush=True)


if __name__ == "__main__":
    main()
