"""Hide in Reference against ComfyUI's own encoding, transformers' models of the same weights, and equation 1 written out."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models.clip_vision import patch_visibility
from torch import Tensor

from ...support.clip_vision import (
    FOLDER,
    GRID,
    SMALL,
    as_mask,
    assert_same,
    clip,
    pictures,
    pixels_of,
    random_model,
    random_patches,
    siglip,
    stock,
    token_mask,
    witness,
)

CONFIGS = [
    "clip_vision_config_vitl", "clip_vision_config_vitl_336", "clip_vision_config_h", "clip_vision_config_g",
    "clip_vision_siglip_384",
]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_all_visible_is_comfyuis_encoding_to_the_bit(name: str) -> None:
    """Every encoder ComfyUI knows in its true width, patch and picture size; two layers instead of up to 48, and narrow MLPs."""
    config = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    model = random_model({**config, "num_hidden_layers": 2, "intermediate_size": 256})
    image = torch.rand(1, 90, 120, 3, generator=torch.Generator().manual_seed(1))
    expected = stock(model, image)
    for mode in ("hide", "paper"):
        found = patch_visibility.encode(model, image, torch.ones(1, 90, 120), 0.5, mode, "crop")
        assert_same(found.output, expected)
    assert found.output.visible.all()
    assert found.visible.mean() == ((model.image_size // config["patch_size"]) * config["patch_size"] / model.image_size) ** 2
    assert found.preview.shape == (1, model.image_size, model.image_size, 3)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
@pytest.mark.parametrize("side", [30, 84, 200])
def test_a_square_picture_needs_no_fit(kind: str, fit: str, side: int) -> None:
    model = clip() if kind == "clip" else siglip()
    image = pictures(3, side, side)
    expected = stock(model, image)
    for mode in ("hide", "paper"):
        assert_same(patch_visibility.encode(model, image, torch.ones(3, side, side), 0.0, mode, fit).output, expected)


@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
@settings(max_examples=25, deadline=None)
def test_hide_is_an_attention_mask_over_the_hidden_tokens(seed: int, share: float) -> None:
    """transformers runs all tokens and gives hidden ones minus infinity before the softmax."""
    image = pictures(seed=seed)
    patches = random_patches(1, share, seed)
    found = patch_visibility.encode(clip(), image, as_mask(patches), 0.5, "hide").output
    kept = token_mask(patches, True)
    blocked = torch.where(kept, 0.0, -torch.inf)[:, None, None]
    with torch.no_grad():
        expected = witness("clip")(pixel_values=pixels_of(clip(), image), attention_mask=blocked, output_hidden_states=True)
    assert torch.allclose(found.last_hidden_state, expected.last_hidden_state[kept][None], atol=1e-4)
    assert torch.allclose(found.penultimate_hidden_states, expected.hidden_states[-2][kept][None], atol=1e-4)
    assert torch.allclose(found.image_embeds, expected.image_embeds, atol=1e-4)
    assert found.tokens.tolist() == [kept[0].nonzero()[:, 0].tolist()]
    assert torch.equal(found.visible, patches)


def test_hide_without_a_class_token() -> None:
    image = pictures(1, 87, 87)
    patches = random_patches(1)
    found = patch_visibility.encode(siglip(), image, as_mask(patches, 87), 0.5, "hide").output
    kept = token_mask(patches, False)
    with torch.no_grad():
        blocked = torch.where(kept, 0.0, -torch.inf)[:, None, None]
        expected = witness("siglip")(pixel_values=pixels_of(siglip(), image), attention_mask=blocked, output_hidden_states=True)
    assert torch.allclose(found.last_hidden_state, expected.last_hidden_state[kept][None], atol=1e-4)
    states = torch.stack([state[kept] for state in expected.hidden_states[1:]])
    assert torch.allclose(found.all_hidden_states[0], states, atol=1e-4)
    assert torch.equal(found.image_embeds, found.last_hidden_state)
    assert torch.equal(found.penultimate_hidden_states, found.all_hidden_states[:, -2])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_paper_is_equation_1(kind: str) -> None:
    """z = Projection(I_p * D_p) * D_z, every patch by itself, then positions and layers as transformers has them."""
    model = clip() if kind == "clip" else siglip()
    vision = witness(kind)
    vision = vision.vision_model if kind == "clip" else vision
    image = pictures(2, model.image_size, model.image_size)
    patches = random_patches(2)
    pixels = pixels_of(model, image)
    embeddings = vision.embeddings
    projection = embeddings.patch_embedding.weight.flatten(1)
    bias = embeddings.patch_embedding.bias if embeddings.patch_embedding.bias is not None else 0.0
    z = torch.empty(2, GRID * GRID, 64)
    with torch.no_grad():
        for picture in range(2):
            for index in range(GRID * GRID):
                row, column = divmod(index, GRID)
                flat = pixels[picture, :, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14].flatten()
                d = float(patches[picture, row, column])
                z[picture, index] = (projection @ (flat * d) + bias) * d
        if kind == "clip":
            z = torch.cat((embeddings.class_embedding.expand(2, 1, -1), z), dim=1)
        z = z + embeddings.position_embedding.weight
        last = vision.encoder(inputs_embeds=vision.pre_layrnorm(z) if kind == "clip" else z).last_hidden_state
    found = patch_visibility.encode(model, image, as_mask(patches, model.image_size), 0.5, "paper").output
    if kind == "clip":
        pooled = witness("clip").visual_projection(vision.post_layernorm(last[:, 0]))
        assert torch.allclose(found.image_embeds, pooled, atol=1e-4)
    else:
        last = vision.post_layernorm(last)
    assert torch.allclose(found.last_hidden_state, last, atol=1e-4)
    assert found.tokens.tolist() == [list(range(last.shape[1]))] * 2


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("mode", ["hide", "paper"])
def test_hidden_pixels_cannot_be_seen(kind: str, mode: str) -> None:
    model = clip() if kind == "clip" else siglip()
    size = model.image_size
    patches = random_patches(2, seed=3)
    image = pictures(2, size, size)
    other = pictures(2, size, size, seed=9)
    mask = as_mask(patches, size)
    changed = torch.where(mask[..., None] > 0, image, other)
    first, second = (patch_visibility.encode(model, one, mask, 0.5, mode).output for one in (image, changed))
    assert_same(second, first)
    spot = mask[0].nonzero()[0]
    changed[0, spot[0], spot[1]] = 1 - changed[0, spot[0], spot[1]]
    third = patch_visibility.encode(model, changed, mask, 0.5, mode).output
    assert not torch.equal(third.last_hidden_state[0], first.last_hidden_state[0])
    assert torch.equal(third.last_hidden_state[1], first.last_hidden_state[1])


def test_nothing_visible_is_the_class_token_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        hidden = [patch_visibility.encode(clip(), pictures(seed=seed), torch.zeros(1, 84, 84)).output for seed in (0, 1)]
    assert "picture 1 of 1 is visible: its mask is empty" in caplog.text
    assert hidden[0].last_hidden_state.shape == hidden[0].penultimate_hidden_states.shape == (1, 1, 64)
    assert hidden[0].image_embeds.isfinite().all()
    assert_same(hidden[1], hidden[0])
    vision = witness("clip").vision_model
    with torch.no_grad():
        token = vision.embeddings.class_embedding + vision.embeddings.position_embedding.weight[0]
        last = vision.encoder(inputs_embeds=vision.pre_layrnorm(token[None, None])).last_hidden_state
    assert torch.allclose(hidden[0].last_hidden_state, last, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_nothing_visible_in_paper_mode_is_every_token_without_a_picture(kind: str) -> None:
    model = clip() if kind == "clip" else siglip()
    outputs = [patch_visibility.encode(model, pictures(seed=seed), torch.zeros(1, 84, 84), 0.5, "paper").output for seed in (0, 1)]
    assert outputs[0].last_hidden_state.shape == (1, GRID * GRID + (kind == "clip"), 64)
    assert outputs[0].last_hidden_state.isfinite().all()
    assert_same(outputs[1], outputs[0])


def test_a_siglip_model_cannot_encode_nothing() -> None:
    with pytest.raises(ValueError, match=r"nothing of picture 2 of 2 is visible, and a SigLIP model has no class token .* empty"):
        patch_visibility.encode(siglip(), pictures(2), torch.stack([torch.ones(84, 84), torch.zeros(84, 84)]))


def mixed() -> Tensor:
    """Five sets of patches: 36, 9, 9, 0 and 20 visible."""
    patches = torch.zeros(5, GRID * GRID, dtype=torch.bool)
    for row, count in enumerate((36, 9, 9, 0, 20)):
        patches[row, torch.randperm(36, generator=torch.Generator().manual_seed(row))[:count]] = True
    return patches.view(5, GRID, GRID)


def test_pictures_with_different_counts_are_each_as_if_alone() -> None:
    image = pictures(5)
    patches = mixed()
    runs = []
    handle = clip().model.vision_model.encoder.register_forward_hook(lambda module, inputs, result: runs.append(inputs[0].shape[:2]))
    try:
        found = patch_visibility.encode(clip(), image, as_mask(patches)).output
    finally:
        handle.remove()
    assert [tuple(run) for run in runs] == [(1, 1), (2, 10), (1, 21), (1, 37)]
    assert found.last_hidden_state.shape == found.penultimate_hidden_states.shape == (5, 37, 64)
    for name in ("last_hidden_state", "penultimate_hidden_states"):
        own = patch_visibility.own_tokens(found, name)
        for row in range(5):
            alone = patch_visibility.encode(clip(), image[row : row + 1], as_mask(patches)[row : row + 1]).output
            assert torch.allclose(own[row], getattr(alone, name)[0], atol=1e-5)
            assert torch.allclose(found.image_embeds[row], alone.image_embeds[0], atol=1e-5)
            numbers = found.tokens[row].tolist()
            assert sorted(set(numbers)) == alone.tokens[0].tolist()
            # A repeated token is the token of that number, and nothing else.
            full = torch.full((37, 64), torch.nan).index_copy(0, alone.tokens[0], own[row])
            assert torch.equal(getattr(found, name)[row], full[found.tokens[row]])


def test_a_batch_of_siglip_keeps_every_layer() -> None:
    patches = mixed()[[0, 1, 4]]
    found = patch_visibility.encode(siglip(), pictures(3, 87, 87), as_mask(patches, 87)).output
    assert found.all_hidden_states.shape == (3, 4, 36, 64)
    for row in range(3):
        alone = patch_visibility.encode(siglip(), pictures(3, 87, 87)[row : row + 1], as_mask(patches, 87)[row : row + 1]).output
        assert torch.allclose(found.all_hidden_states[row][:, found.tokens[row].diff(prepend=torch.tensor([-1])) != 0],
                              alone.all_hidden_states[0], atol=1e-5)  # fmt: skip


@given(st.integers(1, 60), st.integers(0, 60), st.booleans())
def test_repeats_are_even_and_in_order(own: int, more: int, has_class: bool) -> None:
    tokens = torch.arange(own) * 3
    found = patch_visibility._spread(tokens, has_class, own + more)
    assert len(found) == own + more
    assert torch.equal(found, found.sort().values)
    times = torch.stack([(found == token).sum() for token in tokens])
    assert times.min() >= 1
    patches = times[1:] if has_class and own > 1 else times
    assert patches.max() - patches.min() <= 1
    assert not (has_class and own > 1) or times[0] == 1
    if not more:
        assert torch.equal(found, tokens)


def test_llava_tokens_are_the_visible_ones() -> None:
    model = random_model({**SMALL, "projector_type": "llava3"})
    patches = mixed()
    found = patch_visibility.encode(model, pictures(5), as_mask(patches)).output
    assert found.mm_projected.shape == (5, 36, 4096)
    assert_same(patch_visibility.encode(model, pictures(), torch.ones(1, 84, 84)).output, stock(model, pictures()))
    alone = patch_visibility.encode(model, pictures(5)[1:2], as_mask(patches)[1:2]).output
    assert alone.mm_projected.shape == (1, 9, 4096)
    first = found.tokens[1].diff(prepend=torch.tensor([-1]))[1:] != 0
    assert torch.allclose(found.mm_projected[1][first], alone.mm_projected[0], atol=1e-4)
