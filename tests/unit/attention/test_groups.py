"""Attention by groups as pure tensor maths: any rules, any layout, against a dense mask; and that it is cut as it should be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from maskprompt.attention import groups, layout
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.groups import Where
from maskprompt.attention.layout import UNUSED, Layout, spans_of, with_texts
from maskprompt.attention.visibility import Look, RegionOfText, TextsByRegion

from demo.pack import ROOT

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Anything:
    """A rule of random labels, what they see, and what of that is zeroed."""

    seed: int
    count: int
    weights: tuple[float, ...] = (1.0,)
    key: str = "anything"

    def _draw(self, number: int, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=torch.Generator().manual_seed(100 * self.seed + number))

    def labels(self, spans: tuple[layout.Span, ...], grid: layout.Grid) -> torch.Tensor:
        return (self._draw(spans[-1].stop, spans[-1].stop) * self.count).long()

    def tables(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._draw(number, self.count, self.count) > 0.35, self._draw(number + 50, self.count, self.count) > 0.8

    def looks(self) -> tuple[Look, ...]:
        found = []
        for number, weight in enumerate(self.weights):
            seen, zeroed = self.tables(number)
            found.append(
                Look(
                    weight, lambda query, key, seen=seen: bool(seen[query, key]),
                    lambda query, key, zeroed=zeroed: bool(zeroed[query, key]),
                )
            )  # fmt: skip
        return tuple(found)


def softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """[B, H, N, d] to [B, N, H d]."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def dense(q: Any, k: Any, v: Any, rules: list[Anything], plan: Layout, bias: torch.Tensor | None) -> torch.Tensor:
    """Every combination of the rules' looks, with a mask of N x M written out."""
    total = torch.zeros(q.shape[0], q.shape[2], q.shape[1] * v.shape[-1])
    labels = [(rule.labels(plan.queries, plan.grid), rule.labels(plan.keys, plan.grid)) for rule in rules]
    choices = [[]]
    for rule in rules:
        choices = [[*chosen, number] for chosen in choices for number in range(len(rule.weights))]
    for chosen in choices:
        weight = 1.0
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        zeroed = torch.zeros_like(seen)
        for rule, number, (mine, theirs) in zip(rules, chosen, labels, strict=True):
            weight *= rule.weights[number]
            sees, zeroes = rule.tables(number)
            seen &= sees[mine][:, theirs]
            zeroed |= zeroes[mine][:, theirs]
        scores = q @ k.mT * q.shape[-1] ** -0.5 + (0 if bias is None else bias)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0).masked_fill(zeroed, 0.0)
        total += weight * (weights @ v).transpose(1, 2).flatten(2)
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_any_rules_equal_a_dense_mask(seed: int, cross: bool, biased: bool) -> None:
    own = spans_of(("words", 5), ("cells", 12), ("reference", 4))
    plan = Layout(own, spans_of(("words", 9)) if cross else own, (1, 3, 4))
    rules = [Anything(seed, 3), Anything(seed + 20, 2, (0.3, 0.7))]
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 2, 21, 8, generator=generator)
    k, v = (torch.randn(2, 2, plan.keys[-1].stop, 8, generator=generator) for _ in range(2))
    bias = torch.randn(2, 1, 1, k.shape[2], generator=generator) if biased else None
    cut = groups.plan(plan, rules, CPU)
    result = groups.attend(q, k, v, cut, softmax, Where(2, 1), bias)
    torch.testing.assert_close(result, dense(q, k, v, rules, plan, bias), atol=1e-5, rtol=1e-5)
    whole = groups.attend(q, k, v, cut, softmax, Where(2, 1), bias, whole=True)
    torch.testing.assert_close(whole, result, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("by_heads", [True, False], ids=["heads apart", "heads in a row"])
@pytest.mark.parametrize("masks", [None, 1, 4], ids=["no mask", "a mask", "a mask for each head"])
def test_heads_in_shares_are_all_heads(by_heads: bool, masks: int | None) -> None:
    """Four heads whose keys and values are sorted one, two or four at a time: the same result, with ever less beside the call's own."""
    own = spans_of(("words", 5), ("cells", 12), ("reference", 4))
    rules = [Anything(1, 3), Anything(21, 2, (0.3, 0.7))]
    plan = Layout(own, own, (1, 3, 4))
    cut = groups.plan(plan, rules, CPU)
    assert any(not group.views for group in cut.groups)
    q, k, v = (torch.randn(2, 4, 21, 8) for _ in range(3))
    bias = None if masks is None else torch.randn(2, masks, 21, 21)
    given: list[int] = []

    def flat(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        heads = [x if by_heads else x.unflatten(2, (-1, 8)).transpose(1, 2) for x in (q, k, v)]
        given.append(heads[0].shape[1])
        return softmax(heads[0], heads[1], heads[2], mask)

    tensors = (q, k, v) if by_heads else [x.transpose(1, 2).flatten(2) for x in (q, k, v)]
    for shares in (1, 2, 4):
        given.clear()
        result = groups.attend(tensors[0], tensors[1], tensors[2], cut, flat, Where(2 if by_heads else 1, 1), bias, shares=shares)
        assert set(given) == {4 // shares}
        torch.testing.assert_close(result, dense(q, k, v, rules, plan, bias), atol=1e-5, rtol=1e-5)


def regions(*insides: list[int], cells: int = 12) -> tuple[RegionOfText, ...]:
    found = []
    for number, inside in enumerate(insides):
        place = torch.zeros(cells, dtype=torch.bool)
        place[inside] = True
        found.append(RegionOfText(place, number))
    return tuple(found)


def test_the_keys_of_two_regions_are_slices() -> None:
    """Of all large groups of the usual two regions the keys are one slice, so nothing is copied for them."""
    spans = spans_of(("words", 4, 0), ("words", 3, 1), ("words", 2, 2), ("cells", 12), ("reference", 5))
    cut = groups.plan(Layout(spans, spans, (1, 3, 4)), (TextsByRegion(regions([0, 1, 2], [7, 8])),), CPU)
    large = [group for group in cut.groups if any(stop - start > 12 for start, stop in group.views[0].keys)]
    assert len(large) >= 3
    assert all(len(group.views) == 1 and len(group.views[0].keys) == 1 for group in large)
    assert sum(group.queries[1] - group.queries[0] for group in cut.groups) == 26


def test_cells_seen_alike_are_one_call() -> None:
    """As many calls as there are kinds of queries: the prompt, two texts, the ground and two regions; references go with the prompt."""
    calls: list[int] = []

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        calls.append(q.shape[2])
        return softmax(q, k, v, mask)

    spans = spans_of(("words", 4, 0), ("words", 3, 1), ("words", 2, 2), ("cells", 12))
    cut = groups.plan(Layout(spans, spans, (1, 3, 4)), (TextsByRegion(regions([0, 1], [1, 2])),), CPU)
    q = torch.randn(1, 1, 21, 4)
    groups.attend(q, q, q, cut, counted, Where(2, 1))
    # The prompt and the ground see the same; each text; cells of the first, of both, of the second.
    assert sorted(calls) == sorted([4 + 9, 3, 2, 1, 1, 1])


def test_without_rules_the_call_is_the_call_that_would_have_been_made() -> None:
    spans = spans_of(("words", 4), ("cells", 12))
    cut = groups.plan(Layout(spans, spans, (1, 3, 4)), (TextsByRegion(()),), CPU)
    assert cut.free
    q, k, v = (torch.randn(1, 1, 16, 4) for _ in range(3))
    given: list[Any] = []
    groups.attend(q, k, v, cut, lambda *args: given.append(args) or q, Where(2, 1))
    assert all(one is other for one, other in zip(given[0], (q, k, v, None), strict=True))


def test_who_sees_nothing_is_zero_and_never_nan() -> None:
    tokens = spans_of(("words", 6), ("cells", 4))
    spans = with_texts(Layout(tokens, tokens, (1, 2, 2)), [((0, 4), (UNUSED, 2))])
    cut = groups.plan(spans, (TextsByRegion(()),), CPU)
    q = torch.randn(1, 1, 10, 4)
    result = groups.attend(q, q, q, cut, softmax, Where(2, 1))
    assert result[:, 4:6].abs().max() == 0
    keep = [0, 1, 2, 3, 6, 7, 8, 9]
    torch.testing.assert_close(result[:, keep], softmax(q[:, :, keep], q[:, :, keep], q[:, :, keep]))


def test_layouts_are_checked() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        Layout((layout.Span("cells", 1, 5),), (), (1, 2, 2))
    with pytest.raises(ValueError, match="do not fill"):
        Layout(spans_of(("cells", 5)), (), (1, 2, 2))


def test_masks_over_time() -> None:
    """One mask for all frames, one for each latent frame, one for each frame of the video, or some spread over time."""
    masks = torch.zeros(9, 2, 2)
    masks[5:] = 1
    masks[3] = 0.4
    found = RegionMask(masks).over_frames(3).masks
    assert found.shape[0] == 3
    assert found[:, 0, 0].tolist() == [0.0, pytest.approx(0.1), 1.0]
    assert RegionMask(masks).over_frames(9).masks is masks
    one = RegionMask(masks[:1])
    assert one.over_frames(5) is one
    assert RegionMask(masks[[0, 8]]).over_frames(4).masks[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_the_maths_imports_without_comfyui() -> None:
    code = (
        "import sys, types, importlib; p = types.ModuleType('pack'); p.__path__ = [sys.argv[1]]; sys.modules['pack'] = p; "
        "[importlib.import_module('pack.attention.' + n) for n in ('layout', 'visibility', 'groups', 'prompt_regions', 'joint', "
        "'families.words_first', 'families.wan', 'families.sd3', 'masked_joint', 'unet_regions')]; assert 'comfy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True, cwd=ROOT.parent)
