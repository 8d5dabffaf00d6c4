"""Wan with reference pictures, which are further tokens of the video: regions on it against a dense mask, as on every family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from maskprompt.attention import chain
from maskprompt.nodes.dreamcom import MaskedAttention

from ...support import dense
from ...support.dense import Area, listed
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, close, masks, regions, sample, text_of
from ...support.word_maps import installed

WAN = next(tiny for tiny in TINIES if tiny.name == "Wan text to video")
SIZE = (8, 12)
CELLS = 3 * 4 * 6
PICTURE = torch.randn(1, 16, 1, *SIZE, generator=torch.Generator().manual_seed(7))
FRAMES = torch.randn(1, 16, 2, *SIZE, generator=torch.Generator().manual_seed(8))


def fun_control() -> Any:
    import comfy.supported_models

    return comfy.supported_models.WAN21_FunControl2V({
        "image_model": "wan2.1", "model_type": "i2v", "dim": 64, "out_dim": 16, "num_heads": 2, "ffn_dim": 96, "num_layers": 2,
        "patch_size": (1, 2, 2), "freq_dim": 32, "in_dim": 48, "text_dim": 40, "text_len": 512, "in_dim_ref_conv": 16,
    })  # fmt: skip


FUN_CONTROL = replace(WAN, name="Wan Fun Control", config=fun_control)


@dataclass(frozen=True)
class Case:
    """A model, what its CONDITIONING brings, and how many tokens of it stand before and behind the cells."""

    tiny: Tiny
    options: dict[str, Any]
    before: int
    behind: int

    @property
    def model(self) -> Any:
        return self.tiny.model()

    def told(self, texts: Sequence[int]) -> Any:
        """What the tokens of a call are: references and cells see each other, then all of them see words."""
        words = listed(*(("words", count, number) for number, count in enumerate(texts)))
        every = listed(("reference", self.before, 0), ("cells", CELLS), ("reference", self.behind, 1))

        def tokens(queries: int, keys: int, _options: Any) -> Any:
            assert queries == len(every)
            if keys == queries:
                return every, every
            return (every, words) if keys == len(words) else None

        return tokens


CASES = {
    "Fun Control": Case(FUN_CONTROL, {"reference_latents": [PICTURE]}, 4 * 6, 0),
    "Phantom": Case(WAN, {"time_dim_concat": FRAMES}, 0, 2 * 4 * 6),
    "in-context videos": Case(WAN, {"context_latents": [FRAMES, PICTURE]}, 0, 3 * 4 * 6),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def inside(mask: torch.Tensor) -> torch.Tensor:
    """The cells of three frames of which the mask [1, H, W] covers half or more."""
    shares = torch.nn.functional.avg_pool2d(mask, 16)[0]
    return (shares >= 0.5).flatten().repeat(3)


@cases
def test_a_region_equals_a_dense_mask(case: Case) -> None:
    tiny = case.tiny
    result = sample(chain.install(case.model, *regions(tiny, SIZE)), tiny, SIZE, text_of(tiny), **case.options)
    areas = [Area(inside(mask)) for mask in masks(SIZE)]
    clone = case.model
    clone.model_options["transformer_options"]["optimized_attention_override"] = dense.override(case.told(TEXTS), areas)
    words = torch.cat([text_of(tiny), tiny.words(TEXTS[1], 20), tiny.words(TEXTS[2], 21)], 1)
    close(result, sample(clone, tiny, SIZE, words, **case.options))
    assert not torch.allclose(result, sample(case.model, tiny, SIZE, text_of(tiny), **case.options), rtol=1e-3)
    assert not torch.allclose(result, sample(chain.install(case.model, *regions(tiny, SIZE)), tiny, SIZE, text_of(tiny)), rtol=1e-3)


@cases
def test_masked_attention_and_word_maps_run(case: Case) -> None:
    """And a map, which only looks, changes nothing to the bit."""
    tiny = case.tiny
    plain = sample(case.model, tiny, SIZE, text_of(tiny), **case.options)
    masked = MaskedAttention.execute(case.model, masks(SIZE)[0], True, "paper", "all").args[0]
    assert torch.isfinite(sample(masked, tiny, SIZE, text_of(tiny), **case.options)).all()
    assert not torch.equal(sample(masked, tiny, SIZE, text_of(tiny), **case.options), plain)
    looked_at, readings = installed(case.model)
    assert torch.equal(sample(looked_at, tiny, SIZE, text_of(tiny), **case.options), plain)
    alone, wanted = installed(case.model)
    sample(alone, tiny, SIZE, text_of(tiny))
    found, without = ([(one.layer, one.grid, one.maps.shape) for one in given.all()] for given in (readings, wanted))
    assert found == without, "of the cells alone, in every layer"
