"""What an artist sets for MCGM's training: words, picture and masks are refused or warned of in words, before anything is encoded."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from maskprompt.training.mcgm.checks import check, fitted, scene_of, words_of
from maskprompt.training.mcgm.options import Options
from maskprompt.training.mcgm.scene import Scene
from torch import Tensor, nn

from ...support.clips import clip_of
from ...support.models import random_model

CLIP = clip_of(l=128)
VAE = SimpleNamespace(latent_channels=4)


def picture(height: int = 64, width: int = 64, count: int = 1, channels: int = 3) -> Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(0))


def marks(*boxes: tuple[int, int, int, int], height: int = 64, width: int = 64) -> Tensor:
    """A MASK of rectangles: top, left, height, width."""
    found = torch.zeros(len(boxes), height, width)
    for mask, (top, left, tall, wide) in zip(found, boxes, strict=True):
        mask[top : top + tall, left : left + wide] = 1
    return found


TWO = marks((4, 4, 20, 20), (34, 30, 24, 30))


def options(*words: str, **given: Any) -> Options:
    return Options(words or ("cat", "dog"), **{"size": 64, **given})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat, dog", ("cat", "dog")),
        ("cat", ("cat",)),
        ("  cat,dog ,\n red fox;\r\nball,,", ("cat", "dog", "red fox", "ball")),
        ("cat, cat", ("cat", "cat")),
        ("cat\uff0cred dog\u3001fox\uff1bball", ("cat", "red dog", "fox", "ball")),
        ("", ()),
        (" ,\n; ", ()),
    ],
)
def test_words_are_separated_by_commas_or_lines(text: str, words: tuple[str, ...]) -> None:
    assert words_of(text) == words


def test_the_scene_is_the_picture_and_its_masks(caplog: pytest.LogCaptureFixture) -> None:
    """Float32 on the CPU, in 0..1, without an alpha channel; the masks in any form that nodes hand on."""
    given = picture(channels=4) * 1.2 - 0.1
    found = scene_of(given.half(), TWO, options())
    torch.testing.assert_close(found.image, given[0, ..., :3].half().float().clamp(0, 1))
    assert torch.equal(found.masks, TWO)
    assert (found.image.dtype, found.masks.dtype) == (torch.float32, torch.float32)
    for other in (TWO[:, None], TWO[..., None], TWO > 0.5, (TWO * 255).to(torch.uint8)):
        assert torch.equal(scene_of(picture(), other, options()).masks, TWO)
    assert torch.equal(scene_of(picture(), TWO[0], options("cat")).masks, TWO[:1])
    assert not caplog.records


def nan(tensor: Tensor, value: float = torch.nan) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[100] = value
    return tensor


@pytest.mark.parametrize(
    ("image", "masks", "words", "message"),
    [
        (picture(), TWO, (), r"words is empty. Write one plain word for each subject, separated by commas, such as: cat, dog"),
        (picture(), TWO, ("cat",), r"^1 word \(cat\) but 2 masks: give one mask for each word, in the same order"),
        (picture(), TWO[:1], ("cat", "dog"), r"^2 words \(cat, dog\) but 1 mask: give one mask for each word"),
        (picture(), marks((4, 4, 20, 20), (0, 0, 0, 0)), ("cat", "dog"), r"mask 2 \(dog\) marks nothing"),
        (picture(), marks((4, 4, 5, 3), (30, 30, 9, 9)), ("cat", "dog"), r"mask 1 \(cat\) marks nothing"),
        (picture(), TWO * 0.5, ("cat", "dog"), r"mask 1 \(cat\) marks nothing"),
        (
            picture(48, 80),
            TWO,
            ("cat", "dog"),
            r"the picture is 80 x 48 pixels but its masks 64 x 64: make the masks from the same picture",
        ),
        (nan(picture()), TWO, ("cat", "dog"), r"the picture holds values that are no numbers \(NaN\)"),
        (picture(), None, ("cat", "dog"), r"masks: a mask was expected, got nothing"),
        (picture(), picture(), ("cat", "dog"), r"masks: a mask has the shape \[batch, height, width\]"),
        (
            picture(),
            torch.zeros(0, 64, 64),
            ("cat", "dog"),
            r"masks: a mask has the shape \[batch, height, width\] with at least one pixel",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused_in_words(image: Tensor, masks: Any, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene_of(image, masks, Options(words))


def test_an_empty_mask_of_another_size_is_said_to_be_empty() -> None:
    """Load Image gives 64 x 64 zeros for a picture without an alpha channel: it is not the size that is wrong."""
    with pytest.raises(ValueError, match=r"mask 1 \(cat\) marks nothing"):
        scene_of(picture(128, 96), torch.zeros(1, 64, 64), options("cat"))


def test_a_mask_pixel_that_is_no_number_is_not_marked() -> None:
    assert torch.equal(scene_of(picture(), nan(TWO), options()).masks, TWO)


def test_masks_that_overlap_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """By the part of the smaller one that both share; a tenth is no matter."""
    scene_of(picture(), marks((0, 0, 40, 40), (0, 36, 10, 20), (30, 30, 20, 10)), options("cat", "dog", "fox"))
    text = "Train Poseable Subjects: masks {} and {} share {} % of the smaller one: there the subjects are learned mixed."
    assert [record.getMessage() for record in caplog.records] == [text.format(1, 2, 20), text.format(1, 3, 50)]
    caplog.clear()
    scene_of(picture(), marks((0, 0, 40, 40), (0, 39, 10, 20)), options())
    assert not caplog.records


def test_of_a_batch_of_pictures_the_first_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    pictures = picture(count=3)
    assert torch.equal(scene_of(pictures, TWO, options()).image, pictures[0])
    assert [record.getMessage() for record in caplog.records] == [
        "Train Poseable Subjects learns from one picture; the first of 3 is taken."
    ]


@pytest.mark.parametrize("channels", [4, 9])
def test_models_with_and_without_inpainting_channels_can_learn(channels: int, caplog: pytest.LogCaptureFixture) -> None:
    check(random_model(in_channels=channels), CLIP, VAE, options(), Scene(picture()[0], TWO))
    assert not caplog.records


class OfUNet:
    """As much of a MODEL as is asked for."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def get_model_object(self, name: str) -> Any:
        assert name == "diffusion_model"
        return self.unet


def with_channels(model: Any, channels: int) -> OfUNet:
    unet = model.get_model_object("diffusion_model")
    parts = {name: getattr(unet, name) for name in ("input_blocks", "middle_block", "output_blocks")}
    return OfUNet(SimpleNamespace(**parts, in_channels=channels))


def test_other_models_and_missing_parts_are_refused_in_words(model: Any) -> None:
    scene = Scene(picture()[0], TWO)
    for given, message in (
        ((OfUNet(nn.Linear(2, 2)), CLIP, VAE), r"a UNet model is needed.*this one is no UNet \(Linear\). Load an SD 1.5"),
        ((with_channels(model, 8), CLIP, VAE), r"a UNet model is needed.*4 channels, or 9 for inpainting; this one takes 8 channels"),
        ((model, None, VAE), r"no text encoder was given.*wire the CLIP of the checkpoint, or Load CLIP"),
        ((model, CLIP, None), r"no VAE was given.*wire Load VAE"),
        ((model, CLIP, SimpleNamespace(first_stage_model=None, latent_channels=4)), r"no VAE was given \(the checkpoint holds none\)"),
        ((model, CLIP, SimpleNamespace(latent_channels=16)), r"the VAE makes latents of 16 channels and the model takes 4: wire the VAE"),
        ((model, clip_of(l=768), VAE), r"the text encoder gives text of width 768 and the model takes 128: wire the CLIP"),
        ((model, clip_of(l=128, g=64), VAE), r"the text encoder gives text of width 192 and the model takes 128"),
    ):
        with pytest.raises(ValueError, match=message):
            check(*given, options(), scene)
    check(model, clip_of(l=48, g=80), object(), options(), scene)


@pytest.mark.parametrize("size", [56, 60, 100])
def test_sizes_that_the_vae_cannot_take_are_refused(model: Any, size: int) -> None:
    with pytest.raises(ValueError, match=rf"size is {size}: .* a multiple of 8 and at least 64"):
        check(model, CLIP, VAE, options(size=size), Scene(picture()[0], TWO))


def test_pictures_too_small_for_the_size_are_refused_by_their_area(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is the area that is fitted: a long picture is not enlarged because its short side is short."""

    def checked(height: int, width: int, size: int) -> None:
        masks = marks((0, 0, height // 2, width // 2), (height // 2, width // 2, height // 2, width // 2), height=height, width=width)
        check(model, CLIP, VAE, options(size=size), Scene(picture(height, width)[0], masks))

    checked(64, 64, 64)
    checked(48, 192, 96)
    checked(192, 48, 96)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"picture 1 is 64 x 48 pixels, too small for crops of 128.*`size` of at most 104"):
        checked(48, 64, 128)
    assert not caplog.records
    checked(48, 64, 104)
    assert [record.getMessage() for record in caplog.records] == [
        "Train Poseable Subjects: picture 1 (64 x 48) is enlarged to crops of 104 pixels."
    ]


def test_a_subject_of_which_nothing_is_left_is_refused() -> None:
    """It was marked well enough, but the picture is made smaller."""
    masks = marks((10, 10, 300, 300), (400, 400, 12, 12), height=512, width=384 + 128)
    scene = scene_of(picture(512, 512), masks, options())
    with pytest.raises(ValueError, match=r"mask 2 \(dog\) marks too little: nothing is left of it where the picture has 64 x 64 pixels"):
        fitted(scene, options(size=64))
    found = fitted(scene, options(size=256))
    assert found.image.shape == (256, 256, 3)
    assert torch.equal(found.masks, scene.fitted(256).masks)


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({}, False), ({"attention_weight": 0.0}, True), ({"attention_weight": 0.0, "mask_attention_weight": 0.0}, False),
        ({"attention_weight": 0.0, "masks": False}, False),
    ],
)  # fmt: skip
def test_a_weight_without_effect_is_warned_of(model: Any, given: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check(model, CLIP, VAE, options(**given), Scene(picture()[0], TWO))
    text = "Train Poseable Subjects: with attention_weight 0 mask_attention_weight has no effect: it is a part of it."
    assert [record.getMessage() for record in caplog.records] == [text] * warned


NAMES = ("handles.l", "mask_encoder.linear.weight", "mask_encoder.linear.bias", "mask_encoder.subjects", "diffusion_model.out.2.weight",
         "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight")  # fmt: skip


def rates(given: Options, phase: int, width: int = 320) -> list[float]:
    """Of everything that may learn."""
    settings = given.settings(phase, width)
    return [settings.rate(name) for name in NAMES[: 4 if phase == 1 else None]]


def test_steps_and_rates_are_the_papers() -> None:
    """Section 4: two phases of 400 steps, 5e-4 and 2e-6 for all weights of SD 1.5, Adam's betas and decay."""
    usual = Options(("cat",), method="full")
    assert usual.batch == 1
    for phase in (1, 2):
        found = usual.settings(phase, 320)
        assert (found.steps, found.betas, found.weight_decay, found.clip, found.average) == (400, (0.9, 0.99), 1e-8, 1.0, 0.0)
    assert rates(usual, 1) == [5e-4] * 4
    assert rates(usual, 2) == [2e-6] * 6


def test_rates_of_the_second_phase() -> None:
    """More for a LoRA and for a narrow UNet; beside a LoRA handles and masks go on at a fifth of theirs."""
    assert rates(options(), 2) == pytest.approx([1e-4] * 6)
    assert rates(options(handle_rate=1e-2, rate=0.3), 2, 32) == pytest.approx([2e-3, 2e-3, 2e-3, 2e-3, 0.3, 0.3])
    assert rates(options(method="lora"), 2, 32)[-2:] == pytest.approx([1e-3, 1e-3])
    assert rates(options(method="full"), 2, 32) == pytest.approx([2e-5] * 6)
    assert rates(options(method="full", rate=0.3), 2, 32) == [0.3] * 6
    given = options(steps=5, weight_steps=7, handle_rate=0.2, seed=4)
    assert [given.settings(phase, 32).steps for phase in (1, 2)] == [5, 7]
    assert [given.settings(phase, 32).seed for phase in (1, 2)] == [4, 5]
    assert rates(given, 1, 32) == [0.2] * 4


def test_the_sentence_that_is_trained_with() -> None:
    """Break-A-Scene's; it tells of the plain background only where that is learned too."""
    assert options(background_weight=0).prompt(["A"]) == "a photo of A"
    assert options(background_weight=0).prompt(["B", "A", "C"]) == "a photo of B and A and C"
    assert options(background_weight=0.3).prompt(["A", "B"]) == "a photo of A and B on a plain background"
    assert options(background_weight=0.3, background="original").prompt(["A"]) == "a photo of A"


def test_the_latents_shape_is_the_fitted_scenes() -> None:
    scene = Scene(picture(96, 200)[0], marks((0, 0, 50, 50), height=96, width=200)).fitted(128)
    height, width = scene.masks.shape[1:]
    assert options(batch=3).latents(scene) == (3, 4, height // 8, width // 8)
