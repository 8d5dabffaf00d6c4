"""What bends, blurs and colours the judge's renders: pictures and the maps of whose pixels they are move alike, and nothing moves at 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from demo.tiny_edit import warps

SIZE = 64


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def blocks(count: int) -> torch.Tensor:
    """Maps of two owners: a block on the left, one on the right."""
    owners = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8)
    owners[:, 16:48, 8:28] = 1
    owners[:, 20:40, 36:60] = 2
    return owners


def test_at_no_strength_nothing_is_bent_or_coloured() -> None:
    pictures, owners = noise(2), blocks(2)
    bent, whose = warps.bent(pictures, owners, torch.zeros(2), torch.Generator().manual_seed(1))
    assert torch.allclose(bent, pictures, atol=1e-4)
    assert torch.equal(whose, owners)
    assert torch.allclose(warps.coloured(pictures, torch.zeros(2), torch.Generator().manual_seed(1)), pictures, atol=1e-5)
    assert torch.equal(warps.blurred(pictures, 0.1), pictures)


def test_a_picture_and_its_owners_are_bent_alike() -> None:
    """A picture in which each owner has a colour of its own is, bent, the picture of the bent map, but for the edges between them."""
    owners = blocks(4)
    pictures = (owners[:, None] / 2).expand(4, 3, SIZE, SIZE).contiguous()
    bent, whose = warps.bent(pictures, owners, torch.ones(4), torch.Generator().manual_seed(2))
    assert (whose != owners).float().mean() > 0.02
    same = ((bent[:, 0] * 2 - whose.float()).abs() < 0.01).float().mean()
    assert same > 0.9


def test_each_picture_is_bent_by_its_own_strength() -> None:
    pictures, owners = noise(2, 3), blocks(2)
    bent, _ = warps.bent(pictures, owners, torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(3))
    assert torch.allclose(bent[0], pictures[0], atol=1e-4)
    assert (bent[1] - pictures[1]).abs().mean() > 0.1


@pytest.mark.parametrize("radius", [0.8, 2.0])
def test_the_blur_is_a_gaussian(radius: float) -> None:
    pictures = noise(1, 4)
    wanted = gaussian_filter(pictures[0].numpy(), (0, radius, radius), mode="nearest", truncate=round(2.5 * radius) / radius)
    assert np.allclose(warps.blurred(pictures, radius)[0].numpy(), wanted, atol=2e-3)


def test_colours_change_by_a_third_at_most() -> None:
    pictures = noise(8, 5) * 0.4 + 0.3
    changed = warps.coloured(pictures, torch.ones(8), torch.Generator().manual_seed(5))
    assert 0.01 < (changed - pictures).abs().mean() < 0.25
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_boxes_are_those_of_the_pixels() -> None:
    owners = blocks(1)
    boxes, pixels = warps.boxes_of(owners, 3)
    assert torch.allclose(boxes[0, 0], torch.tensor([8, 16, 20, 32]) / SIZE)
    assert torch.allclose(boxes[0, 1], torch.tensor([36, 20, 24, 20]) / SIZE)
    assert pixels[0].tolist() == [640, 480, 0]
