"""Patch Visibility against ComfyUI's own encoding, transformers' models of the same weights, and equation 1 written out."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.model_management as management
import pytest
import torch
from comfy.clip_model import clip_preprocess
from comfy.clip_vision import ClipVisionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models.clip_vision import patch_grid, patch_visibility
from maskprompt.nodes.patch_visibility import PatchVisibility
from torch import Tensor

FOLDER = Path(comfy.clip_vision.__file__).parent
CONFIGS = [
    "clip_vision_config_vitl", "clip_vision_config_vitl_336", "clip_vision_config_h", "clip_vision_config_g",
    "clip_vision_siglip_384",
]  # fmt: skip
SMALL: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4,
    "num_channels": 3, "patch_size": 14, "image_size": 84, "projection_dim": 32, "hidden_act": "quick_gelu",
}  # fmt: skip
SIGLIP: dict[str, Any] = {**SMALL, "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "image_size": 87}
del SIGLIP["projection_dim"]
GRID = 6


def random_model(config: dict[str, Any], seed: int = 0) -> ClipVisionModel:
    """A CLIP_VISION of random weights: every layer matters, no activation grows."""
    model = ClipVisionModel(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in model.get_sd().items():
        scale = 0.1 if value.ndim == 1 else value[0].numel() ** -0.5
        weights[name] = torch.randn(value.shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
        weights[name] = weights[name].to(value.dtype)
    model.load_sd(weights)
    return model


@cache
def clip() -> ClipVisionModel:
    return random_model(SMALL)


@cache
def siglip() -> ClipVisionModel:
    return random_model(SIGLIP)


@cache
def witness(kind: str) -> Any:
    """transformers' model with the same weights, in float32, attention written out."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

    ours, options = (clip(), SMALL) if kind == "clip" else (siglip(), SIGLIP)
    options = {**options, "attn_implementation": "eager", "layer_norm_eps": 1e-5}
    weights = {name: value.float() for name, value in ours.get_sd().items()}
    if kind == "clip":
        model: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**options))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**options, vision_use_head=False))
        weights = {name.removeprefix("vision_model."): value for name, value in weights.items()}
    model.load_state_dict(weights)
    return model.eval()


def pictures(count: int = 1, height: int = 84, width: int = 84, seed: int = 0) -> Tensor:
    """Noise of whole 255ths: at the encoder's size it passes preprocessing unchanged."""
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(seed)) / 255


def random_patches(count: int, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(count, GRID, GRID, generator=torch.Generator().manual_seed(seed)) < share


def as_mask(patches: Tensor, size: int = 84) -> Tensor:
    """A MASK of exactly these patches."""
    return patch_grid.enlarged(patches, size, 14).float()


def pixels_of(model: ClipVisionModel, image: Tensor) -> Tensor:
    return clip_preprocess(image, size=model.image_size, mean=model.image_mean, std=model.image_std)


def stock(model: ClipVisionModel, image: Tensor) -> Any:
    with torch.no_grad():
        return model.encode_image(image)


def token_mask(patches: Tensor, has_class: bool) -> Tensor:
    """[B, tokens] bool: the class token and the visible patches."""
    return torch.cat((torch.ones(len(patches), int(has_class), dtype=torch.bool), patches.flatten(1)), dim=1)


def assert_same(found: Any, expected: Any) -> None:
    """Every attribute of a stock output, bit by bit."""
    for name, value in vars(expected).items():
        given = getattr(found, name)
        assert torch.equal(given, value) if isinstance(value, Tensor) else given == value, name


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


def test_one_picture_with_several_masks_and_one_mask_for_all() -> None:
    image = pictures()
    patches = random_patches(3)
    several = patch_visibility.encode(clip(), image, as_mask(patches))
    repeated = patch_visibility.encode(clip(), image.expand(3, -1, -1, -1), as_mask(patches))
    assert_same(several.output, repeated.output)
    assert several.preview.shape == (3, 84, 84, 3)
    one = patch_visibility.encode(clip(), pictures(3), as_mask(patches[:1]))
    assert torch.equal(one.output.visible, patches[:1].expand(3, -1, -1))
    assert torch.equal(one.visible, as_mask(patches[:1]).expand(3, -1, -1))


@pytest.mark.parametrize("height", [84, 83, 41, 250])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_the_mask_follows_the_picture(height: int, fit: str) -> None:
    """The mask painted as a picture: what the encoder's own pixels of it say of every patch is what the node says."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(131) / 131, indexing="ij")
    mask = ((y > 0.3) & (x < 0.62)).float()[None]
    whole = torch.ones_like(mask)
    white, drawn = (patch_visibility.encode(clip(), one[..., None], whole, 1.0, "hide", fit).preview[0, ..., 0] for one in (whole, mask))
    means = torch.where(white > 0.99, drawn, 0.0).view(GRID, 14, GRID, 14).mean((1, 3))
    for threshold in (0.05, 0.5, 0.95):
        seen = patch_visibility.encode(clip(), mask[..., None], mask, threshold, "hide", fit).output.visible[0]
        clear = (1 - means - threshold).abs() > 0.03
        assert torch.equal(seen[clear], (1 - means < threshold)[clear])
        assert clear.float().mean() > 0.8
    assert 0 < seen.sum() < GRID * GRID


def test_the_preview_is_the_picture_that_was_encoded() -> None:
    image = pictures(2, 100, 150)
    patches = random_patches(1)
    mask = as_mask(patches).repeat_interleave(3, 2)[:, :, 63:189]  # of the middle: 126 columns stand for 150
    found = patch_visibility.encode(clip(), image, mask, 0.5, "paper")
    expected = pixels_of(clip(), image) * torch.tensor(clip().image_std).view(3, 1, 1) + torch.tensor(clip().image_mean).view(3, 1, 1)
    shown = found.visible > 0
    assert torch.allclose(found.preview[shown], expected.movedim(1, -1)[shown], atol=1e-6)
    assert (found.preview[~shown] == patch_grid.GREY).all()


def test_letterbox_bars_are_as_good_as_not_there() -> None:
    """A picture of 2:1 in the middle of grey, encoded whole with its mask, against letterbox; bars are zero after normalisation."""
    image = pictures(1, 42, 84)
    found = patch_visibility.encode(clip(), image, torch.ones(1, 42, 84), 0.5, "hide", "letterbox").output
    assert found.visible[0].all(1).tolist() == [False, True, True, True, True, False]
    squared = torch.nn.functional.pad(image.movedim(-1, 1), (0, 0, 21, 21)).movedim(1, -1)
    pixels = pixels_of(clip(), squared)
    pixels[:, :, :21] = 0
    pixels[:, :, 63:] = 0
    kept = token_mask(found.visible, True)
    blocked = torch.where(kept, 0.0, -torch.inf)[:, None, None]
    with torch.no_grad():
        expected = witness("clip")(pixel_values=pixels, attention_mask=blocked)
    assert torch.allclose(found.last_hidden_state, expected.last_hidden_state[kept][None], atol=1e-4)


def test_masks_and_pictures_in_every_form() -> None:
    patches = random_patches(1)
    grey = pictures()[..., :1]
    expected = patch_visibility.encode(clip(), grey.expand(-1, -1, -1, 3), as_mask(patches)).output
    large = as_mask(patches).repeat_interleave(5, 1).repeat_interleave(5, 2)
    for mask in (as_mask(patches)[0], as_mask(patches)[:, None], as_mask(patches) * 0.98, as_mask(patches).byte() * 255, large):
        assert_same(patch_visibility.encode(clip(), grey, mask).output, expected)
    alpha = torch.cat((grey.expand(-1, -1, -1, 3), torch.rand(1, 84, 84, 1)), dim=-1)
    assert_same(patch_visibility.encode(clip(), alpha, as_mask(patches)).output, expected)


def test_the_crop_warns_of_what_it_cuts_off(caplog: pytest.LogCaptureFixture) -> None:
    mask = torch.zeros(1, 100, 300)
    mask[..., 60:140] = 1
    with caplog.at_level(logging.WARNING):
        patch_visibility.encode(clip(), pictures(1, 100, 300), mask)
        assert "the crop cuts off 50 % of a mask; fit letterbox" in caplog.text
        caplog.clear()
        patch_visibility.encode(clip(), pictures(1, 100, 300), mask, 0.5, "hide", "letterbox")
        patch_visibility.encode(clip(), pictures(1, 100, 100), mask[..., :100])
        assert not caplog.records
        patch_visibility.encode(clip(), pictures(1, 100, 300), mask.roll(-60, 2))
        assert "its mask lies beside the centre crop: choose fit letterbox" in caplog.text
        caplog.clear()
        mask = torch.zeros(1, 84, 84)
        mask[:, 40:44, 10:70] = 1
        patch_visibility.encode(clip(), pictures(), mask)
        assert "no patch has enough of its mask: raise threshold" in caplog.text


def test_a_run_leaves_the_model_as_it_was() -> None:
    model = random_model(SMALL, seed=5)
    image = pictures()
    before = {name: value.clone() for name, value in model.get_sd().items()}
    expected = stock(model, image)
    management.unload_all_models()
    found = patch_visibility.encode(model, image, as_mask(random_patches(1)))
    assert any(patcher is model.patcher for patcher in management.loaded_models())
    assert not any(value.requires_grad for value in vars(found.output).values() if isinstance(value, Tensor))
    assert all(torch.equal(before[name], value) for name, value in model.get_sd().items())
    assert_same(stock(model, image), expected)


def refused(message: str, **changes: Any) -> None:
    inputs = {"clip_vision": clip(), "image": pictures(), "mask": torch.ones(1, 84, 84), "threshold": 0.5, "mode": "hide", "fit": "crop"}
    with pytest.raises(ValueError, match=message):
        PatchVisibility.execute(**{**inputs, **changes})


def test_bad_input_is_refused_in_words() -> None:
    naflex = json.loads((FOLDER / "clip_vision_siglip2_base_naflex.json").read_text("utf-8"))
    dino = json.loads((FOLDER / "image_encoders" / "dino2_large.json").read_text("utf-8"))
    refused("clip_vision: nothing was given, but Patch Visibility needs a CLIP vision model", clip_vision=None)
    refused("a SigLIP 2 model was given", clip_vision=ClipVisionModel({**naflex, "num_hidden_layers": 1}))
    refused("a DINOv2 model was given", clip_vision=ClipVisionModel({**dino, "num_hidden_layers": 1}))
    refused("a model of another kind was given", clip_vision=SimpleNamespace(model=torch.nn.Linear(1, 1)))
    wrong = random_model(SMALL)
    wrong.image_size = 224
    refused("pictures of 224 pixels in patches of 14, but has 37 positions", clip_vision=wrong)
    refused("3 masks for 2 images", image=pictures(2), mask=torch.ones(3, 84, 84))
    refused(r"the mask is 84x84 but the image is 200x84: their shapes differ", image=pictures(1, 84, 200))
    refused("mask: a mask was expected, got nothing", mask=None)
    refused(r"threshold must be from 0 to 1, got 1\.5", threshold=1.5)
    refused("fit must be one of crop, letterbox, got 'center'", fit="center")
    with pytest.raises(ValueError, match=r"threshold a part of a patch from 0 to 1; got hide, crop and 1\.5"):
        patch_visibility.encode(clip(), pictures(), torch.ones(1, 84, 84), 1.5)
    with pytest.raises(ValueError, match="mode is one of hide, paper, fit one of crop, letterbox"):
        patch_visibility.encode(clip(), pictures(), torch.ones(1, 84, 84), fit="center")


def test_the_node_gives_three_outputs() -> None:
    patches = random_patches(1)
    output, preview, visible = PatchVisibility.execute(clip(), pictures(), as_mask(patches)).args
    assert isinstance(output, comfy.clip_vision.Output)
    assert output["image_embeds"] is vars(output)["image_embeds"]
    assert preview.shape == (1, 84, 84, 3)
    assert torch.equal(visible, as_mask(patches))
    schema = PatchVisibility.GET_SCHEMA()
    assert [part.io_type for part in schema.outputs] == ["CLIP_VISION_OUTPUT", "IMAGE", "MASK"]


class NoNoise:
    """An unCLIP model's noise augmentor that adds none."""

    max_noise_level = 10

    def __call__(self, embedding: Tensor, noise_level: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        return embedding[None], torch.zeros(1, 32)


def test_stock_nodes_take_the_output() -> None:
    """Apply Style Model (Redux: each token by itself) and unCLIP Conditioning."""
    import comfy.model_base
    import comfy.sd
    from comfy.ldm.flux.redux import ReduxImageEncoder

    import nodes

    torch.manual_seed(0)
    redux = ReduxImageEncoder(64, 16)
    for parameter in redux.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    output, *_ = PatchVisibility.execute(siglip(), pictures(1, 87, 87), as_mask(random_patches(1), 87)).args
    text = torch.zeros(1, 5, 16)
    with torch.no_grad():
        applied = nodes.StyleModelApply().apply_stylemodel([[text, {}]], comfy.sd.StyleModel(redux), output, 1.0, "multiply")[0]
    assert applied[0][0].shape == (1, 5 + int(random_patches(1).sum()), 16)

    adm: list[Tensor] = []
    for output in (
        stock(clip(), pictures()),
        PatchVisibility.execute(clip(), pictures(), torch.ones(1, 84, 84)).args[0],
        PatchVisibility.execute(clip(), pictures(), as_mask(random_patches(1))).args[0],
    ):
        conditioning = nodes.unCLIPConditioning().apply_adm([[text, {}]], output, 1.0, 0.0)[0][0][1]["unclip_conditioning"]
        adm.append(comfy.model_base.unclip_adm(conditioning, torch.device("cpu"), NoNoise()))
    assert adm[2].shape == (1, 64)
    assert torch.equal(adm[0], adm[1])
    assert not torch.allclose(adm[0], adm[2])
