"""Regions of text on every family of transformers, in ComfyUI's own sampler, against a dense mask that the test writes out itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from maskprompt.attention import chain
from maskprompt.nodes.dreamcom import MaskedAttention

from ...support import dense
from ...support.dense import Area, Token, pairwise
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, close, families, masks, region, regions, sample, text_of
from ...support.word_maps import SIZE, WANTED, check, installed, watching


def inside(mask: torch.Tensor, tiny: Tiny, size: tuple[int, int], frames: int | None = None) -> torch.Tensor:
    """The cells of which the mask [1, H, W] covers half or more, bool [cells]: each mean taken over its own pixels."""
    time, rows, columns = tiny.grid(size, frames)
    pixels = 8 * tiny.patch
    cells = [
        mask[0, i * pixels : (i + 1) * pixels, j * pixels : (j + 1) * pixels].mean() >= 0.5 for i in range(rows) for j in range(columns)
    ]
    return torch.tensor(cells).repeat(time)


def all_texts(tiny: Tiny) -> torch.Tensor:
    return torch.cat([tiny.filled(text) for text in (text_of(tiny), tiny.words(TEXTS[1], 20), tiny.words(TEXTS[2], 21))], dim=1)


def reference(
    tiny: Tiny, model: Any, size: tuple[int, int], areas: Any, references: tuple[int, ...] = (), frames: int | None = None
) -> Any:
    """The model as it is, with a dense mask over the prompt's and the regions' words joined by hand."""
    clone = model.clone()
    told = tiny.tokens(TEXTS, size, references, frames)
    options = clone.model_options["transformer_options"]
    options["optimized_attention_override"] = dense.override(told, areas)
    options.setdefault("patches", {}).update(tiny.patches(TEXTS))
    return clone


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "replaced": {"replaces": (True, False)},
    "apart": {"apart": (1.0, 0.0)},
    "strengths": {"strength": (0.4, 1.3)},
}


@families
@pytest.mark.parametrize("case", CASES)
def test_regions_equal_a_dense_mask(tiny: Tiny, case: str) -> None:
    size, model, asked = (9, 11), tiny.model(), CASES[case]
    given = {"strength": (1.0, 1.0), "replaces": (False, False), "apart": (0.0, 0.0), **asked}
    areas = [
        Area(inside(mask, tiny, size), given["strength"][number], given["replaces"][number], given["apart"][number] == 1)
        for number, mask in enumerate(masks(size))
    ]
    assert all(0 < int(area.inside.sum()) < len(area.inside) for area in areas)
    result = sample(chain.install(model, *regions(tiny, size, **asked)), tiny, size, text_of(tiny))
    wanted = sample(reference(tiny, model, size, areas), tiny, size, all_texts(tiny))
    close(result, wanted)
    assert not torch.allclose(result, sample(model, tiny, size, text_of(tiny)), rtol=1e-3)


@families
@pytest.mark.parametrize("length", [TEXTS[0], TEXTS[0] + 4], ids=["one batch", "two passes"])
def test_a_batch_with_cfg_and_a_mask_for_each_picture(tiny: Tiny, length: int) -> None:
    """Each picture of a batch equals the dense mask with its own regions; the negative prompt knows nothing of them."""
    size, model = (7, 10), tiny.model()
    left, lower = masks(size)
    turned = torch.cat([left, left.flip(2), 1 - lower])
    negative = tiny.words(length, 90)
    patches = regions(tiny, size)
    first = region(tiny, patches[0].text, turned)
    result = sample(chain.install(model, first, patches[1]), tiny, size, text_of(tiny), 3, 3.0, negative)
    each = [[Area(inside(mask[None], tiny, size)), Area(inside(lower, tiny, size))] for mask in turned]
    if tiny.frames == 3:  # of a video each mask is a frame's, in every row
        cells = math.prod(tiny.grid(size)[1:])
        over_time = torch.cat([inside(mask[None], tiny, size)[:cells] for mask in turned])
        each = [[Area(over_time), each[0][1]]] * 3
    told = tiny.tokens(TEXTS, size)

    def alone(queries: int, keys: int, options: dict[str, Any]) -> Any:
        return told(queries, keys, options) if 0 in options["cond_or_uncond"] else None

    patched = reference(tiny, model, size, lambda rows: each)
    patched.model_options["transformer_options"]["optimized_attention_override"] = dense.override(alone, lambda rows: each)
    # The reference's positive is longer than its negative, so ComfyUI runs them apart there.
    close(result, sample(patched, tiny, size, all_texts(tiny), 3, 3.0, negative))


@pytest.mark.parametrize("tiny", [tiny for tiny in TINIES if tiny.references], ids=lambda tiny: tiny.name)
def test_references_are_seen_by_all_cells(tiny: Tiny) -> None:
    size, model = (9, 11), tiny.model()
    pictures = [tiny.latent((6, 8), seed=30), tiny.latent((6, 4), seed=31)]
    counts = tuple(int(torch.tensor(tiny.grid((picture.shape[-2], picture.shape[-1]))).prod()) for picture in pictures)
    areas = [Area(inside(mask, tiny, size)) for mask in masks(size)]
    patched = chain.install(model, *regions(tiny, size))
    result = sample(patched, tiny, size, text_of(tiny), reference_latents=pictures)
    wanted = sample(reference(tiny, model, size, areas, counts), tiny, size, all_texts(tiny), reference_latents=pictures)
    close(result, wanted)


@families
def test_where_no_region_acts_the_model_is_untouched_to_the_bit(tiny: Tiny) -> None:
    size, model = (7, 10), tiny.model()
    negative = tiny.words(TEXTS[0], 90)
    plain = sample(model, tiny, size, text_of(tiny), 2, 3.0, negative)
    patches = regions(tiny, size)
    off = [replace(patch, strength=0.0) for patch in patches]
    later = [replace(patch, scope=chain.Scope(None, 1.0, 1.0, "positive")) for patch in patches]
    patched = chain.install(model, *patches)
    assert torch.equal(sample(chain.install(model, *off), tiny, size, text_of(tiny), 2, 3.0, negative), plain)
    assert torch.equal(sample(chain.install(model, *later), tiny, size, text_of(tiny), 2, 3.0, negative), plain)
    changed = sample(patched, tiny, size, text_of(tiny), 2, 3.0, negative)
    assert not torch.allclose(changed, plain, rtol=1e-3)
    assert all(torch.equal(sample(patched, tiny, size, text_of(tiny), 2, 3.0, negative), changed) for _ in range(4))
    assert torch.equal(sample(model, tiny, size, text_of(tiny), 2, 3.0, negative), plain)


@families
@pytest.mark.parametrize("ours_first", [True, False])
def test_another_packs_override_still_serves(tiny: Tiny, ours_first: bool) -> None:
    size, model = (7, 10), tiny.model()
    seen: list[int] = []

    def theirs(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(len(args[0]))
        return 0.5 * func(*args, **kwargs)

    def add_theirs(to: Any) -> Any:
        clone = to.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = theirs
        return clone

    patches = regions(tiny, size)
    both = add_theirs(chain.install(model, *patches)) if ours_first else chain.install(add_theirs(model), *patches)
    result = sample(both, tiny, size, text_of(tiny))
    assert seen
    assert not torch.allclose(result, sample(chain.install(model, *patches), tiny, size, text_of(tiny)), rtol=1e-3)
    other = chain.install(add_theirs(model), *patches) if ours_first else add_theirs(chain.install(model, *patches))
    assert torch.equal(sample(other, tiny, size, text_of(tiny)), result)
    areas = [Area(inside(mask, tiny, size)) for mask in masks(size)]
    wanted = reference(tiny, model, size, areas)
    options = wanted.model_options["transformer_options"]
    masked = options["optimized_attention_override"]
    told = tiny.tokens(TEXTS, size)

    def halved(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 0.5 * masked(func, *args, **kwargs)

    options["optimized_attention_override"] = halved
    assert told is not None
    close(result, sample(wanted, tiny, size, all_texts(tiny)))


@families
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite(tiny: Tiny, dtype: torch.dtype) -> None:
    size, model = (7, 10), tiny.model(dtype=dtype)
    patched = chain.install(model, *regions(tiny, size, strength=(0.5, 1.0)))
    assert torch.isfinite(sample(patched, tiny, size, text_of(tiny), steps=1)).all()


@families
def test_the_change_lies_in_the_region(tiny: Tiny) -> None:
    """Other words in a region change its cells most, at odd sizes and for a batch."""
    size, model = (13, 17), tiny.model()
    fox, penguin = (
        sample(chain.install(model, region(tiny, tiny.words(6, seed), masks(size)[0])), tiny, size, text_of(tiny), 2, steps=1)
        for seed in (60, 61)
    )
    change = (fox - penguin).abs().flatten(1, -3).mean(1)
    columns = size[1] // 2
    assert bool((change[..., :columns].mean((-2, -1)) > 1.5 * change[..., columns + 1 :].mean((-2, -1))).all())


def hidden(query: Token, key: Token, place: list[bool], words: bool, divided: bool) -> bool:
    kinds = {query[0], key[0]}
    if kinds == {"words", "cells"}:
        cell = query[1] if query[0] == "cells" else key[1]
        return words and not place[cell]
    return divided and kinds == {"cells"} and place[query[1]] != place[key[1]]


def by_the_formula(model: Any, told: Any, place: torch.Tensor, words: bool, mode: str) -> Any:
    """The model with its softmax written out: what is hidden leaves before it (`renormalised`), or is zeroed after it (`paper`)."""
    places = place.bool().tolist()
    known: dict[Any, torch.Tensor] = {}

    def attend(func: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, *_: Any, **kwargs: Any) -> torch.Tensor:
        parts = [q, k, v] if kwargs.get("skip_reshape") else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        tokens = told(parts[0].shape[2], parts[1].shape[2], kwargs.get("transformer_options") or {})
        if tokens is None:
            return func(q, k, v, heads, mask, *_, **kwargs)
        asked = (tuple(tokens[0]), tuple(tokens[1]))
        if asked not in known:
            known[asked] = pairwise(tokens[0], tokens[1], lambda query, key: hidden(query, key, places, words, mode != "off"))
        out = known[asked]
        scores = parts[0] @ parts[1].transpose(-1, -2) * parts[0].shape[-1] ** -0.5
        if mask is not None:
            scores = scores + (mask if mask.ndim == 4 else mask[:, None])
        # Who sees nothing at all takes nothing.
        left = scores.masked_fill(out, float("-inf")).softmax(-1).nan_to_num(0.0)
        result = (left if mode == "renormalised" else scores.softmax(-1).masked_fill(out, 0.0)) @ parts[2]
        return result if kwargs.get("skip_output_reshape") else result.transpose(1, 2).flatten(2)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attend
    return clone


@families
@pytest.mark.parametrize("mode", ["paper", "renormalised", "off"])
def test_masked_attention_equals_the_formula(tiny: Tiny, mode: str) -> None:
    size, model, mask = (9, 11), tiny.model(), masks((9, 11))[1]
    inputs: dict[str, Any] = {"cross_attention": True, "self_attention": mode, "layers": "all"}
    (patched,) = MaskedAttention.execute(model=model, mask=mask, **inputs).args
    told = tiny.tokens(TEXTS[:1], size)
    close(
        sample(patched, tiny, size, text_of(tiny)),
        sample(by_the_formula(model, told, inside(mask, tiny, size), True, mode), tiny, size, text_of(tiny)),
    )


@families
def test_word_maps_equal_the_dense_softmax_and_change_nothing(tiny: Tiny) -> None:
    """One step, an odd size; the result beside the probe is the model's own, to the bit."""
    size, model = SIZE, tiny.model()
    probed, found = installed(model)
    watched, seen = watching(model, tiny, (WANTED,))
    result = sample(probed, tiny, size, text_of(tiny), steps=1)
    assert torch.equal(sample(watched, tiny, size, text_of(tiny), steps=1), result)
    assert torch.equal(sample(model, tiny, size, text_of(tiny), steps=1), result)
    check(found, seen, tiny.grid(size)[0])
    on_latent = found.on_latent()
    assert on_latent.shape == (tiny.grid(size)[0], len(WANTED), *size)
    assert float(on_latent.min()) > 0
