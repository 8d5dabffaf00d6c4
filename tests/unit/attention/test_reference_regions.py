"""References with regions on every family that takes references, in ComfyUI's own sampler, against a dense mask written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from maskprompt.attention import chain, prompt_regions, reference_regions
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.reference_regions import ReferenceRegion

from ...support.dense import Area
from ...support.reference_masks import (
    SIZE,
    Reference,
    counts,
    dense_override,
    inside,
    latents,
    left_seen,
    prompt,
    said_of,
    sample,
    sizes,
    takers,
    with_dense,
)  # fmt: skip
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, close, masks, regions, text_of

FLUX, FLUX_2, QWEN = (next(tiny for tiny in TINIES if tiny.name == name) for name in ("Flux.1", "Flux.2", "Qwen-Image"))


@takers
@pytest.mark.parametrize("case", ["regions", "hidden", "both", "one", "strengths"])
def test_references_equal_a_dense_mask(tiny: Tiny, case: str) -> None:
    model, pictures = tiny.model(), latents(tiny)
    given, wanted = said_of(tiny, pictures, case)
    result = sample(reference_regions.install(model), tiny, prompt(tiny, pictures, given))
    told = tiny.tokens(TEXTS[:1], SIZE, counts(tiny))
    masked = with_dense(model, dense_override(tiny, told, lambda _options, batch: [wanted] * batch))
    close(result, sample(masked, tiny, prompt(tiny, pictures)))
    assert not torch.allclose(result, sample(model, tiny, prompt(tiny, pictures)), rtol=1e-3)


METHODS = [(name, method) for name in ("Flux.1", "Flux.2") for method in ("offset", "index", "uxo")]
METHODS += [("Flux.2", "index_timestep_zero")]  # core itself fails with it on Flux.1
METHODS += [("Qwen-Image", method) for method in ("offset", "index", "negative_index", "index_timestep_zero")]
METHODS += [("Krea 2", method) for method in ("index", "index_timestep_zero")]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_every_method_of_core_is_respected(name: str, method: str) -> None:
    tiny = next(tiny for tiny in TINIES if tiny.name == name)
    model, pictures = tiny.model(), latents(tiny)
    given, wanted = said_of(tiny, pictures, "both")
    result = sample(reference_regions.install(model), tiny, prompt(tiny, pictures, given, reference_latents_method=method), steps=1)
    told = tiny.tokens(TEXTS[:1], SIZE, counts(tiny))
    masked = with_dense(model, dense_override(tiny, told, lambda _options, batch: [wanted] * batch))
    close(result, sample(masked, tiny, prompt(tiny, pictures, reference_latents_method=method), steps=1))


def with_regions_words(tiny: Tiny, conditioning: list[Any]) -> list[Any]:
    """Puts both regions' words behind the prompt's own in a CONDITIONING."""
    words = torch.cat([tiny.filled(text) for text in (text_of(tiny), tiny.words(TEXTS[1], 20), tiny.words(TEXTS[2], 21))], dim=1)
    return [[words, options] for _, options in conditioning]


@takers
def test_beside_prompt_regions(tiny: Tiny) -> None:
    """Texts with regions and references with regions in one call: a token sees another if both rules let it."""
    model, pictures = tiny.model(), latents(tiny)
    given, wanted = said_of(tiny, pictures, "both")
    patched = reference_regions.install(chain.install(model, *regions(tiny, SIZE)))
    result = sample(patched, tiny, prompt(tiny, pictures, given))
    areas = [Area(inside(mask[0], tiny)) for mask in masks(SIZE)]
    told = tiny.tokens(TEXTS, SIZE, counts(tiny))
    masked = with_dense(model, dense_override(tiny, told, lambda _options, batch: [wanted] * batch, areas))
    masked.model_options["transformer_options"].setdefault("patches", {}).update(tiny.patches(TEXTS))
    close(result, sample(masked, tiny, with_regions_words(tiny, prompt(tiny, pictures))))


@takers
def test_a_batch_with_cfg_and_a_region_and_a_shown_part_for_each_picture(tiny: Tiny) -> None:
    """Three pictures, CFG, the negative prompt with the same references and nothing said of them."""
    model, pictures = tiny.model(), latents(tiny, batch=3)
    left, lower = masks(SIZE)
    places = torch.cat([left, 1 - left, lower])
    half = left_seen(tiny, sizes(tiny)[0])
    shown = torch.stack([half, ~half, half])
    every = torch.ones(1, counts(tiny)[1], dtype=torch.bool)
    given = [ReferenceRegion(pictures[0], shown, RegionMask(places)), ReferenceRegion(pictures[1], every, RegionMask(lower))]
    negative = [[tiny.words(TEXTS[0], 90), {**tiny.options, "reference_latents": pictures}]]
    result = sample(reference_regions.install(model), tiny, prompt(tiny, pictures, given), 3, 3.0, negative)
    each = [
        [Reference(shown[number], inside(places[number], tiny)), Reference(every[0], inside(lower[0], tiny))] for number in range(3)
    ]  # fmt: skip

    def rows(options: dict[str, Any], batch: int) -> list[Any]:
        halves = options["cond_or_uncond"]
        assert batch == 3 * len(halves)
        return [None if half else each[number] for half in halves for number in range(3)]

    told = tiny.tokens(TEXTS[:1], SIZE, counts(tiny))
    masked = with_dense(model, dense_override(tiny, told, rows))
    close(result, sample(masked, tiny, prompt(tiny, pictures), 3, 3.0, negative))


@takers
@pytest.mark.parametrize("lacks", [1, 2], ids=["one", "both"])
def test_a_reference_that_the_negative_lacks_is_guided_to(tiny: Tiny, lacks: int) -> None:
    """The positive prompt has two, each with its region and its shown part, the negative fewer: one step is the two halves' own answers,
    joined by the CFG."""
    model, pictures = tiny.model(), latents(tiny)
    given, _ = said_of(tiny, pictures, "both")
    patched = reference_regions.install(model)
    negative: list[Any] = [[tiny.words(TEXTS[0], 90), {**tiny.options}]]
    for picture in pictures[lacks:]:
        negative = reference_regions.with_reference(negative, picture, None)
    positive = sample(patched, tiny, prompt(tiny, pictures, given), steps=1)
    other = sample(model, tiny, negative, steps=1)
    assert not torch.allclose(positive, other, rtol=1e-3)
    close(sample(patched, tiny, prompt(tiny, pictures, given), cfg=3.0, negative=negative, steps=1), other + 3 * (positive - other))


@takers
def test_where_all_is_seen_the_model_is_untouched_to_the_bit(tiny: Tiny) -> None:
    """Nothing said, all tokens shown, a region that is the whole picture."""
    model, pictures = tiny.model(), latents(tiny)
    plain = sample(model, tiny, prompt(tiny, pictures), 2, 3.0)
    patched = reference_regions.install(model)
    assert torch.equal(sample(patched, tiny, prompt(tiny, pictures), 2, 3.0), plain)
    whole = [
        ReferenceRegion(picture, torch.ones(1, count, dtype=torch.bool), RegionMask(torch.ones(1, 72, 88)))
        for picture, count in zip(pictures, counts(tiny), strict=True)
    ]
    assert torch.equal(sample(patched, tiny, prompt(tiny, pictures, whole), 2, 3.0), plain)
    said, _ = said_of(tiny, pictures, "both")
    changed = sample(patched, tiny, prompt(tiny, pictures, said), 2, 3.0)
    assert not torch.allclose(changed, plain, rtol=1e-3)
    assert torch.equal(sample(patched, tiny, prompt(tiny, pictures, said), 2, 3.0), changed)
    assert torch.equal(sample(patched, tiny, prompt(tiny, pictures), 2, 3.0), plain)


@takers
def test_what_is_hidden_has_no_part_in_the_picture(tiny: Tiny) -> None:
    """Other hidden tokens, the same picture: in the attention nothing of them is left, and after it nothing is read of them."""
    model, pictures = tiny.model(), latents(tiny)
    given, _ = said_of(tiny, pictures, "hidden")
    result = sample(reference_regions.install(model), tiny, prompt(tiny, pictures, given))
    others = [pictures[0].clone(), pictures[1]]
    others[0][..., 4:] = 5.0  # the latent pixels of the tokens on the right, of one or two columns each
    assert given[0] is not None
    again = [replace(given[0], latent=others[0]), None]
    assert torch.equal(sample(reference_regions.install(model), tiny, prompt(tiny, others, again)), result)


def test_outside_of_its_part_of_the_sampling_a_reference_is_not_there() -> None:
    """By the method "index" the picture is then what it is without the reference."""
    model, pictures = FLUX.model(), latents(FLUX)[:1]
    every = torch.ones(1, counts(FLUX)[0], dtype=torch.bool)
    patched = reference_regions.install(model)

    def run(start: float, end: float) -> torch.Tensor:
        region = ReferenceRegion(pictures[0], every, None, 1.0, start, end)
        return sample(patched, FLUX, prompt(FLUX, pictures, [region]), steps=1)

    close(run(1.0, 1.0), sample(model, FLUX, prompt(FLUX, []), steps=1))
    assert torch.equal(run(0.0, 0.5), sample(model, FLUX, prompt(FLUX, pictures), steps=1))


def test_order_on_the_models_line_changes_nothing() -> None:
    model, pictures = FLUX.model(), latents(FLUX)
    given, _ = said_of(FLUX, pictures, "both")
    texts = regions(FLUX, SIZE)
    one = sample(reference_regions.install(prompt_regions.install(model, *texts)), FLUX, prompt(FLUX, pictures, given))
    other = sample(prompt_regions.install(reference_regions.install(model), *texts), FLUX, prompt(FLUX, pictures, given))
    assert torch.equal(one, other)
    heard = reference_regions.install(model)
    assert reference_regions.install(heard) is heard


def test_what_cannot_be_placed_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pictures = FLUX.model(), latents(FLUX)
    given, _ = said_of(FLUX, pictures, "both")
    patched = reference_regions.install(model)
    copied = [
        [words, {**options, "reference_latents": [latent.clone() for latent in pictures]}]
        for words, options in prompt(FLUX, pictures, given)
    ]
    with pytest.raises(RuntimeError, match=r"2 of the reference pictures .* no longer in it"):
        sample(patched, FLUX, copied)
    krea = next(tiny for tiny in TINIES if tiny.name == "Krea 2")
    deaf, own = krea.model(), latents(krea)
    said, _ = said_of(krea, own, "both")
    with monkeypatch.context() as patched_model:
        patched_model.setattr(deaf.model.diffusion_model, "default_ref_method", None)
        with pytest.raises(RuntimeError, match="takes no notice of the prompt's reference pictures"):
            sample(reference_regions.install(deaf), krea, prompt(krea, own, said))
    wrong = [replace(one, tokens=one.tokens[:, 1:]) for one in given if one is not None]
    with pytest.raises(RuntimeError, match="another node changes them on the way"):
        sample(patched, FLUX, prompt(FLUX, pictures, wrong))
    wide = [ReferenceRegion(pictures[0], torch.ones(1, counts(FLUX)[0], dtype=torch.bool), RegionMask(torch.ones(1, 64, 256))), None]
    with pytest.raises(ValueError, match="their shapes differ"):
        sample(patched, FLUX, prompt(FLUX, pictures, wide))


def test_a_sampler_that_tells_nothing_of_the_prompts_is_an_error() -> None:
    model, pictures = FLUX.model(), latents(FLUX)
    patched = reference_regions.install(model).clone()
    patched.remove_wrappers_with_key("calc_cond_batch", chain.KEY)
    with pytest.raises(RuntimeError, match="tells nothing of the prompts"):
        sample(patched, FLUX, prompt(FLUX, pictures))


@pytest.mark.parametrize("tiny", [FLUX_2, QWEN], ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("first", ["cache", "ours"])
def test_beside_cores_flux_kv_cache(tiny: Tiny, first: str) -> None:
    """Flux KV Cache, FLUX.2 klein's: from the second step on only the references' keys and values of the first are there."""
    from comfy_extras.nodes_flux import FluxKVCache

    def cached(model: Any) -> Any:
        return FluxKVCache.execute(model).args[0]

    def ours(model: Any) -> Any:
        return reference_regions.install(chain.install(model, *regions(tiny, SIZE)))

    pictures = latents(tiny)
    given, wanted = said_of(tiny, pictures, "both")
    patched = ours(cached(tiny.model())) if first == "cache" else cached(ours(tiny.model()))
    result = sample(patched, tiny, prompt(tiny, pictures, given), steps=3)
    areas = [Area(inside(mask[0], tiny)) for mask in masks(SIZE)]
    told = tiny.tokens(TEXTS, SIZE, counts(tiny))
    asking: set[int] = set()

    def told_of_keys(queries: int, keys: int, options: dict[str, Any]) -> Any:
        asking.add(keys - queries)
        return told(keys, keys, options)

    masked = with_dense(cached(tiny.model()), dense_override(tiny, told_of_keys, lambda _options, batch: [wanted] * batch, areas))
    placed = masked.model_options["transformer_options"].setdefault("patches", {})
    placed["post_input"] = [*tiny.patches(TEXTS)["post_input"], *placed.get("post_input", [])]
    close(result, sample(masked, tiny, with_regions_words(tiny, prompt(tiny, pictures)), steps=3))
    assert asking == {0, sum(counts(tiny))}
    assert not torch.allclose(result, sample(ours(tiny.model()), tiny, prompt(tiny, pictures, given), steps=3), rtol=1e-3)
