"""What is refused before a DreamCom training begins, and in which words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from maskprompt.training.data import references
from maskprompt.training.dreamcom.checks import check, check_words
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine.checks import check_inpainting, check_size, check_unet

from ...support.models import random_model
from ...support.vaes import Flux


def pictures(count: int, height: int = 64, width: int = 80) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(count))


def marks(count: int, height: int = 64, width: int = 80) -> torch.Tensor:
    masks = torch.zeros(count, height, width)
    for number in range(count):
        masks[number, 10 + number : 30, 20:50] = 1
    return masks


def test_batches_and_lists_are_paired_in_their_order() -> None:
    images = [pictures(2), pictures(1, 40, 30)]
    masks = [marks(1), marks(2)[1:], marks(1, 40, 60)[..., :30]]
    found = references.pair(images, masks)
    assert [tuple(one.mask.shape) for one in found] == [(64, 80), (64, 80), (40, 30)]
    for one, image, mask in zip(found, [*images[0], images[1][0]], [masks[0][0], masks[1][0], masks[2][0]], strict=True):
        assert torch.equal(one.image, image)
        assert torch.equal(one.mask, mask)
    assert found[1].box == {"x": 20, "y": 11, "width": 30, "height": 19}
    with_alpha = torch.cat([pictures(1), torch.zeros(1, 64, 80, 1)], -1)
    assert torch.equal(references.pair([with_alpha], [marks(1) * 255])[0].image, pictures(1)[0])


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ([], [], "no picture was given: wire three to five"),
        ([pictures(3)], [marks(2)], "3 pictures but 2 masks: give one mask for each picture"),
        ([pictures(3)], [marks(2), torch.zeros(1, 64, 80)], "the mask of picture 3 marks nothing: point SAM Mask at the subject"),
        ([pictures(1)], [torch.zeros(1, 64, 64)], "the mask of picture 1 marks nothing"),
        ([pictures(2)], [marks(1), marks(1, 64, 64)], "picture 2 is 80 x 64 pixels but its mask 64 x 64: make the mask from the same"),
        ([pictures(1)], [marks(1).masked_fill(marks(1) == 1, torch.nan)], "marks nothing"),
        ([pictures(1).masked_fill(marks(1)[..., None] == 1, torch.nan)], [marks(1)], r"picture 1 holds values that are no numbers \(NaN\)"),
        ([pictures(1)], [None], "masks: a mask was expected, got nothing"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(images: list[Any], masks: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        references.pair(images, masks)


def test_a_mask_over_everything_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        references.pair([pictures(1)], [marks(1)])
        assert not caplog.records
        references.pair([pictures(1)], [1 - marks(1)])
    assert "The mask of picture 1 touches all four borders of it. If it marks the background, invert it" in caplog.text


def test_the_fingerprint_tells_pictures_and_masks_apart() -> None:
    def of(images: torch.Tensor, masks: torch.Tensor) -> str:
        return references.fingerprint(references.pair([images], [masks]))

    first = of(pictures(2), marks(2))
    assert of(pictures(2).clone(), marks(2).clone()) == first
    others = [of(pictures(2).flip(0), marks(2)), of(pictures(2), marks(2).flip(2)), of(pictures(1), marks(1)),
              of(pictures(2).transpose(1, 2), marks(2).transpose(1, 2))]  # fmt: skip
    assert len({first, *others}) == 5


def test_only_inpainting_unets_are_taken(model: Any) -> None:
    check_inpainting(model)
    with pytest.raises(ValueError, match=r"9 channels; this one takes 4 channels\. Load one such as"):
        check_inpainting(random_model(in_channels=4))
    with pytest.raises(ValueError, match=r"this one is no UNet \(Linear\)"):
        check_inpainting(Flux())


@pytest.mark.parametrize("check", [check_unet, check_inpainting])
def test_quantised_checkpoints_are_refused(check: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI notes so of fp8 with scales, NVFP4 and int8; their layers are none that learn."""
    other = random_model(in_channels=9)
    monkeypatch.setattr(other.model.model_config, "quant_config", {"format": "float8_e4m3fn"}, raising=False)
    with pytest.raises(ValueError, match="quantised"):
        check(other)


@pytest.mark.parametrize(
    ("size", "side", "message"),
    [
        (100, 200, "size is 100: the side of the training crops is a multiple of 8 and at least 64"),
        (56, 200, "size is 56"), (0, 200, "size is 0"), (-64, 200, "size is -64"),
        (512, 200, "picture 1 is 240 x 200 pixels, too small for crops of 512.*`size` of at most 400"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(size: int, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_size(size, [(side, 240)], "Train a Subject")


def test_a_picture_that_is_a_little_small_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_size(200, [(200, 240)], "A node")
        assert not caplog.records
        check_size(208, [(200, 240)], "A node")
        check_size(400, [(200, 240)], "A node")
    assert "A node: picture 1 (240 x 200) is enlarged to crops of 400 pixels" in caplog.text


def test_many_small_pictures_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_size(400, [(300, 390), (400, 500), (250, 600), (390, 390)], "A node")
    assert [record.getMessage() for record in caplog.records] == [
        "A node: 3 of 4 pictures are enlarged to crops of 400 pixels, the most picture 3 (600 x 250)."
    ]


def tokenizers() -> list[Any]:
    from comfy.sd1_clip import SD1Tokenizer
    from comfy.sdxl_clip import SDXLTokenizer

    return [SD1Tokenizer(), SDXLTokenizer()]


class Clip:
    """As much of a CLIP as the checks ask: its tokenizer, which is what `comfy.sd.CLIP.tokenize` calls."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, text: str, return_word_ids: bool = False) -> Any:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)


@pytest.fixture(scope="module", params=[0, 1], ids=["SD 1.5", "SDXL"])
def clip(request: pytest.FixtureRequest) -> Clip:
    return Clip(tokenizers()[request.param])


def test_a_plain_word_is_taken_silently(clip: Clip, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for noun in ("dog", "backpack", " guitar "):
            check_words(Options(noun=noun), clip)
    assert not caplog.records


@pytest.mark.parametrize(
    ("token", "noun", "message"),
    [
        ("", "dog", "token is empty. Write a rare word such as sks"),
        (" ", "dog", "token is empty"),
        ("sks", "", "noun is empty. Write what the subject is, such as dog"),
        ("sks", "a dog that my aunt found on a rainy day in March", r"the noun 'a dog .*' is 12 pieces long .* \(at most 8\)"),
        ("ÄÖÜßéèêîïôœ", "dog", "the token .* pieces long"),
    ],
)  # fmt: skip
def test_words_that_are_no_words_are_refused(clip: Clip, token: str, noun: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_words(Options(token=token, noun=noun), clip)


def test_no_text_encoder_is_said_in_words(model: Any) -> None:
    with pytest.raises(ValueError, match="no text encoder was given"):
        check(model, None, object(), Options(noun="dog"), [])


@pytest.mark.parametrize(
    ("token", "noun", "message"),
    [
        ("sks", "rubber duck", "reads the noun 'rubber duck' as 2 pieces"),
        ('"sks"', "dog", "as 3 pieces"),
        ("xqzvk", "dog", "reads the token 'xqzvk' as"),
        ("(sks:1.2)", "dog", r"the token '\(sks:1.2\)' is trained with its weight"),
        ("sks", "(dog)", r"the noun '\(dog\)' is trained with its weight"),
    ],
)  # fmt: skip
def test_what_works_less_well_is_warned_about(clip: Clip, token: str, noun: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    import re

    with caplog.at_level(logging.WARNING):
        check_words(Options(token=token, noun=noun), clip)
    assert re.search(message, caplog.text)


def test_an_embedding_is_one_word_if_it_is_there(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    from comfy.sd1_clip import SD1Tokenizer
    from safetensors.torch import save_file

    save_file({"emb_params": torch.randn(12, 768)}, tmp_path / "rex.safetensors")
    with_folder = Clip(SD1Tokenizer(embedding_directory=[str(tmp_path)]))
    with caplog.at_level(logging.WARNING):
        check_words(Options(token="embedding:rex", noun="dog"), with_folder)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"reads nothing where the token says 'embedding:max'.*models/embeddings"):
        check_words(Options(token="embedding:max", noun="dog"), with_folder)
