"""MCGM's losses against its equations 1 to 4, written out with loops over plain numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.training.mcgm import equations
from torch import Tensor

SEED = st.integers(0, 10**6)
SIDE = st.integers(1, 6)


def random(*shape: int, seed: int) -> Tensor:
    """Numbers in 0..1, float64."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def equation_1(predicted: Tensor, noise: Tensor, mask: Tensor, background: float = 0.0) -> float:
    """Of prediction and noise, both times the mask; the mean over every element, as in Break-A-Scene's code."""
    total = 0.0
    for picture in range(noise.shape[0]):
        for channel in range(noise.shape[1]):
            for y in range(noise.shape[2]):
                for x in range(noise.shape[3]):
                    inside = 1.0 if float(mask[picture, 0, y, x]) >= 0.5 else 0.0
                    place = picture, channel, y, x
                    total += (float(noise[place]) * inside - float(predicted[place]) * inside) ** 2
                    total += background * (1 - inside) * (float(noise[place]) - float(predicted[place])) ** 2
    return total / noise.numel()


def equation_2(maps: list[list[Tensor]], masks: list[list[Tensor]]) -> float:
    """Of `maps[picture][subject]` [h, w]: each over its own largest value, against its mask."""
    total = 0.0
    for own, wanted in zip(maps, masks, strict=True):
        for found, mask in zip(own, wanted, strict=True):
            largest = max(float(value) for row in found for value in row)
            errors = [(float(found[y, x]) / largest - float(mask[y, x])) ** 2 for y in range(found.shape[0]) for x in range(found.shape[1])]
            total += sum(errors) / len(errors)
    return total / len(maps)


def parts(maps: Tensor) -> list[list[Tensor]]:
    """[B, n, h, w] by pictures and subjects."""
    return [list(picture) for picture in maps]


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), channels=st.integers(1, 4), height=SIDE, width=SIDE, background=st.sampled_from([0.0, 0.3, 1.0]), seed=SEED)
def test_equation_1_for_any_size(batch: int, channels: int, height: int, width: int, background: float, seed: int) -> None:
    predicted, noise = (random(batch, channels, height, width, seed=seed + part) * 4 - 2 for part in range(2))
    mask = random(batch, 1, height, width, seed=seed + 2)
    found = float(equations.masked(predicted - noise, mask, background))
    assert found == pytest.approx(equation_1(predicted, noise, mask, background), rel=1e-12)


def test_the_mask_counts_from_a_half() -> None:
    """A mask's soft edge, from bringing it to the latent's size, is inside or outside as a whole."""
    mask = torch.tensor([0.0, 0.499, 0.5, 0.7, 1.0])[None, None, None]
    error = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])[None, None, None].sqrt()
    assert float(equations.masked(error, mask)) == pytest.approx(11100 / 5)
    assert float(equations.masked(error, mask, 0.5)) == pytest.approx((11100 + 5.5) / 5)


def test_without_a_background_equation_1_and_with_all_of_it_the_plain_error() -> None:
    error = random(2, 4, 5, 7, seed=1) - 0.5
    mask = random(2, 1, 5, 7, seed=2).round()
    assert torch.equal(equations.masked(error, mask), equations.masked(error, mask, 0.0))
    assert torch.equal(equations.masked(error, mask, 0.0), equations.masked(error * mask, torch.ones_like(mask)))
    for marks in (mask, torch.zeros_like(mask), torch.ones_like(mask)):
        assert torch.equal(equations.masked(error, marks, 1.0), (error**2).mean())
    assert float(equations.masked(error, torch.zeros_like(mask))) == 0.0
    assert float(equations.masked(torch.zeros_like(error), mask, 0.3)) == 0.0


@pytest.mark.parametrize("background", [0.0, 0.3, 1.0])
def test_the_gradient_of_equation_1(background: float) -> None:
    """2 / N times the error where the mask is; as much less outside as the background counts less."""
    error = (random(2, 4, 5, 7, seed=1) - 0.5).requires_grad_(True)
    mask = random(2, 1, 5, 7, seed=2)
    equations.masked(error, mask, background).backward()
    assert error.grad is not None
    weights = (background + (1 - background) * (mask >= 0.5).double()).expand_as(error)
    torch.testing.assert_close(error.grad, 2 * error.detach() * weights / error.numel(), atol=1e-15, rtol=1e-12)
    assert background or not error.grad[(mask < 0.5).expand_as(error)].any()


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), count=st.integers(1, 3), height=SIDE, width=SIDE, scale=st.sampled_from([1e-3, 1.0, 50.0]), seed=SEED)
def test_equations_2_and_3_for_any_size(batch: int, count: int, height: int, width: int, scale: float, seed: int) -> None:
    """Of handles alone, and of handles and then mask tokens, which learn from the same masks."""
    maps = scale * (random(batch, 2 * count, height, width, seed=seed) + 1e-3)
    masks = random(batch, count, height, width, seed=seed + 1)
    own, tokens = (equation_2(parts(some), parts(masks)) for some in (maps[:, :count], maps[:, count:]))
    assert float(equations.of_maps(maps[:, :count], masks)) == pytest.approx(own, rel=1e-9)
    assert float(equations.attention(maps[:, :count], masks, 0.3)) == pytest.approx(own, rel=1e-9)
    for weight in (0.0, 0.3, 2.0):
        assert float(equations.attention(maps, masks, weight)) == pytest.approx(own + weight * tokens, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 2), count=st.integers(1, 3), height=SIDE, width=SIDE, seed=SEED)
def test_equation_4_of_the_three(batch: int, count: int, height: int, width: int, seed: int) -> None:
    """With the paper's weights, from the numbers that a training step has."""
    predicted, noise = (random(batch, 4, height, width, seed=seed + part) for part in range(2))
    maps = random(batch, 2 * count, height, width, seed=seed + 2) + 1e-3
    masks = random(batch, count, height, width, seed=seed + 3)
    union = masks.amax(1, keepdim=True)
    found = equations.total(equations.masked(predicted - noise, union), equations.attention(maps, masks, 0.3), 0.01)
    first, second = (equation_2(parts(some), parts(masks)) for some in (maps[:, :count], maps[:, count:]))
    assert float(found) == pytest.approx(equation_1(predicted, noise, union) + 0.01 * (first + 0.3 * second), rel=1e-9)


def test_what_a_map_is_compared_with() -> None:
    """Its own mask, not another's; the map's shape, not its size; nothing is lost where it is right."""
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    masks[0, 0, :2] = 1
    masks[0, 1, 3] = 1
    assert float(equations.of_maps(0.013 * masks, masks)) == 0.0
    assert float(equations.of_maps(0.013 * masks.flip(1), masks)) == pytest.approx(2 * 12 / 16)
    assert float(equations.attention(torch.cat([masks, masks.flip(1)], 1), masks, 0.3)) == pytest.approx(0.3 * 2 * 12 / 16)
    maps = random(2, 3, 4, 5, seed=4)
    both = [equations.of_maps(factor * maps, random(2, 3, 4, 5, seed=5)) for factor in (1.0, 0.01)]
    torch.testing.assert_close(*both, atol=0, rtol=1e-12)


def test_empty_maps_and_masks_are_numbers() -> None:
    """Attention that has gone to nothing, and a subject too small for the layer's grid."""
    nothing = torch.zeros(2, 3, 4, 5)
    some = random(2, 3, 4, 5, seed=6).float()
    cases = [(nothing, some), (some, nothing), (nothing, nothing), (torch.full_like(nothing, 1e-38), some), (1e4 * some, some)]
    for maps, masks in cases:
        maps = maps.clone().requires_grad_(True)
        loss = equations.of_maps(maps, masks)
        loss.backward()
        assert maps.grad is not None
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(maps.grad).all())
    assert float(equations.of_maps(nothing, nothing)) == 0.0
    assert float(equations.of_maps(nothing, some)) == pytest.approx(float((some**2).mean((0, 2, 3)).sum()))
    one_empty = torch.cat([nothing[:, :1], some[:, 1:]], 1)  # an empty map does not spoil its neighbours'
    wanted = float((some[:, :1] ** 2).mean()) + float(equations.of_maps(some[:, 1:], some[:, 1:]))
    assert float(equations.of_maps(one_empty, some)) == pytest.approx(wanted, rel=1e-5)


def test_the_gradient_of_the_maps_is_the_slope() -> None:
    """Against small steps in float64; the largest value takes part in it as what the others are measured by."""
    maps = random(2, 4, 3, 3, seed=7).requires_grad_(True)
    masks = random(2, 2, 3, 3, seed=8)
    assert torch.autograd.gradcheck(lambda some: equations.attention(some, masks, 0.3), (maps,))
    equations.attention(maps, masks, 0.0).backward()
    assert maps.grad is not None
    assert bool(maps.grad[:, :2].flatten(2).any(2).all())
    assert not maps.grad[:, 2:].any()
    # A map that grows as a whole stays the same shape.
    assert float((maps.grad * maps.detach()).sum((2, 3)).abs().max()) < 1e-12


def test_the_gradient_of_the_sum_is_both() -> None:
    one, other = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    loss = equations.total(one, other, 0.01)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2.03)
    assert (float(one.grad or 0), float(other.grad or 0)) == (1.0, pytest.approx(0.01))
