"""Word maps of transformers in batches, beside references and rules, against a softmax written out. One picture: test_transformers.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.attention import chain, groups, joint_probe, prompt_regions, unet_regions
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.joint_probe import JointProbe
from maskprompt.attention.layout import Layout, spans_of
from maskprompt.attention.maps import Readings
from maskprompt.attention.probe import Probe
from maskprompt.attention.visibility import Masked, RegionOfText, TextsByRegion
from torch import Tensor

from ...support import dense
from ...support.attention import split
from ...support.models import Sample
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, families, masks, regions, sample, text_of
from ...support.word_maps import SIZE, WANTED, check, installed, watching


def named(name: str) -> Tiny:
    return next(tiny for tiny in TINIES if tiny.name == name)


@families
def test_a_batch_with_cfg_and_words_for_each_picture(tiny: Tiny) -> None:
    model, wanted = tiny.model(), (WANTED, ((0,), (6, 3)))
    if tiny.frames == 3:
        wanted = (WANTED,)  # pictures of a video are its frames
    probed, found = installed(model, wanted)
    watched, seen = watching(model, tiny, wanted)
    sample(probed, tiny, SIZE, text_of(tiny), 2, 3.0, tiny.words(TEXTS[0], 90), steps=1)
    sample(watched, tiny, SIZE, text_of(tiny), 2, 3.0, tiny.words(TEXTS[0], 90), steps=1)
    check(found, seen, tiny.grid(SIZE)[0])


@pytest.mark.parametrize("tiny", [tiny for tiny in TINIES if tiny.references], ids=lambda tiny: tiny.name)
def test_references_take_their_share(tiny: Tiny) -> None:
    model, pictures = tiny.model(), [tiny.latent((6, 8), seed=30), tiny.latent((6, 4), seed=31)]
    counts = tuple(int(torch.tensor(tiny.grid((picture.shape[-2], picture.shape[-1]))).prod()) for picture in pictures)
    probed, found = installed(model)
    watched, seen = watching(model, tiny, (WANTED,), counts)
    sample(probed, tiny, SIZE, text_of(tiny), steps=1, reference_latents=pictures)
    sample(watched, tiny, SIZE, text_of(tiny), steps=1, reference_latents=pictures)
    check(found, seen, 1)


@families
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite(tiny: Tiny, dtype: torch.dtype) -> None:
    probed, found = installed(tiny.model(dtype=dtype))
    sample(probed, tiny, SIZE, text_of(tiny), steps=1)
    maps = found.on_latent()
    assert maps.dtype == torch.float32
    assert bool(torch.isfinite(maps).all())


def test_chosen_layers_alone_are_read() -> None:
    tiny = named("Flux.1")
    probed, found = installed(tiny.model(), layers=frozenset({("double", 1, 0), ("single", 0, 0)}))
    sample(probed, tiny, SIZE, text_of(tiny), steps=1)
    assert [reading.layer for reading in found.all()] == [("double", 1, 0), ("single", 0, 0)]


def test_a_prompt_that_a_region_replaces_has_no_share_there() -> None:
    """And the region's words, which join the prompt's, move none of them."""
    tiny = named("Flux.1")
    model, left = tiny.model(), masks(SIZE)[0]
    region = prompt_regions.PromptRegion(tiny.words(5, 20), RegionMask(left), replaces=True)
    alone, plain = installed(model)
    beside, found = installed(chain.install(model, region))
    sample(alone, tiny, SIZE, text_of(tiny), steps=1)
    sample(beside, tiny, SIZE, text_of(tiny), steps=1)
    first, other = found.all()[0].maps[0].unflatten(0, tiny.grid(SIZE)[1:]), plain.all()[0].maps[0].unflatten(0, tiny.grid(SIZE)[1:])
    columns = SIZE[1] // 2 // tiny.patch
    assert float(first[:, :columns].abs().max()) == 0
    torch.testing.assert_close(first[:, columns + 1 :], other[:, columns + 1 :], atol=1e-6, rtol=1e-4)


def test_beside_regions_nothing_changes_to_the_bit() -> None:
    for tiny in (named("Flux.2"), named("Z-Image"), named("Wan text to video")):
        patched = chain.install(tiny.model(), *regions(tiny, SIZE))
        probed, found = installed(patched)
        result = sample(probed, tiny, SIZE, text_of(tiny), 1, 3.0, steps=1)
        assert torch.equal(sample(patched, tiny, SIZE, text_of(tiny), 1, 3.0, steps=1), result)
        assert found.all()


def test_beside_a_region_on_a_unet_the_prompts_words_are_read(model: Any, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region's words follow the prompt's and take their share; the columns are the prompt's own."""
    region = prompt_regions.PromptRegion(torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(5)), RegionMask(masks((16, 16))[0]))
    patched, readings = chain.install(model, region), Readings()
    probed = chain.install(patched, Probe((((3,), (76, 1)),), 77, readings))
    seen: list[tuple[Tensor, Tensor, int]] = []
    attend = unet_regions.RegionAttention.attend

    def watched(self: Any, q: Tensor, k: Tensor, v: Tensor, call: Any, inner: Any) -> Tensor:
        seen.append((q, k, call.heads))
        return attend(self, q, k, v, call, inner)

    monkeypatch.setattr(unet_regions.RegionAttention, "attend", watched)
    result = sample(probed, steps=1, cfg=1.0)
    assert len(readings.all()) == len(seen) > 0
    for reading, (q, k, heads) in zip(readings.all(), seen, strict=True):
        assert k.shape[1] == 77 + 9
        weights = (split(q, heads) @ split(k, heads).mT / (q.shape[-1] / heads) ** 0.5).softmax(-1).mean(1)
        wanted = torch.stack([weights[..., 3], weights[..., 76] + weights[..., 1]], -1)
        torch.testing.assert_close(reading.maps, wanted, atol=1e-6, rtol=1e-4)
    assert torch.equal(sample(patched, steps=1, cfg=1.0), result)


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    kv = draw(st.sampled_from([1, 2]))
    return {
        "grid": (1, height, width), "words": draw(st.integers(1, 5)), "more": draw(st.integers(1, 3)), "others": draw(st.integers(0, 4)),
        "heads": kv * draw(st.integers(1, 2)), "kv": kv, "batch": draw(st.integers(1, 2)), "seed": draw(st.integers(0, 2**30)),
        "at_once": draw(st.sampled_from([1, 60, 2**22])), "masked": draw(st.sampled_from(["no", "keys", "all", "bool"])),
        "rule": draw(st.sampled_from(["none", "regions", "renormalised", "paper"])), "skip": draw(st.booleans()),
    }  # fmt: skip


@given(case=calls())
@settings(max_examples=120, deadline=None)
def test_shares_under_rules_are_the_dense_ones(case: dict[str, Any]) -> None:
    """Words of two texts, cells, others; with key heads of their own, a mask of the call's own, and in parts."""
    torch.manual_seed(case["seed"])
    count = case["grid"][1] * case["grid"][2]
    spans = spans_of(("words", case["words"], 0), ("words", case["more"], 1), ("cells", count), ("reference", case["others"]))
    tokens = dense.listed(("words", case["words"], 0), ("words", case["more"], 1), ("cells", count), ("reference", case["others"]))
    layout, total = Layout(spans, spans, case["grid"]), len(tokens)
    inside = torch.rand(count) < 0.5
    q, k = (torch.randn(case["batch"], heads, total, 6) for heads in (case["heads"], case["kv"]))
    readout = (torch.rand(case["batch"], total, 3) < 0.3).float()
    mask: Tensor | None = {
        "no": None, "keys": torch.randn(case["batch"], 1, 1, total), "all": torch.randn(case["batch"], total, total),
        "bool": (torch.rand(total, total) < 0.8) | torch.eye(total, dtype=torch.bool),
    }[case["masked"]]  # fmt: skip
    seen, zeroed = torch.ones(total, total, dtype=torch.bool), torch.zeros(total, total, dtype=torch.bool)
    cut = None
    if case["rule"] == "regions":
        seen = dense.mask_of(tokens, tokens, [dense.Area(inside)], [True])
        cut = groups.plan(layout, (TextsByRegion((RegionOfText(inside, 0),)),), torch.device("cpu"))
    elif case["rule"] != "none":
        paper = case["rule"] == "paper"
        cut = groups.plan(layout, (Masked(inside, 0, True, paper, False, False),), torch.device("cpu"))
        hidden = torch.tensor(
            [
                [{one[0], two[0]} == {"words", "cells"} and not bool(inside[one[1] if one[0] == "cells" else two[1]]) for two in tokens]
                for one in tokens
            ]
        )
        seen, zeroed = (seen, hidden) if paper else (~hidden, zeroed)
    scores = q @ k.repeat_interleave(case["heads"] // case["kv"], 1).transpose(2, 3) * 6**-0.5
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + (mask if mask.ndim == 4 else mask[:, None])
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0).masked_fill(zeroed, 0.0).mean(1)
    cells = joint_probe.cells_of(layout)
    assert len(cells) == 1
    shape = (lambda x: x) if case["skip"] else (lambda x: x.transpose(1, 2).flatten(2))
    call = {"q": shape(q), "k": shape(k), "heads": case["heads"], "mask": mask, "skip_reshape": case["skip"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_probe, "AT_ONCE", case["at_once"])
        found = joint_probe.shares(call, cells, readout, cut)
    torch.testing.assert_close(found, (weights @ readout)[:, cells[0].start : cells[0].stop], atol=1e-6, rtol=1e-4)


def test_only_a_part_of_the_weights_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that is made, against the whole map of 1,100 x 1,100."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    monkeypatch.setattr(joint_probe, "AT_ONCE", 2**14)
    spans = spans_of(("words", 76), ("cells", 1024))
    q, k = torch.randn(1, 2, 1100, 8), torch.randn(1, 2, 1100, 8)
    call = {"q": q, "k": k, "heads": 2, "skip_reshape": True}
    with Watch():
        joint_probe.shares(call, spans[1:], torch.ones(1, 1100, 2), None)
    assert largest < 1100 * 1100 / 20


def test_what_cannot_be_known_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="columns 0 to 6, not 7"):
        JointProbe((((7,),),), 7, Readings())
    with pytest.raises(ValueError, match="equally many"):
        JointProbe(((),), 7, Readings())
    tiny = named("Flux.1")
    probed = chain.install(tiny.model(), JointProbe((((0,),),), 8, Readings()))
    with pytest.raises(RuntimeError, match=r"has 8 tokens but the model gets 7"):
        sample(probed, tiny, SIZE, text_of(tiny), steps=1)
