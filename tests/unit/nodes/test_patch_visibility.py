"""Hide in Reference, the node: masks, fits, previews, refusals, and the stock nodes behind it."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.model_management as management
import pytest
import torch
from comfy.clip_vision import ClipVisionModel
from maskprompt.models.clip_vision import patch_grid, patch_visibility
from maskprompt.nodes.patch_visibility import PatchVisibility
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
    refused("clip_vision: nothing was given, but Hide in Reference needs a CLIP vision model", clip_vision=None)
    refused("a SigLIP 2 model was given", clip_vision=ClipVisionModel({**naflex, "num_hidden_layers": 1}))
    refused("a DINOv2 model was given", clip_vision=ClipVisionModel({**dino, "num_hidden_layers": 1}))
    refused("a model of another kind was given", clip_vision=SimpleNamespace(model=torch.nn.Linear(1, 1)))
    wrong = random_model(SMALL)
    wrong.image_size = 224
    refused("pictures of 224 pixels in patches of 14, but has 37 positions", clip_vision=wrong)
    refused("3 masks for 2 images", image=pictures(2), mask=torch.ones(3, 84, 84))
    refused(r"the mask is 84x84 but the image is 200x84: their shapes differ", image=pictures(1, 84, 200))
    patch_visibility.encode(clip(), pictures(1, 84, 200), torch.zeros(1, 84, 84))  # Load Image's, where nothing was painted
    refused("mask: a mask was expected, got nothing", mask=None)
    refused(r"threshold a part of a patch from 0 to 1; got hide, crop and 1\.5", threshold=1.5)
    refused("fit must be one of crop, letterbox, got 'center'", fit="center")
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
