"""References with regions on every family that takes references, in ComfyUI's own sampler, against a dense mask written out here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from maskprompt.attention import chain, prompt_regions, reference_regions
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.reference_regions import ReferenceRegion

from ...support import dense
from ...support.dense import Area
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, close, masks, regions, text_of

SIZE = (9, 11)
WITH_REFERENCES = [tiny for tiny in TINIES if tiny.references]
takers = pytest.mark.parametrize("tiny", WITH_REFERENCES, ids=lambda tiny: tiny.name)
FLUX = next(tiny for tiny in TINIES if tiny.name == "Flux.1")
Token = tuple[Any, ...]


@dataclass(frozen=True)
class Reference:
    """A reference as the test knows it: its tokens that may be seen, its cells (None: all), its strength."""

    tokens: torch.Tensor
    cells: torch.Tensor | None = None
    strength: float = 1.0


def sizes(tiny: Tiny) -> tuple[tuple[int, int], ...]:
    """Of the references' latents: an even one and an odd one, which core's Z-Image does not take."""
    return (6, 8), (4, 10) if tiny.name.startswith("Z-Image") else (5, 7)


def counts(tiny: Tiny) -> tuple[int, ...]:
    return tuple(math.prod(tiny.grid(size)[1:]) for size in sizes(tiny))


def latents(tiny: Tiny, batch: int = 1) -> list[torch.Tensor]:
    return [tiny.latent(size, batch, seed=30 + number) for number, size in enumerate(sizes(tiny))]


def inside(mask: torch.Tensor, tiny: Tiny) -> torch.Tensor:
    """The cells of which a mask [H, W] covers half or more."""
    _, rows, columns = tiny.grid(SIZE)
    pixels = 8 * tiny.patch
    return torch.tensor([
        bool(mask[i * pixels : (i + 1) * pixels, j * pixels : (j + 1) * pixels].mean() >= 0.5) for i in range(rows) for j in range(columns)
    ])  # fmt: skip


def left_seen(tiny: Tiny, size: tuple[int, int]) -> torch.Tensor:
    """The left half of a reference's tokens, bool [tokens]."""
    _, rows, columns = tiny.grid(size)
    return (torch.arange(columns) < (columns + 1) // 2).repeat(rows)


def detailed(tokens: Sequence[dense.Token], counted: Sequence[int], captions: int) -> list[Token]:
    """Tokens with a reference's own told apart: ("shown", number, place), ("caption", number) for captions and filling, ("other",)."""
    found: list[Token] = []
    words = any(token[0] == "words" for token in tokens)
    seen = [0] * len(counted)
    behind = False
    for token in tokens:
        behind = behind or token[0] == "cells"
        if token[0] != "reference" or token[1] < 0:
            found.append(token)
            continue
        number = token[1]
        place = seen[number] - (captions if words else 0)
        seen[number] += 1
        if captions and behind:
            found.append(("other",))
        elif 0 <= place < counted[number]:
            found.append(("shown", number, place))
        else:
            found.append(("caption", number))
    return found


def hidden(token: Token, references: Sequence[Reference]) -> bool:
    return token[0] == "shown" and not references[token[1]].tokens[token[2]]


def sees(query: Token, key: Token, references: Sequence[Reference], there: Sequence[bool]) -> bool:
    """Whether a token sees another if the references `there` are."""
    if hidden(query, references) or hidden(key, references):
        return False
    mine = query[1] if query[0] in ("shown", "caption") else None
    theirs = key[1] if key[0] in ("shown", "caption") else None
    if theirs is not None and theirs != mine:
        if not there[theirs]:
            return False
        cells = references[theirs].cells
        return cells is None or (query[0] == "cells" and bool(cells[query[1]]))
    if mine is not None and key[0] == "cells":
        cells = references[mine].cells
        return cells is None or bool(cells[key[1]])
    return True


def blended(references: Sequence[Reference]) -> list[tuple[float, list[bool]]]:
    """Linear between the strengths, strongest first; a reference of strength 1 without a rule is always there."""
    levels = sorted({one.strength for one in references}, reverse=True)
    parts = [(1 - levels[0], [False] * len(references))]
    for level, lower in zip(levels, [*levels[1:], 0.0], strict=True):
        parts.append((level - lower, [one.strength >= level for one in references]))
    return [(weight, there) for weight, there in parts if weight]


def dense_override(tiny: Tiny, told: Any, rows: Callable[[dict[str, Any], int], Sequence[Any]], areas: Sequence[Area] = ()) -> Any:
    """An attention override with a dense mask: `rows` gives each row's references, None for a row that is left alone."""
    counted = counts(tiny)
    captions = 32 if tiny.name.startswith("Z-Image") else 0
    known: dict[Any, torch.Tensor] = {}

    def mask_of(tokens: Any, references: Any, there: list[bool]) -> torch.Tensor:
        key = (tuple(tokens[0]), id(references), *there)
        if key not in known:
            every = detailed(tokens[0], counted, captions)
            classes = sorted(set(every), key=str)
            # Words are many and all alike, so who sees whom is asked once for each kind of token.
            seen = torch.tensor([[sees(query, key, references, there) for key in classes] for query in classes])
            index = torch.tensor([classes.index(token) for token in every])
            known[key] = seen[index][:, index]
        return known[key]

    def attend(func: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, *_: Any, **kwargs: Any) -> torch.Tensor:
        parts = [q, k, v] if kwargs.get("skip_reshape") else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        options = kwargs.get("transformer_options") or {}
        tokens = told(parts[0].shape[2], parts[1].shape[2], options)
        if tokens is None:
            return func(q, k, v, heads, mask, *_, **kwargs)
        results = []
        for row, references in enumerate(rows(options, len(q))):
            alone = [x[row : row + 1] for x in parts]
            looks = [(1.0, None)] if references is None else blended(references)
            total = torch.zeros_like(alone[0])
            for weight, there in looks:
                seen = torch.ones(len(tokens[0]), len(tokens[0]), dtype=torch.bool)
                if there is not None:
                    seen = mask_of(tokens, references, there)
                if areas:
                    seen = seen & dense.mask_of(tokens[0], tokens[1], areas, [True] * len(areas))
                total = total + weight * dense.softmax_attention(alone[0], alone[1], alone[2], seen)
            results.append(total)
        result = torch.cat(results)
        return result if kwargs.get("skip_output_reshape") else result.transpose(1, 2).flatten(2)

    return attend


def sample(model: Any, tiny: Tiny, positive: Any, batch: int = 1, cfg: float = 1.0, negative: Any = None, steps: int = 2) -> torch.Tensor:
    """Through ComfyUI's KSampler."""
    import comfy.sample

    noise = tiny.latent(SIZE, batch)
    other = [[tiny.words(TEXTS[0], 90), {**tiny.options}]] if negative is None else negative
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive, other, torch.zeros_like(noise), seed=3, disable_pbar=True
    )  # fmt: skip


def with_dense(model: Any, override: Any) -> Any:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def prompt(tiny: Tiny, pictures: Sequence[torch.Tensor], said: Sequence[ReferenceRegion | None] = (), **options: Any) -> list[Any]:
    """A CONDITIONING with references as core has them, and with what was said of them."""
    conditioning: list[Any] = [[text_of(tiny), {**tiny.options, **options}]]
    for number, picture in enumerate(pictures):
        region = said[number] if said else None
        conditioning = reference_regions.with_reference(conditioning, picture, region)
    return conditioning


def said_of(tiny: Tiny, pictures: Sequence[torch.Tensor], case: str) -> tuple[list[ReferenceRegion | None], list[Reference]]:
    """What a case says of two references, to the pack and to the test's own formula."""
    left, lower = masks(SIZE)
    all_seen = [torch.ones(count, dtype=torch.bool) for count in counts(tiny)]
    half = [left_seen(tiny, size) for size in sizes(tiny)]
    wanted = {
        "regions": [Reference(all_seen[0], inside(left[0], tiny)), Reference(all_seen[1], inside(lower[0], tiny))],
        "hidden": [Reference(half[0]), Reference(all_seen[1])],
        "both": [Reference(half[0], inside(left[0], tiny)), Reference(half[1], inside(lower[0], tiny))],
        "one": [Reference(all_seen[0]), Reference(half[1], inside(lower[0], tiny))],
        "strengths": [Reference(half[0], inside(left[0], tiny), 0.4), Reference(all_seen[1], inside(lower[0], tiny), 1.3)],
    }[case]
    given: list[ReferenceRegion | None] = []
    for picture, one, mask in zip(pictures, wanted, (left, lower), strict=True):
        free = one.cells is None and bool(one.tokens.all())
        region = ReferenceRegion(picture, one.tokens[None], None if one.cells is None else RegionMask(mask), one.strength)
        given.append(None if free else region)
    return given, wanted


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


@takers
def test_beside_prompt_regions(tiny: Tiny) -> None:
    """Texts with regions and references with regions in one call: a token sees another if both rules let it."""
    model, pictures = tiny.model(), latents(tiny)
    given, wanted = said_of(tiny, pictures, "both")
    patched = reference_regions.install(chain.install(model, *regions(tiny, SIZE)))
    result = sample(patched, tiny, prompt(tiny, pictures, given))
    areas = [Area(inside(mask[0], tiny)) for mask in masks(SIZE)]
    padded = torch.nn.functional.pad(text_of(tiny), (0, 0, max(0, tiny.padded - TEXTS[0]), 0))
    words = torch.cat([padded, tiny.words(TEXTS[1], 20), tiny.words(TEXTS[2], 21)], dim=1)
    told = tiny.tokens(TEXTS, SIZE, counts(tiny))
    masked = with_dense(model, dense_override(tiny, told, lambda _options, batch: [wanted] * batch, areas))
    if tiny.positions is not None:
        masked.model_options["transformer_options"].setdefault("patches", {})["post_input"] = [tiny.positions(TEXTS)]
    plain = [[words, entry[1]] for entry in prompt(tiny, pictures)]
    close(result, sample(masked, tiny, plain))


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
    """By the method "index" the picture is then what it is without the reference; a noise level that it covers is another."""
    model, pictures = FLUX.model(), latents(FLUX)[:1]
    every = torch.ones(1, counts(FLUX)[0], dtype=torch.bool)
    patched = reference_regions.install(model)

    def run(start: float, end: float) -> torch.Tensor:
        region = ReferenceRegion(pictures[0], every, None, 1.0, start, end)
        return sample(patched, FLUX, prompt(FLUX, pictures, [region]), steps=1)

    close(run(-1.0, -2.0), sample(model, FLUX, prompt(FLUX, []), steps=1))
    assert torch.equal(run(2.0, 0.0), sample(model, FLUX, prompt(FLUX, pictures), steps=1))


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
