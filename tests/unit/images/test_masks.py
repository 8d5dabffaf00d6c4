"""Masks and boxes in every shape they arrive in, against references written in another way."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.images import masks
from maskprompt.images.masks import Box
from PIL import Image

sizes = st.integers(1, 24)


def box(x: int, y: int, width: int, height: int) -> Box:
    return {"x": x, "y": y, "width": width, "height": height}


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (1, 1, 5, 7), (1, 5, 7, 1)])
def test_every_mask_shape_becomes_the_same(shape: tuple[int, ...]) -> None:
    plain = torch.rand(5, 7)
    assert torch.equal(masks.to_mask(plain.reshape(shape)), plain[None])


@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (3, 5, 7, 1), (3, 5, 7)])
def test_a_batch_of_masks_keeps_its_order(shape: tuple[int, ...]) -> None:
    plain = torch.rand(3, 5, 7)
    assert torch.equal(masks.to_mask(plain.reshape(shape)), plain)


def test_values_come_into_range() -> None:
    given = torch.tensor([[float("nan"), -1.0, 0.25, 7.0]])
    assert torch.equal(masks.to_mask(given), torch.tensor([[[0.0, 0.0, 0.25, 1.0]]]))
    assert torch.equal(masks.to_mask(torch.tensor([[0, 51, 255]], dtype=torch.uint8)), torch.tensor([[[0.0, 0.2, 1.0]]]))
    assert torch.equal(masks.to_mask(torch.tensor([[True, False]])), torch.tensor([[[1.0, 0.0]]]))
    assert masks.to_mask(torch.ones(2, 2, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize("wrong", [None, "mask", torch.zeros(4), torch.zeros(1, 4, 4, 3), torch.zeros(0, 4, 4), torch.zeros(1, 1, 1, 4, 4)])
def test_anything_else_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(ValueError, match="paint: a mask"):
        masks.to_mask(wrong, "paint")


# To two pixels and more: torch fills a result that is one pixel wide with its first value.
@given(st.tuples(sizes, sizes), st.tuples(st.integers(2, 24), st.integers(2, 24)), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_resize_equals_pillow(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    mask = torch.rand(2, *old, generator=torch.Generator().manual_seed(seed))
    resized = masks.resize(mask, *new)
    for one, other in zip(mask, resized, strict=True):
        expected = Image.fromarray(one.numpy()).resize((new[1], new[0]), Image.Resampling.BILINEAR)
        assert np.allclose(other.numpy(), np.asarray(expected), atol=1e-4)


def test_a_mask_that_fits_is_not_touched() -> None:
    mask = torch.rand(1, 4, 6)
    assert masks.resize(mask, 4, 6) is mask


def test_match_batch_repeats_and_cuts(caplog: pytest.LogCaptureFixture) -> None:
    mask = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    assert masks.match_batch(mask, 5)[:, 0, 0].tolist() == [0, 1, 2, 0, 1]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert masks.match_batch(mask, 2)[:, 0, 0].tolist() == [0, 1]
    assert "3 masks for 2 images" in caplog.text


@given(st.tuples(sizes, sizes), st.integers(0, 1000), st.floats(0, 0.2))
@settings(max_examples=60, deadline=None)
def test_bounding_box_equals_a_search(size: tuple[int, int], seed: int, density: float) -> None:
    mask = (np.random.default_rng(seed).random(size) < density).astype(np.float32)
    found = np.argwhere(mask)
    result = masks.bounding_box(torch.from_numpy(mask))
    if len(found) == 0:
        assert result is None
    else:
        (top, left), (bottom, right) = found.min(axis=0), found.max(axis=0)
        assert result == box(left, top, right - left + 1, bottom - top + 1)


@given(sizes, sizes, st.integers(-30, 30), st.integers(-30, 30), st.integers(-2, 40), st.integers(-2, 40))
@settings(max_examples=200, deadline=None)
def test_box_mask_equals_a_membership_test(height: int, width: int, x: int, y: int, box_width: int, box_height: int) -> None:
    expected = np.array([[x <= column < x + box_width and y <= row < y + box_height for column in range(width)] for row in range(height)])
    if not expected.any():
        with pytest.raises(ValueError, match=r"has no area|lies outside of the picture"):
            masks.clip_box(box(x, y, box_width, box_height), height, width)
        return
    clipped = masks.clip_box(box(x, y, box_width, box_height), height, width)
    mask = masks.box_mask(clipped, height, width)
    assert mask.shape == (1, height, width)
    assert np.array_equal(mask[0].numpy() == 1, expected)
    assert mask.sum() == expected.sum() == clipped["width"] * clipped["height"]
    assert clipped == masks.bounding_box(mask[0])


def test_a_cut_off_box_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        masks.clip_box(box(2, 2, 3, 3), 10, 10)
    assert not caplog.records
    masks.clip_box(box(8, 2, 5, 3), 10, 10)
    assert "width=5" in caplog.text
    assert "width=2" in caplog.text


def test_feather_rises_inside_the_box_but_not_at_the_pictures_edge() -> None:
    mask = masks.box_mask(box(2, 0, 8, 12), 12, 12, feather=4)[0]
    ramp = [0, 0, 0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125, 0, 0]
    for row in mask:
        assert row.tolist() == ramp
    inner = masks.box_mask(box(2, 3, 8, 6), 12, 12, feather=2)[0]
    assert inner[3].tolist() == [0, 0, *[0.25] * 8, 0, 0]
    assert inner[4].tolist() == [0, 0, 0.25, *[0.75] * 6, 0.25, 0, 0]
    assert inner[5].tolist() == [0, 0, 0.25, 0.75, *[1.0] * 4, 0.75, 0.25, 0, 0]


@pytest.mark.parametrize("feather", [6, 50, 1024])
def test_a_feather_wider_than_the_box_still_leaves_a_white_middle(feather: int) -> None:
    """It is as wide as the box has room for, alike on all sides; and nothing fades where all sides are the picture's."""
    mask = masks.box_mask(box(3, 20, 30, 10), 40, 60, feather=feather)[0]
    centres = torch.arange(60) + 0.5
    across = torch.minimum(centres - 3, 33 - centres)
    for row in range(20, 30):
        down = min(row + 0.5 - 20, 30 - row - 0.5)
        torch.testing.assert_close(mask[row], (across.clamp(max=down) / 4.5).clamp(0, 1))
    assert mask.max() == 1
    for width in (1, 2, 3):
        assert masks.box_mask(box(7, 9, width, 20), 40, 60, feather=feather).max() == 1
    at_the_border = masks.box_mask(box(0, 0, 20, 40), 40, 60, feather=feather)[0, 0, :20]
    torch.testing.assert_close(at_the_border, ((20 - torch.arange(20) - 0.5) / min(feather, 19.5)).clamp(0, 1))
    assert masks.box_mask(box(0, 0, 60, 40), 40, 60, feather=feather).min() == 1


def test_boxes_in_every_form_of_core() -> None:
    one = box(0, 0, 4, 4)
    two = box(1, 2, 3, 4)
    scored = {"x": 0.4, "y": 1.6, "width": 2.2, "height": 2.0, "score": 0.9}
    assert masks.boxes_per_image(one, 2) == [[one], [one]]
    assert masks.boxes_per_image([one, two], 2) == [[one, two]] * 2
    assert masks.boxes_per_image([[one], [two], []], 3) == [[one], [two], []]
    assert masks.boxes_per_image([[one], [two]], 3) == [[one], [two], [two]]
    assert masks.boxes_per_image([[one], [two]], 1) == [[one]]
    assert masks.boxes_per_image([], 2) == [[], []]
    assert masks.boxes_per_image([[]], 1) == [[]]
    assert masks.boxes_per_image(scored, 1) == [[box(0, 2, 3, 2)]]
    assert [masks.frames_in(form) for form in (one, [one, two], [[one], [two]], [])] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    "wrong",
    [3, "box", [3], [[3]], {"x": 1}, {"x": "a", "y": 0, "width": 1, "height": 1}, [[{"x": 1, "y": float("nan"), "width": 1, "height": 1}]]],
)
def test_other_boxes_are_refused_by_name(wrong: Any) -> None:
    with pytest.raises(ValueError, match="where: "):
        masks.boxes_per_image(wrong, 1, "where")


def test_boxes_leave_as_core_nodes_take_them() -> None:
    one = box(1, 2, 3, 4)
    assert masks.boxes_output([[one]]) == one
    assert masks.boxes_output([[]]) == box(0, 0, 0, 0)
    assert masks.boxes_output([[one], []]) == [[one], []]
    assert masks.boxes_output([[one, one]]) == [[one, one]]


def test_specks_and_pinholes_go_and_what_is_larger_stays() -> None:
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[20:70, 20:70] = True
    wanted = mask.clone()
    wanted[30:40, 30:40] = False
    mask[30:40, 30:40] = False
    mask[50, 50:53] = False
    mask[5, 5] = True
    assert torch.equal(masks.tidied(mask), wanted)
    assert not masks.tidied(torch.zeros(4, 4, dtype=torch.bool)).any()
    assert masks.tidied(torch.ones(4, 4, dtype=torch.bool)).all()


def test_the_depth_is_the_distance_to_the_nearest_pixel_outside() -> None:
    inside = torch.zeros(2, 5, 7, dtype=torch.bool)
    inside[0, 1:4, 1:6] = True
    inside[1] = True
    found = masks.depth(inside)
    assert found[0, 2].tolist() == [0, 1, 2, 2, 2, 1, 0]
    assert (found[1] == 12).all()
