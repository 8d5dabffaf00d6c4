"""Whole differences of a fine-tuning, as they are added to a base of half precision."""

from __future__ import annotations

import pytest
import torch
from maskprompt.training.engine.trainable_weights import differences, rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_half_precision_base_would_round_away_survives(dtype: torch.dtype) -> None:
    """400 steps of 2e-6 on weights of usual size, added as ComfyUI adds a LoRA: weight + difference, to the base's precision."""
    generator = torch.Generator().manual_seed(3)
    start = (torch.randn(400, 500, generator=generator) * 0.03).to(dtype)
    step = torch.randn(start.shape, generator=generator) * 1e-5
    now = start.float() + step
    plain = (start.float() + step.half().float()).to(dtype).float() - start.float()
    ours = (start.float() + differences({"a.weight": now}, {"a.weight": start})["a.diff"].float()).to(dtype).float() - start.float()

    def kept(applied: torch.Tensor, size: float) -> float:
        """Which part of the differences of at most this part of a weight's last digit is there on average."""
        last = torch.finfo(dtype).eps * start.float().abs()
        small = (step.abs() < size * last) & (start != 0)
        return float((applied * step.sign())[small].sum() / step.abs()[small].sum())

    assert kept(plain, 0.2) < 0.1
    assert kept(ours, 0.2) == pytest.approx(1, abs=0.1)
    assert float((ours * step).sum() / (step * step).sum()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_gives_one_of_the_two_numbers_beside(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2000, generator=generator) * 10.0 ** torch.randint(-4, 3, (2000,), generator=generator)
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).double()
    known = numbers[numbers.isfinite()].unique()
    above = torch.searchsorted(known, value.double())
    found = torch.stack([rounded(value, dtype, seed) for seed in range(200)]).double()
    below = torch.where(known[above] == value, known[above], known[above - 1])
    assert bool(((found == known[above]) | (found == below)).all())
    gap = (known[above] - below).clamp(min=1e-30)
    assert float(((found.mean(0) - value) / gap).abs().mean()) < 0.05


def test_whole_precision_stays_as_it_is() -> None:
    value = torch.randn(50)
    assert rounded(value, torch.float32) is value
    got = differences({"a.weight": value + 1e-4, "a.bias": value}, {"a.weight": value, "a.bias": value})
    assert torch.equal(got["a.diff"], (value + 1e-4 - value).half())
    assert not got["a.diff_b"].any()
