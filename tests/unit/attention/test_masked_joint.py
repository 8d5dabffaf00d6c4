"""Masked Attention on transformers as a node: nothing to mask, and its layers by name and by depth. Its formula: test_transformers.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.attention import families as readers
from maskprompt.attention import layers
from maskprompt.nodes.dreamcom import MaskedAttention

from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, families, masks, sample, text_of


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
