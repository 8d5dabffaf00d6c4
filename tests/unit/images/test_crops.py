"""Cutting out and pasting back: what is outside the mask stays to the bit, whatever the sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.images import crops
from maskprompt.images.masks import Box
from PIL import Image
from scipy import ndimage

distance_inside: Any = ndimage.distance_transform_edt


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def box_of(x: int, y: int, width: int, height: int) -> Box:
    return {"x": x, "y": y, "width": width, "height": height}


@st.composite
def boxes(draw: Any) -> tuple[Box, int, int]:
    """A box within a picture, and the picture's height and width."""
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return box_of(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y))), height, width


@st.composite
def pasted(draw: Any) -> dict[str, Any]:
    """A picture, a place in it, a mask of the place with zeros, ones and values between, and a painted piece of any size."""
    place, height, width = draw(boxes().filter(lambda case: case[0]["width"] <= 90 and case[0]["height"] <= 90))
    originals, pieces = draw(st.sampled_from([(1, 1), (1, 3), (3, 1), (2, 2)]))
    masks = draw(st.sampled_from([1, originals]))
    seed = draw(st.integers(0, 2**20))
    mask = (random(masks, place["height"], place["width"], seed=seed) * 3 - 1).clamp(0, 1)
    size = draw(st.sampled_from([(place["height"], place["width"]), (64, 64), (37, 51)]))
    return {
        "original": random(originals, height, width, draw(st.sampled_from([3, 4])), seed=seed + 1),
        "painted": random(pieces, *size, 3, seed=seed + 2) + 2,
        "crop": crops.Crop(place, height, width, mask),
        "feather": draw(st.sampled_from([0, 1, 5, 40])),
        "count": max(originals, pieces),
    }


def whole_mask(crop: crops.Crop, count: int) -> torch.Tensor:
    """The crop's masks in the picture's pixels, one for each of `count` results: [count, H, W]."""
    masks = torch.zeros(count, crop.height, crop.width)
    for index in range(count):
        for row in range(crop.place["height"]):
            start = crop.place["x"]
            masks[index, crop.place["y"] + row, start : start + crop.place["width"]] = crop.mask[index % len(crop.mask), row]
    return masks


@given(boxes(), st.floats(0, 4))
@settings(max_examples=200, deadline=None)
def test_the_surroundings_hold_the_box_and_stay_in_the_picture(case: tuple[Box, int, int], context: float) -> None:
    box, height, width = case
    place = crops.surround(box, height, width, context)
    for side, start, limit in (("width", "x", width), ("height", "y", height)):
        assert 0 <= place[start] <= box[start]
        assert box[start] + box[side] <= place[start] + place[side] <= limit
    wanted = max(box["width"], box["height"]) * (1 + 2 * context)
    for side, limit in (("width", width), ("height", height)):
        assert place[side] == limit or wanted <= place[side] < wanted + 1
    if max(place["width"], place["height"]) < min(height, width):
        assert place["width"] == place["height"]


def test_the_surroundings_of_a_box_in_the_middle() -> None:
    """Half of the longer side on each side, the box in the centre; at the edge it is moved, not cut."""
    assert crops.surround(box_of(40, 45, 20, 10), 100, 100, 0.5) == box_of(30, 30, 40, 40)
    assert crops.surround(box_of(80, 0, 20, 10), 100, 100, 0.5) == box_of(60, 0, 40, 40)
    assert crops.surround(box_of(10, 10, 80, 30), 60, 200, 0.5) == box_of(0, 0, 160, 60)


@given(st.integers(16, 2000), st.integers(16, 2000), st.integers(8, 256))
@settings(max_examples=200, deadline=None)
def test_the_painting_size_has_the_area_and_the_shape(width: int, height: int, eighths: int) -> None:
    resolution = eighths * 8
    size = crops.painting_size(box_of(0, 0, width, height), resolution)
    scale = resolution / math.sqrt(width * height)
    for found, side in zip(size, (height, width), strict=True):
        assert found % 8 == 0
        assert found >= 8
        assert found == 8 or abs(found - side * scale) <= 4 + 1e-6


def test_a_painting_size_of_0_keeps_the_size() -> None:
    assert crops.painting_size(box_of(3, 5, 64, 48), 0) == (48, 64)
    assert crops.painting_size(box_of(3, 5, 61, 83), 0) == (80, 64)
    assert crops.painting_size(box_of(3, 5, 1, 1), 0) == (8, 8)


@pytest.mark.parametrize("size", [(64, 64), (128, 40), (30, 41)])
def test_scaling_is_pillows_bicubic(size: tuple[int, int]) -> None:
    picture = random(2, 61, 41, 3)
    found = crops.scale(picture, *size)
    for index in range(2):
        for channel in range(3):
            plane = Image.fromarray(picture[index, ..., channel].numpy())
            wanted = torch.from_numpy(np.array(plane.resize((size[1], size[0]), Image.Resampling.BICUBIC))).clamp(0, 1)
            torch.testing.assert_close(found[index, ..., channel], wanted, atol=1e-5, rtol=0)
    assert crops.scale(picture, 61, 41) is picture


@given(pasted())
@settings(max_examples=80, deadline=None)
def test_outside_the_mask_every_pixel_is_the_originals(case: dict[str, Any]) -> None:
    original = case["original"]
    crop = case["crop"]
    count = case["count"]
    before = original.clone()
    result = crops.paste(original, case["painted"], crop, case["feather"])
    assert torch.equal(original, before)
    assert result.shape == (count, *original.shape[1:])
    masks = whole_mask(crop, count)
    for index in range(count):
        untouched = masks[index] == 0
        assert torch.equal(result[index][untouched], original[index % len(original)][untouched])
        changed = (result[index, ..., :3] != original[index % len(original), ..., :3]).any(-1)
        # The piece is brighter than the picture everywhere, so each pixel of the mask shows.
        assert torch.equal(changed, masks[index] > 0)


@pytest.mark.parametrize("size", [(61, 83), (64, 96), (127, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [3, 4])
def test_without_a_feather_the_inside_is_the_painted_piece(size: tuple[int, int], dtype: torch.dtype, channels: int) -> None:
    height, width = size
    place = box_of(3, 7, width - 9, height - 11)
    original = random(1, height, width, channels)
    painted = (random(1, place["height"], place["width"], 3, seed=1) / 3).to(dtype)  # thirds: sums of them are rounded
    mask = (random(1, place["height"], place["width"], seed=2) > 0.5).float()
    result = crops.paste(original, painted, crops.Crop(place, height, width, mask))
    assert result.dtype == original.dtype
    inside = mask[0] == 1
    assert torch.equal(crops.cut(result, place)[0, ..., :3][inside], painted[0].float()[inside])
    if channels == 4:
        assert torch.equal(result[..., 3], original[..., 3])


def test_a_masks_values_blend() -> None:
    original = random(1, 20, 30, 3)
    painted = random(1, 20, 30, 3, seed=1)
    mask = random(1, 20, 30, seed=2)
    result = crops.paste(original, painted, crops.Crop(box_of(0, 0, 30, 20), 20, 30, mask))
    torch.testing.assert_close(result, original * (1 - mask[..., None]) + painted * mask[..., None])


@pytest.mark.parametrize("feather", [0, 3, 30])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(61, 83), (40, 40)])
def test_what_is_cut_and_pasted_unchanged_is_the_picture_to_the_bit(feather: int, channels: int, size: tuple[int, int]) -> None:
    picture = random(2, *size, channels)
    place = crops.surround(box_of(20, 9, 13, 17), *size, 0.5)
    mask = random(2, place["height"], place["width"], seed=3)
    result = crops.paste(picture, crops.cut(picture, place).clone(), crops.Crop(place, *size, mask), feather)
    assert torch.equal(result, picture)


def test_a_piece_with_alpha_leaves_its_colours_only() -> None:
    original = random(1, 16, 16, 3)
    painted = random(1, 16, 16, 4, seed=1)
    result = crops.paste(original, painted, crops.Crop(box_of(0, 0, 16, 16), 16, 16, torch.ones(1, 16, 16)))
    assert torch.equal(result, painted[..., :3])


def test_a_piece_of_no_numbers_stays_inside_the_mask() -> None:
    """A half-precision VAE may answer NaN."""
    original = random(1, 16, 16, 3)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:9, 4:9] = 1
    painted = torch.full((1, 16, 16, 3), float("nan"))
    result = crops.paste(original, painted, crops.Crop(box_of(0, 0, 16, 16), 16, 16, mask), 2)
    assert torch.equal(result[mask == 0], original[mask == 0])


def test_a_half_precision_picture_is_served_too() -> None:
    original = random(1, 32, 32, 3).half()
    painted = random(1, 64, 64, 3, seed=1)
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    result = crops.paste(original, painted, crops.Crop(box_of(0, 0, 32, 32), 32, 32, mask), 4)
    assert result.dtype == torch.float16
    assert torch.equal(result[mask == 0], original[mask == 0])
    assert torch.isfinite(result).all()


@given(pasted())
@settings(max_examples=60, deadline=None)
def test_a_feather_never_leaves_the_mask(case: dict[str, Any]) -> None:
    mask = case["crop"].mask
    feather = case["feather"]
    soft = crops.feathered(mask, feather)
    assert soft.shape == mask.shape
    assert (soft[mask == 0] == 0).all()
    assert (soft <= mask).all()
    assert (soft[mask > 0] > 0).all()


def test_a_feather_rises_over_its_width() -> None:
    mask = torch.zeros(1, 60, 60)
    mask[:, :, 10:] = 1
    row = crops.feathered(mask, 8)[0, 30]
    assert torch.equal(row[:10], torch.zeros(10))
    torch.testing.assert_close(row[10:18], (torch.arange(8) + 0.5) / 8)
    assert torch.equal(row[18:], torch.ones(42))


@pytest.mark.parametrize("thickness", [1, 2, 5])
def test_a_thin_mask_does_not_vanish(thickness: int) -> None:
    mask = torch.zeros(1, 40, 40)
    mask[:, 12 : 12 + thickness, 5:35] = 1
    assert crops.feathered(mask, 20).max() == 1


def test_a_piece_is_soft_where_it_ends_and_hard_on_the_pictures_border() -> None:
    """A mask that fills its crop (no context) has its soft edge at the crop's sides, but for those on the picture's border."""
    original = torch.zeros(1, 40, 60, 3)
    painted = torch.ones(1, 20, 30, 3)
    crop = crops.Crop(box_of(0, 10, 30, 20), 40, 60, torch.ones(1, 20, 30))
    result = crops.paste(original, painted, crop, 5)[0, ..., 0]
    ramp = (torch.arange(5) + 0.5) / 5
    torch.testing.assert_close(result[10:15, 15], ramp)
    torch.testing.assert_close(result[25:30, 15], ramp.flip(0))
    torch.testing.assert_close(result[20, 25:30], ramp.flip(0))
    assert torch.equal(result[20, :25], torch.ones(25))


@pytest.mark.parametrize("step", [16, 32])
@pytest.mark.parametrize("size", [(104, 136), (104, 128), (120, 88)])
def test_a_piece_that_the_vae_cut_lies_where_it_was(size: tuple[int, int], step: int) -> None:
    """FLUX.2's VAE cuts evenly to whole latent pixels: what is painted on the cut piece is where it was, its edges stay the picture's."""
    picture = torch.rand(1, 200, 200, 3, generator=torch.Generator().manual_seed(2))
    place = box_of(20, 30, size[1], size[0])
    mask = torch.zeros(1, *size)
    mask[:, 40:60, 40:64] = 1
    crop = crops.Crop(place, 200, 200, mask, size=size)
    under = crops.cut(picture, place)
    height, width = (side // step * step for side in size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    wanted = under.clone()
    wanted[:, 40:60, 40:64] = 1
    piece = wanted[:, top : top + height, left : left + width]
    assert torch.equal(crops.uncut(piece, under, crop), wanted)
    assert torch.equal(crops.paste(picture, crops.uncut(piece, under, crop), crop)[:, 30 : 30 + size[0], 20 : 20 + size[1]], wanted)


def test_a_piece_that_was_scaled_or_is_of_its_own_size_is_no_cut_one() -> None:
    picture = torch.rand(2, 26, 30, 3, generator=torch.Generator().manual_seed(3))
    picture = crops.scale(picture, 104, 120)
    crop = crops.Crop(box_of(0, 0, 120, 104), 104, 120, torch.zeros(1, 104, 120), size=(104, 120))
    for piece in (picture, crops.scale(picture, 96, 112), crops.scale(picture, 64, 64)):
        assert crops.uncut(piece, picture, crop) is piece
    whole = crops.Crop(crop.place, 104, 120, torch.ones(1, 104, 120), size=(104, 120))
    assert crops.uncut(crops.scale(picture, 96, 112), picture, whole).shape == (2, 104, 120, 3), "nothing outside tells: a cut is likelier"
