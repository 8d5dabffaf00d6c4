"""HiDream's own: words of two encoders, one of them twice, and E1's reference, which stands beside each row of the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from maskprompt.attention import chain, prompt_regions
from maskprompt.attention.families import hidream
from maskprompt.attention.grid import RegionMask
from maskprompt.nodes.dreamcom import MaskedAttention

from ...support import dense
from ...support.dense import Area, Token, listed
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, close, masks, regions, sample, text_of
from ...support.word_maps import SIZE, WANTED, check, installed, watching

HIDREAM = next(tiny for tiny in TINIES if tiny.name == "HiDream")
ROWS, WIDTH, BESIDE = 5, 6, 5
"""Of a picture of 9 x 11 and a reference of the same size, 9 x 22 together: the cell at the seam shows a column of both."""


def beside_each_row(words: Any, count: int, references: Sequence[int]) -> Any:
    """Each row of the picture is followed by the reference's, then come T5's words, then Llama's twice."""
    assert count == ROWS * WIDTH
    picture: list[Token] = []
    for row in range(ROWS):
        picture += [("cells", row * WIDTH + column) for column in range(WIDTH)] + [("reference", 0)] * BESIDE
    llama = [(kind, 2 * length, number) for kind, length, number in words]
    every = [*picture, *listed(*words, *llama, *llama)]
    return lambda queries, keys, _options: (every, every) if queries == keys == len(every) else None


E1 = replace(HIDREAM, name="HiDream-E1", layout=beside_each_row)
REFERENCE: dict[str, Any] = {"concat_latent_image": HIDREAM.latent(SIZE, seed=30)}


def inside(mask: torch.Tensor) -> torch.Tensor:
    """The cells of 16 x 16 pixels of which the mask [1, H, W] covers half or more; a last one as far as the picture reaches."""
    cells = [mask[0, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].mean() >= 0.5 for i in range(ROWS) for j in range(WIDTH)]
    return torch.tensor(cells)


def with_override(model: Any, override: Callable[..., Any]) -> Any:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_regions_beside_a_reference_equal_a_dense_mask(apart: float) -> None:
    model = HIDREAM.model()
    areas = [Area(inside(mask), strength, apart=apart == 1) for mask, strength in zip(masks(SIZE), (0.5, 1.0), strict=True)]
    patched = chain.install(model, *regions(E1, SIZE, strength=(0.5, 1.0), apart=(apart, apart)))
    result = sample(patched, E1, SIZE, text_of(E1), **REFERENCE)
    texts = torch.cat([text_of(E1), E1.words(TEXTS[1], 20), E1.words(TEXTS[2], 21)], dim=1)
    reference = with_override(model, dense.override(E1.tokens(TEXTS, SIZE), areas))
    close(result, sample(reference, E1, SIZE, texts, **REFERENCE))
    assert not torch.allclose(result, sample(patched, E1, SIZE, text_of(E1)), rtol=1e-3)


def test_masked_attention_beside_a_reference_equals_the_formula() -> None:
    """Words and cells outside of the mask do not see each other, before the softmax; the reference sees all."""
    model, mask = HIDREAM.model(), masks(SIZE)[1]
    (patched,) = MaskedAttention.execute(model=model, mask=mask, cross_attention=True, self_attention="renormalised", layers="all").args
    place, told = inside(mask), E1.tokens(TEXTS[:1], SIZE)

    def hidden(one: Token, other: Token) -> bool:
        cells = [bool(place[token[1]]) for token in (one, other) if token[0] == "cells"]
        return (len(cells) == 2 and cells[0] != cells[1]) or ({one[0], other[0]} == {"words", "cells"} and not cells[0])

    def attend(_func: Any, q: Any, k: Any, v: Any, heads: int, **kwargs: Any) -> torch.Tensor:
        parts = [x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        queries, keys = told(q.shape[1], k.shape[1], kwargs)
        seen = torch.tensor([[not hidden(one, other) for other in keys] for one in queries])
        return dense.softmax_attention(parts[0], parts[1], parts[2], seen).transpose(1, 2).flatten(2)

    close(sample(patched, E1, SIZE, text_of(E1), **REFERENCE), sample(with_override(model, attend), E1, SIZE, text_of(E1), **REFERENCE))


def test_word_maps_beside_a_reference_are_of_the_picture_alone() -> None:
    model = HIDREAM.model()
    probed, found = installed(model)
    watched, seen = watching(model, E1, (WANTED,))
    result = sample(probed, E1, SIZE, text_of(E1), steps=1, **REFERENCE)
    assert torch.equal(sample(watched, E1, SIZE, text_of(E1), steps=1, **REFERENCE), result)
    check(found, seen, 1)
    assert found.all()[0].maps.shape[1] == ROWS * WIDTH


def region(options: dict[str, Any], width: int = 40) -> prompt_regions.PromptRegion:
    return prompt_regions.PromptRegion(torch.randn(1, 5, width), RegionMask(torch.ones(1, 64, 64)), options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no words of Llama"),
        ({hidream.LLAMA: torch.zeros(1, 3, 9, 16)}, r"\(48 numbers for each word where the prompt has 72\)"),
        ({hidream.LLAMA: torch.zeros(1, 2, 9, 24)}, r"\(48 numbers for each word where the prompt has 72\)"),
    ],
)
def test_a_regions_text_of_another_encoder_is_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(chain.install(HIDREAM.model(), region(options)), HIDREAM, (8, 8), text_of(HIDREAM))


def test_a_prompt_of_another_encoder_is_refused_in_words() -> None:
    other: Tiny = replace(HIDREAM, beside=lambda text: {})
    with pytest.raises(ValueError, match="the prompt comes from another text encoder than HiDream's"):
        sample(chain.install(HIDREAM.model(), *regions(HIDREAM, (8, 8))), other, (8, 8), text_of(HIDREAM))
