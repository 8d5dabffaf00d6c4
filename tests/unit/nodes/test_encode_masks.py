"""Pose by Masks and Load Poseable Subjects, called as ComfyUI calls them, in a real sampler on a small model of random weights."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from comfy.conds import CONDCrossAttn
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.attention import ip_adapter_layers
from maskprompt.conditioning import mask_tokens
from maskprompt.conditioning.handles import Handle

from ...support.mask_encoders import CAT, DOG, blobs
from ...support.masked_sampling import small_sdxl
from ...support.mcgm import WIDTH, encoded, encoder, painted, passes, text

BIRD = Handle("fox-bird", "bird")


@pytest.mark.parametrize("masks", [None, torch.zeros(0, 64, 64)])
def test_no_mask_is_plain_sampling_to_the_bit(model: Any, masks: Any) -> None:
    positive = [text(1)]
    negative = [text(2)]
    before = painted(model, (positive, negative))
    result = encoded(masks, positive, negative)
    assert result[0] is positive
    assert result[1] is negative
    assert torch.equal(painted(model, result), before)
    assert encoded(blobs(2, 64, 64), positive, negative, strength=0.0) == (positive, negative)
    assert (painted(model, encoded(blobs(2, 64, 64), positive, negative)) - before).abs().max() > 1e-2
    assert torch.equal(painted(model, (positive, negative)), before)


def test_tokens_stand_after_the_words_and_all_else_stays() -> None:
    pooled = torch.randn(1, 16)
    control = object()
    positive = [text(1, pooled_output=pooled, control=control, start_percent=0.5), text(3, length=154, strength=0.5)]
    negative = [text(2, pooled_output=pooled)]
    before = [(entry[0].clone(), dict(entry[1])) for entry in [*positive, *negative]]
    masks = blobs(3, 96, 72)
    loaded = encoder(known=(CAT, DOG, BIRD))
    masks[1] = 0
    new_positive, new_negative = encoded(masks, positive, negative, loaded, strength=0.5)
    wanted = 0.5 * loaded.network(masks)
    assert torch.equal(new_positive[0][0], torch.cat([positive[0][0], wanted[None]], 1))
    assert torch.equal(new_positive[1][0], torch.cat([positive[1][0], wanted[None], wanted[None]], 1))
    assert torch.equal(new_negative[0][0], torch.cat([negative[0][0], torch.zeros(1, 3, WIDTH)], 1))
    assert torch.equal(wanted[1], torch.zeros(WIDTH))
    for (old, options), (new, found) in zip([*positive, *negative], [*new_positive, *new_negative], strict=True):
        place = found.pop(mask_tokens.PLACES)
        assert place == ((old.shape[1], 3, old.shape[1] // 77),)
        assert torch.equal(new[:, : old.shape[1]], old)
        assert found.keys() == options.keys()
        assert all(found[name] is options[name] for name in options)
    for (old, options), entry in zip(before, [*positive, *negative], strict=True):
        assert torch.equal(entry[0], old)
        assert entry[1] == options


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([77, 154, 231, 385]) | st.sampled_from([50, 100, 150]), min_size=1, max_size=3),
    st.lists(st.sampled_from([77, 154, 308]) | st.sampled_from([50, 100]), min_size=1, max_size=2),
    st.integers(1, 5),
)
def test_texts_that_ran_together_still_do(positive: list[int], negative: list[int], count: int) -> None:
    """ComfyUI's own rule, before and after, for every pair; and the halves have their share of mask tokens."""
    loaded = encoder(8, known=(CAT,) * count)
    result = encoded(blobs(count, 64, 64), [text(1, n, 8) for n in positive], [text(2, n, 8) for n in negative], loaded)
    lengths = [*positive, *negative]
    after = [entry[0].shape[1] for half in result for entry in half]
    assert all((new - old) % count == 0 and new > old for old, new in zip(lengths, after, strict=True))
    regular = all(length % 77 == 0 for length in lengths) or all(length % 50 == 0 for length in lengths)
    for one, other in itertools.combinations(range(len(after)), 2) if regular else ():
        together = [
            CONDCrossAttn(torch.zeros(1, n[one], 8)).can_concat(CONDCrossAttn(torch.zeros(1, n[other], 8))) for n in (lengths, after)
        ]
        assert together[1] or not together[0]
        if lengths[one] == lengths[other]:
            assert after[one] == after[other]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("long", "short"), [(77, 77), (154, 77), (77, 154), (385, 77), (231, 154)])
def test_positive_and_negative_run_in_one_batch(model: Any, long: int, short: int, count: int) -> None:
    """Counted in the UNet: never more passes than without masks, which is one but for prompts of five times the other's length."""
    positive = [text(1, long)]
    negative = [text(2, short)]
    known = (CAT, DOG, BIRD)
    plain = passes(model, (positive, negative))
    with_masks = passes(model, encoded(blobs(count, 64, 64), positive, negative, encoder(known=known)))
    assert len(with_masks) == len(plain) == (1 if max(long, short) <= 4 * min(long, short) else 2)
    assert sum(pictures for pictures, _ in with_masks) == 2
    if long == short == 77:
        assert with_masks == [(2, 77 + count)]
        one_sided = passes(model, (encoded(blobs(count, 64, 64), positive, loaded=encoder(known=known))[0], negative))
        assert len(one_sided) == 2  # what the zero tokens are for


def test_several_texts_with_areas_run_in_as_many_passes_as_before(model: Any) -> None:
    positive = [text(1, start_percent=0.0, end_percent=0.6), text(3, area=("percentage", 1.0, 0.5, 0.0, 0.5), strength=0.8),
                text(4, 154), text(5, start_percent=0.6, end_percent=1.0)]  # fmt: skip
    masks = blobs(2, 128, 128)
    plain = passes(model, (positive, [text(2)]))
    result = encoded(masks, positive)
    assert [pictures for pictures, _ in passes(model, result)] == [pictures for pictures, _ in plain]
    assert torch.isfinite(painted(model, result)).all()


def test_repeated_texts_with_their_tokens_attend_as_once(model: Any) -> None:
    """Why a prompt of 154 tokens gets its masks twice: a text that ComfyUI repeats beside it still attends as it did."""
    attention = ip_adapter_layers.cross_attention(model.get_model_object("diffusion_model"))[7]
    words = text(1)[0]
    tokens = encoder().network(blobs(2, 64, 64))
    x = torch.randn(1, 20, attention.to_q.in_features)
    once = attention(x, mask_tokens.append(words, tokens, 77))
    torch.testing.assert_close(attention(x, mask_tokens.append(words.repeat(1, 2, 1), tokens, 77)), once, atol=1e-5, rtol=1e-5)
    assert (attention(x, torch.cat([words.repeat(1, 2, 1), tokens[None]], 1)) - once).abs().max() > 1e-4


@pytest.mark.parametrize("blanks", [1, 3])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_what_a_zero_token_does_to_the_attention(model: Any, blanks: int, scale: float) -> None:
    """Measured in every layer against a dense softmax: exp(0) = 1 more in the denominator and nothing in the sum, so the words' part of the
    result shrinks to Z / (Z + n), where Z is the sum of the words' e^logit."""
    shares: list[float] = []
    for attention in ip_adapter_layers.cross_attention(model.get_model_object("diffusion_model")).values():
        x = torch.randn(1, 20, attention.to_q.in_features, generator=torch.Generator().manual_seed(3))
        words = scale * text(1)[0]
        q, k, v = (
            layer(given).unflatten(-1, (attention.heads, -1)).transpose(1, 2).double()
            for layer, given in ((attention.to_q, x), (attention.to_k, words), (attention.to_v, words))
        )
        exponentials = (q @ k.mT / q.shape[-1] ** 0.5).exp()
        total = exponentials.sum(-1, keepdim=True)
        plain = exponentials / total @ v
        kept = total / (total + blanks)
        wanted = attention.to_out((plain * kept).transpose(1, 2).flatten(2).float())
        with_blanks = attention(x, mask_tokens.append(words, torch.zeros(blanks, WIDTH), 77))
        torch.testing.assert_close(with_blanks, wanted, atol=1e-5, rtol=1e-4)
        shares.append(float((1 - kept).mean()))
    assert all(0 < share <= blanks / (77 + blanks) + 0.01 for share in shares)
    assert scale > 1 or sum(shares) / len(shares) > 0.8 * blanks / (77 + blanks)  # as much as any word, where no word stands out


def test_each_choice_makes_a_picture_of_its_own(model: Any) -> None:
    one = blobs(2, 128, 128)
    other = blobs(2, 128, 128, seed=5)
    choices: list[tuple[torch.Tensor, dict[str, Any]]] = [
        (one, {}), (other, {}), (one[:1], {}), (one, {"strength": 0.5}), (one, {"strength": 2.0}), (torch.zeros(2, 128, 128), {}),
        (torch.zeros(1, 128, 128), {}), (one, {"loaded": encoder(subjects=2)}),
    ]  # fmt: skip
    found = [painted(model, ([text(1)], [text(2)]))] + [painted(model, encoded(masks, **more)) for masks, more in choices]
    for index, result in enumerate(found):
        assert torch.isfinite(result).all()
        assert not any(torch.equal(result, earlier) for earlier in found[:index]), index
    assert torch.equal(found[1], painted(model, encoded(one)))


def test_the_order_of_masks_matters_only_to_a_bound_encoder(model: Any) -> None:
    """Cross-attention knows no order, so the paper's network cannot tell whose mask it is (but for rounding)."""
    masks = blobs(2, 128, 128)
    for subjects in (0, 2):
        given, swapped = (painted(model, encoded(drawn, loaded=encoder(subjects=subjects))) for drawn in (masks, masks.flip(0)))
        assert ((given - swapped).abs().max() > 1e-2) == (subjects > 0)


def test_masks_follow_the_handles_in_the_prompt() -> None:
    """With a bound encoder, whose tokens say whose mask it is."""
    loaded = encoder(subjects=2)
    masks = blobs(2, 64, 64)

    def rows(prompt: str | None, count: int = 2) -> torch.Tensor:
        return encoded(masks[:count], loaded=loaded, prompt=prompt)[0][0][0][0, 77:]

    in_order = loaded.network(masks, [0, 1])
    turned = loaded.network(masks, [1, 0])
    assert torch.equal(rows(None), in_order)
    assert torch.equal(rows("  "), in_order)
    assert torch.equal(rows("a photo of embedding:fox-cat and embedding:fox-dog"), in_order)
    assert torch.equal(rows("(embedding:fox-dog:1.1), embedding:fox-cat"), turned)
    assert torch.equal(rows("embedding:fox-dog, embedding:fox-cat", 1), turned[:1])
    assert torch.equal(rows("embedding:fox-cat, embedding:fox-cat"), loaded.network(masks, [0, 0]))
    assert torch.equal(rows("a striped dog and a cat"), loaded.network(masks, [None, None]))  # the words, not the learned subjects


@pytest.mark.parametrize("size", [(24, 40), (31, 41), (9, 7)])
def test_any_size_and_a_batch_of_pictures(model: Any, size: tuple[int, int]) -> None:
    result = encoded(blobs(2, size[0] * 8, size[1] * 8))
    assert painted(model, result, size, steps=1).shape[-2:] == size
    together = painted(model, result, size, batch=2, steps=1)
    assert torch.isfinite(together).all()


def test_sdxl_and_half_precision_texts() -> None:
    """SDXL's blocks with their pooled outputs; texts of another precision and batch keep both."""
    model = small_sdxl()
    pooled: dict[str, Any] = {"pooled_output": torch.randn(1, 16)}
    positive = [text(1, **pooled)]
    negative = [text(2, **pooled)]
    result = encoded(blobs(2, 104, 176), positive, negative)
    assert result[0][0][1]["pooled_output"] is pooled["pooled_output"]
    picture = painted(model, result, (13, 22))
    assert (picture - painted(model, (positive, negative), (13, 22))).abs().max() > 1e-4
    halves = [[torch.randn(3, 77, WIDTH).half(), {}]]
    found, _ = encoded(blobs(2, 64, 64), halves)
    assert found[0][0].dtype == torch.float16
    assert torch.equal(found[0][0][:, 77:], encoder().network(blobs(2, 64, 64)).half().expand(3, -1, -1))


@pytest.mark.parametrize(
    ("area", "part"),
    [
        (("percentage", 0.5, 0.25, 0.5, 0.75), (slice(64, 128), slice(96, 128))),
        (("percentage", 1, 0.25, 0.25, 0, 0.75, 0.75), (slice(96, 128), slice(96, 128))),  # with frames, as for video
        ((8, 4, 0, 12), (slice(0, 64), slice(96, 128))),
    ],
)
def test_a_prompt_with_an_area_sees_its_part_of_the_masks(area: Any, part: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The UNet then paints that part alone, as the picture that the mask token speaks of."""
    masks = blobs(2, 128, 128)
    loaded = encoder()
    with caplog.at_level(logging.WARNING):
        positive, negative = encoded(masks, [text(1, area=area), text(3)], loaded=loaded)
    assert torch.equal(positive[0][0][0, 77:], loaded.network(masks[:, part[0], part[1]]))
    assert torch.equal(positive[1][0][0, 77:], loaded.network(masks))
    assert not negative[0][0][:, 77:].any()
    assert ("are taken to have the picture's own size" in caplog.text) == (area[0] != "percentage")


def test_masks_in_any_form() -> None:
    masks = blobs(1, 61, 83)
    wanted = encoded(masks)[0][0][0]
    for form in (masks[0], masks[:, None], masks[..., None], masks.bool(), (masks * 255).byte(), masks * 0.98):
        assert torch.equal(encoded(form)[0][0][0], wanted)


def test_empty_thin_and_overlapping_masks_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    masks = torch.zeros(4, 512, 512)
    masks[0, :300] = 1
    masks[1, 200:] = 1
    masks[3, 7] = 1
    with caplog.at_level(logging.WARNING):
        positive, _ = encoded(masks, loaded=encoder(known=(CAT, DOG, BIRD, CAT)))
    assert positive[0][0].shape[1] == 81
    assert "mask 3 has nothing in it" in caplog.text
    assert "mask 4 has shapes too thin" in caplog.text
    assert "masks 1 and 2 share 32 % of the smaller one" in caplog.text
    assert len(caplog.records) == 3


def test_what_cannot_be_done_is_refused_in_words() -> None:
    two = blobs(2, 64, 64)
    xl = encoder(2048)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"loaded": xl, "positive": [text(1, width=768)]}, r"text of width 2048 \(SDXL\), but .* with width 768 \(SD 1.5\)"),
        ({"loaded": xl, "positive": [text(1, width=2048)], "negative": [text(1, width=1024)]}, r"encoded with width 1024 \(SD 2.1\)"),
        ({"masks": blobs(3, 64, 64)}, "there are 3 masks, but 'fox.safetensors' knows 2 subjects .embedding:fox-cat and embedding:fox-dog"),
        ({"prompt": "a photo of embedding:fox-cat"}, r"are 2 masks, but the prompt names 1 subject .* does not name embedding:fox-dog"),
        (
            {"masks": two[:1], "prompt": "a fish"},
            r"there is 1 mask, but .* no subjects .*embedding:fox-cat \(or 'cat'\), embedding:fox-dog",
        ),
        ({"masks": two[:1], "prompt": "see embedding:fox-cat."}, "with a space before and after it"),
        ({"masks": torch.zeros(1, 8, 8, 3)}, "masks: a mask has the shape"),
        ({"positive": [text(1, mask=two[:1], set_area_to_bounds=True)]}, "set_cond_area.*Set it to 'default'"),
        ({"positive": [text(1, area=(8, 8, 0, 4))]}, r"area of 64 x 64 pixels at x=32, y=0, which does not fit into the masks \(64 x 64\)"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            encoded(**{"masks": two, **changes})
