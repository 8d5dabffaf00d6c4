"""Masked Attention on every family of transformers, against dense masks before and after the softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.attention import families as readers
from maskprompt.attention import layers
from maskprompt.nodes.dreamcom import MaskedAttention

from ..support.dense import Token
from ..support.tiny_transformers import TINIES, Tiny
from .test_transformers import TEXTS, close, families, inside, masks, sample, text_of


def hidden(query: Token, key: Token, place: torch.Tensor, words: bool, divided: bool) -> bool:
    kinds = {query[0], key[0]}
    if kinds == {"words", "cells"}:
        cell = query[1] if query[0] == "cells" else key[1]
        return words and not bool(place[cell])
    return divided and kinds == {"cells"} and bool(place[query[1]]) != bool(place[key[1]])


def dense(model: Any, told: Any, place: torch.Tensor, words: bool, mode: str) -> Any:
    """The model with its softmax written out: what is hidden leaves before it (`renormalised`), or is zeroed after it (`paper`)."""

    def attend(func: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, *_: Any, **kwargs: Any) -> torch.Tensor:
        parts = [q, k, v] if kwargs.get("skip_reshape") else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        tokens = told(parts[0].shape[2], parts[1].shape[2], kwargs.get("transformer_options") or {})
        if tokens is None:
            return func(q, k, v, heads, mask, *_, **kwargs)
        out = torch.tensor([[hidden(query, key, place, words, mode != "off") for key in tokens[1]] for query in tokens[0]])
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
def test_it_equals_the_formula(tiny: Tiny, mode: str) -> None:
    size, model, mask = (9, 11), tiny.model(), masks((9, 11))[1]
    inputs: dict[str, Any] = {"cross_attention": True, "self_attention": mode, "layers": "all"}
    (patched,) = MaskedAttention.execute(model=model, mask=mask, **inputs).args
    told = tiny.tokens(TEXTS[:1], size)
    close(
        sample(patched, tiny, size, text_of(tiny)),
        sample(dense(model, told, inside(mask, tiny, size), True, mode), tiny, size, text_of(tiny)),
    )


@families
def test_full_masks_and_no_masks_change_nothing_to_the_bit(tiny: Tiny) -> None:
    size, model = (7, 10), tiny.model()
    plain = sample(model, tiny, size, text_of(tiny))
    inputs: dict[str, Any] = {"cross_attention": True, "self_attention": "paper", "layers": "all"}
    (full,) = MaskedAttention.execute(model=model, mask=torch.ones(1, 56, 80), **inputs).args
    assert torch.equal(sample(full, tiny, size, text_of(tiny)), plain)
    (empty,) = MaskedAttention.execute(model=model, mask=torch.zeros(1, 56, 80), **inputs).args
    assert empty is model


def test_layers_are_named_as_the_model_names_its_blocks() -> None:
    flux = TINIES[0].model().get_model_object("diffusion_model")
    known = readers.layers_of(flux)
    assert known == (("double", 0, 0), ("double", 1, 0), ("single", 0, 0), ("single", 1, 0))
    assert layers.parse("double 1, single 0", known) == {("double", 1, 0), ("single", 0, 0)}
    assert layers.preset("last third", known) == {("single", 0, 0), ("single", 1, 0)}
    thirds = [layers.preset(name, known) for name in layers.THIRDS]
    assert frozenset().union(*thirds) == frozenset(known)
    assert sum(map(len, thirds)) == len(known)
    assert layers.preset("paper", known) == frozenset(known) - thirds[2]
    with pytest.raises(ValueError, match="no attention layer 'output 3'"):
        layers.parse("output 3", known)


def test_only_the_chosen_layers_are_divided() -> None:
    tiny, size = TINIES[0], (9, 11)
    model, mask = tiny.model(), masks((9, 11))[1]
    seen: list[tuple[Any, int]] = []

    def watched(func: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        options = kwargs["transformer_options"]
        seen.append(((options["block_type"], options["block_index"]), q.shape[2]))
        return func(q, *args, **kwargs)

    inputs: dict[str, Any] = {"cross_attention": False, "self_attention": "renormalised", "layers": "list", "layer_list": "single 1"}
    (patched,) = MaskedAttention.execute(model=model, mask=mask, **inputs).args
    patched.model_options["transformer_options"]["optimized_attention_override"] = watched
    sample(patched, tiny, size, text_of(tiny), steps=1)
    whole = TEXTS[0] + 30
    assert [layer for layer, count in seen if count == whole] == [("double", 0), ("double", 1), ("single", 0)]
    assert sum(count for layer, count in seen if layer == ("single", 1)) == whole
