"""What comes into a node is brought into one form, or refused in words that an artist can act on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.nodes import checks

PICTURE = torch.rand(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))


def test_a_picture_is_the_very_tensor() -> None:
    assert checks.image(PICTURE, "image", "Node") is PICTURE
    half = PICTURE.half()
    assert checks.image(half, "image", "Node") is half
    alpha = torch.rand(1, 4, 4, 4)
    assert checks.image(alpha, "image", "Node") is alpha


def test_grey_and_whole_numbers_become_colours_in_0_to_1() -> None:
    assert torch.equal(checks.image(PICTURE[..., :1], "image", "Node"), PICTURE[..., :1].repeat(1, 1, 1, 3))
    whole = (PICTURE * 255).byte()
    assert torch.equal(checks.image(whole, "image", "Node"), whole.float() / 255)


def spoilt(value: float) -> torch.Tensor:
    broken = PICTURE.clone()
    broken[1, 2, 3, 0] = value
    return broken


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "Node: photo must be a picture, got nothing"),
        ("cat.png", "must be a picture, got the text 'cat.png'"),
        (3, "must be a picture, got int"),
        ({"samples": torch.zeros(1, 4, 8, 8)}, "this is a latent. Put VAE Decode between"),
        (torch.zeros(0, 5, 7, 3), "a batch of no pictures"),
        (torch.zeros(1, 0, 7, 3), "has no pixels: it is 7 pixels wide and 0 high"),
        (torch.zeros(5, 7, 3), "put Convert Mask to Image between"),
        (torch.zeros(1, 5, 7, 2), "has 2 channels; a picture is grey"),
        (torch.zeros(1, 5, 7, 3, dtype=torch.int64), "numbers of the kind int64"),
        (torch.zeros(1, 5, 7, 3, dtype=torch.complex64), "numbers of the kind complex64"),
        (spoilt(math.nan), "photo: 1 of its 70 pixels are no numbers"),
        (spoilt(math.inf), "photo: 1 of its 70 pixels are no numbers"),
        (spoilt(-math.inf).half(), "photo: 1 of its 70 pixels are no numbers"),
    ],
)
def test_what_is_no_picture_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.image(value, "photo", "Node")


def test_broken_pixels_can_be_let_pass() -> None:
    broken = spoilt(math.nan)
    assert checks.image(broken, "image", "Node", finite=False) is broken


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "Node: mask: a mask was expected, got nothing"),
        (torch.zeros(0, 5, 7), "Node: mask is a batch of no masks"),
        (torch.zeros(1, 5, 7, 3), "Node: mask: a mask has the shape"),
        (torch.zeros(1, 5, 7, dtype=torch.complex64), "complex numbers"),
    ],
)
def test_what_is_no_mask_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.mask(value, "mask", "Node")


def test_a_mask_comes_in_range_and_without_what_is_no_number() -> None:
    given = torch.tensor([[[math.nan, -1.0, 0.25, math.inf]]])
    assert torch.equal(checks.mask(given, "mask", "Node"), torch.tensor([[[0.0, 0.0, 0.25, 1.0]]]))


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3), torch.tensor(3)])
def test_numbers_of_every_kind_are_taken(value: Any) -> None:
    assert checks.number(value, "size", "Node", 0, 4) == 3
    found = checks.whole(value, "size", "Node", 0, 4)
    assert found == 3
    assert isinstance(found, int)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "Node: size must be from 0 to 4, got nan"),
        (math.inf, "must be from 0 to 4, got inf"),
        (-1, "must be from 0 to 4, got -1"),
        (10**400, "got a number of more than 20 digits"),
        pytest.param(10**5000, "got a number of more than 20 digits", id="5000 digits"),
        (None, "must be a number from 0 to 4, got nothing"),
        ("three", "must be a number from 0 to 4, got the text 'three'"),
        (torch.zeros(3), "must be from 0 to 4, got"),
    ],
)
def test_other_numbers_are_refused(value: Any, message: str) -> None:
    for check in (checks.number, checks.whole):
        with pytest.raises(ValueError, match=message):
            check(value, "size", "Node", 0, 4)


def test_a_part_of_a_number_is_no_whole_one() -> None:
    with pytest.raises(ValueError, match=r"size must be a whole number from 0 to 4, got 2\.5"):
        checks.whole(2.5, "size", "Node", 0, 4)


def test_a_choice_is_one_of_the_options() -> None:
    assert checks.choice("on", "mode", "Node", ("on", "off")) == "on"
    for wrong in ("ON", None, 3, ["on"]):
        with pytest.raises(ValueError, match="Node: mode must be one of on, off, got"):
            checks.choice(wrong, "mode", "Node", ("on", "off"))


def around(**changes: Any) -> dict[str, Any]:
    return {"x": 0, "y": 0, "width": 4, "height": 4, **changes}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (around(x=math.inf), "Node: bboxes: every number of a box must be finite"),
        (around(width=math.nan), "must be finite"),
        (around(x=10**400), "must be finite"),
        (around(width=1e300), "at most 1,000,000 pixels"),
        pytest.param(around(x=10**5000), "a number of thousands of digits", id="a box of 5000 digits"),
        (around(y="up"), "a box is"),
        ({"x": 0}, "a box is"),
        (7, "a box, a list of boxes"),
    ],
)
def test_absurd_boxes_are_refused_briefly(value: Any, message: str) -> None:
    for boxes in (value, [value], [[value]]):
        if value == 7 and boxes != 7:
            continue
        with pytest.raises(ValueError, match=message) as refused:
            checks.boxes(boxes, 1, "bboxes", "Node")
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 1])
def test_large_seeds_stay_what_they_are(seed: int) -> None:
    assert checks.whole(seed, "seed", "Node", 0, 2**64 - 1) == seed
