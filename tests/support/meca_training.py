"""Models, samples and dense losses of MECA's training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from maskprompt.models.ip_adapter.network import MecaNetwork
from maskprompt.training.meca.examples import Examples
from maskprompt.training.meca.options import Options
from torch import Tensor

from .learners import conditioning, unet_of

FEATURES = 48
OPTIONS = Options(steps=6, rate=1e-3, batch=2, size=64, tokens=4)


@pytest.fixture(scope="module")
def model() -> Any:
    """Few blocks; 9 channels, as the tiny model has."""
    return unet_of(32, small=True)


def examples(count: int = 3, side: tuple[int, int] = (8, 8), seed: int = 0, masked: Sequence[bool] = (True, False, False)) -> Examples:
    """Random samples: the first with the upper left quarter as region, the last without an image, each with its own number of tokens."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.ones(count, side[0] * 8, side[1] * 8)
    for row in range(count):
        if masked[row % len(masked)]:
            regions[row] = 0
            regions[row, : side[0] * 4, : side[1] * 4] = 1
    features = [torch.randn(5 + row, FEATURES, generator=generator) for row in range(count)]
    features[-1] = torch.zeros(1, FEATURES)
    return Examples(
        torch.randn(count, 4, *side, generator=generator), features, regions,
        torch.tensor([masked[row % len(masked)] for row in range(count)]), [conditioning(seed + row) for row in range(count)],
    )  # fmt: skip


def source(seed: int = 0) -> Callable[[int], Examples]:
    """Four samples in each chunk."""
    return lambda chunk: examples(4, seed=seed * 1000 + chunk)


def moved(network: MecaNetwork) -> MecaNetwork:
    """As after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.3 * value.std().nan_to_num() * torch.randn(value.shape, generator=generator)
    return network


def noise_of(pictures: Examples) -> Tensor:
    return torch.randn(pictures.latents.shape, generator=torch.Generator().manual_seed(3))
