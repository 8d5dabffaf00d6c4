"""Masked attention against the paper's formula written densely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.masked_attention import MaskedCrossAttention, MaskedSelfAttention

from ...support.attention import call_of, dense, plain


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    height = draw(st.integers(1, 9))
    width = draw(st.integers(1, 11))
    heads = draw(st.integers(1, 3))
    images = draw(st.integers(1, 3))
    masks = draw(st.integers(1, 3))
    return {
        "height": height, "width": width, "heads": heads, "images": images, "masks": masks, "batch": images * draw(st.integers(1, 2)),
        "density": draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])), "plain": draw(st.booleans()), "seed": draw(st.integers(0, 2**30)),
    }  # fmt: skip


def tensors(case: dict[str, Any], keys: int | None) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """q, k, v; the masks; and what is inside, bool [B, N]."""
    torch.manual_seed(case["seed"])
    tokens = case["height"] * case["width"]
    width = 4 * case["heads"]
    qkv = [torch.randn(case["batch"], tokens if i == 0 or keys is None else keys, width) for i in range(3)]
    masks = (torch.rand(case["masks"], case["height"], case["width"]) < case["density"]).float()
    inside = torch.stack([masks[(row % case["images"]) % case["masks"]].flatten() > 0.5 for row in range(case["batch"])])
    return qkv, masks, inside


@given(case=cases(), keys=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_cross_attention_is_equation_2(case: dict[str, Any], keys: int) -> None:
    (q, k, v), masks, inside = tensors(case, keys)
    call = call_of("cross", case["height"], case["width"], case["heads"], case["batch"], case["images"], case["plain"])
    result = MaskedCrossAttention(RegionMask(masks)).attend(q, k, v, call, plain(case["heads"]))
    wanted = dense(q, k, v, case["heads"], inside[:, :, None].float().expand(-1, -1, keys))
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


@given(case=cases(), mode=st.sampled_from(["paper", "renormalised"]))
@settings(max_examples=100, deadline=None)
def test_self_attention_is_equation_2(case: dict[str, Any], mode: Any) -> None:
    (q, k, v), masks, inside = tensors(case, None)
    call = call_of("self", case["height"], case["width"], case["heads"], case["batch"], case["images"], case["plain"])
    result = MaskedSelfAttention(RegionMask(masks), mode).attend(q, k, v, call, plain(case["heads"]))
    allowed = (inside[:, :, None] == inside[:, None, :]).float()
    wanted = dense(q, k, v, case["heads"], allowed, renormalise=mode == "renormalised")
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["paper", "renormalised"])
def test_nothing_quadratic_is_asked_for(mode: Any) -> None:
    """The attention beneath is never given a mask, and its queries and keys together are no more than the plain ones."""
    height = 8
    width = 8
    seen = []

    def inner(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((q.shape[1], k.shape[1]))
        return torch.zeros_like(q)

    masks = torch.zeros(1, height, width)
    masks[:, :4] = 1
    q = torch.randn(2, height * width, 8)
    MaskedSelfAttention(RegionMask(masks), mode).attend(q, q, q, call_of("self", height, width, 2, 2, 1), inner)
    pairs = sum(queries * keys for queries, keys in seen)
    assert pairs == 64 * 64 if mode == "paper" else pairs == 2 * 32 * 32


@pytest.mark.parametrize("mode", ["paper", "renormalised"])
def test_another_packs_attention_gets_all_tokens(mode: Any) -> None:
    seen = []

    def inner(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((q.shape[1], k.shape[1], v.shape[1]))
        return q

    masks = torch.zeros(1, 4, 4)
    masks[:, :2] = 1
    q = torch.randn(1, 16, 8)
    MaskedSelfAttention(RegionMask(masks), mode).attend(q, q, q, call_of("self", 4, 4, 2, 1, 1, is_plain=False), inner)
    assert set(seen) == {(16, 16, 16)}


def test_a_full_mask_is_plain_attention_to_the_bit() -> None:
    q, k, v = (torch.randn(2, 20, 8) for _ in range(3))
    call = call_of("self", 4, 5, 2, 2, 1)
    full = RegionMask(torch.ones(1, 4, 5))
    for patch in (MaskedCrossAttention(full), MaskedSelfAttention(full), MaskedSelfAttention(full, "renormalised")):
        assert torch.equal(patch.attend(q, k, v, call, plain(2)), plain(2)(q, k, v))


def test_rows_of_another_pack_need_one_mask() -> None:
    """Attention-couple packs run more rows than the batch has."""
    q = torch.randn(4, 16, 8)
    one = torch.zeros(1, 4, 4)
    two = torch.zeros(2, 4, 4)
    one[:, :2] = 1
    two[0, :2] = 1
    two[1, 2:] = 1
    call = call_of("cross", 4, 4, 2, 2, 2)
    assert MaskedCrossAttention(RegionMask(one)).attend(q, q, q, call, plain(2)).shape == q.shape
    with pytest.raises(RuntimeError, match="one mask for the whole batch"):
        MaskedCrossAttention(RegionMask(two)).attend(q, q, q, call, plain(2))


@pytest.mark.parametrize("plainly", [True, False])
@pytest.mark.parametrize("mode", ["paper", "renormalised"])
def test_keys_of_a_reference_behind_the_pictures_own_are_seen_by_both_sides(mode: Any, plainly: bool) -> None:
    """As reference-only control puts them: the formula with a column of ones for each of them."""
    torch.manual_seed(1)
    height, width, heads = 4, 5, 2
    q, own_k, own_v = torch.randn(3, 2, height * width, 8).unbind(0)
    more_k, more_v = torch.randn(2, 2, 7, 8).unbind(0)
    k, v = torch.cat([own_k, more_k], 1), torch.cat([own_v, more_v], 1)
    mask = torch.zeros(1, height, width)
    mask[:, :, :2] = 1
    inside = mask[0].flatten() > 0.5
    seen = torch.cat([inside[:, None] == inside[None], torch.ones(height * width, 7, dtype=torch.bool)], 1)
    wanted = dense(q, k, v, heads, seen.float().expand(2, -1, -1), renormalise=mode == "renormalised")
    call = call_of("self", height, width, heads, 2, 2, plainly)
    found = MaskedSelfAttention(RegionMask(mask), mode).attend(q, k, v, call, plain(heads))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
