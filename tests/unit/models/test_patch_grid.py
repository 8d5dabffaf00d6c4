"""Which patches a mask shows, against counting pixels and against what ComfyUI's own preprocessing does to a picture."""

from __future__ import annotations

from fractions import Fraction
from math import lcm

import numpy as np
import pytest
import torch
from comfy.clip_model import clip_preprocess
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models.clip_vision import patch_grid
from maskprompt.models.clip_vision.patch_grid import Place

SQUARE = Place(12, 12, 0, 0)
sides = st.integers(1, 20)


def counted(mask: np.ndarray, threshold: str) -> np.ndarray:
    """The paper's D_p on 12 x 12 pixels in patches of 4, by counting zeros: the mask is enlarged until both grids fit without rest."""
    rows, columns = lcm(mask.shape[0], 12), lcm(mask.shape[1], 12)
    fine = mask.repeat(rows // mask.shape[0], 0).repeat(columns // mask.shape[1], 1)
    high = rows // 3
    wide = columns // 3
    seen = np.empty((3, 3), bool)
    for row in range(3):
        for column in range(3):
            part = fine[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            seen[row, column] = not int((~part).sum()) > Fraction(threshold) * high * wide
    return seen


@given(sides, sides, st.integers(0, 100), st.floats(0.05, 0.95), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_a_patch_is_hidden_when_more_than_the_threshold_lies_outside(
    height: int, width: int, percent: int, density: float, seed: int
) -> None:
    masks = np.random.default_rng(seed).random((2, height, width)) < density
    found = patch_grid.visible(torch.from_numpy(masks), SQUARE, 12, 4, percent / 100)
    for one, mask in zip(found, masks, strict=True):
        assert np.array_equal(one.numpy(), counted(mask, f"{percent}/100"))


@pytest.mark.parametrize("patch", [4, 14, 16])
def test_exactly_the_threshold_is_visible_and_one_pixel_more_is_hidden(patch: int) -> None:
    for outside in range(patch * patch + 1):
        mask = torch.ones(1, patch * patch, dtype=torch.bool)
        mask[:, :outside] = False
        mask = mask.view(1, patch, patch)
        threshold = outside / patch**2
        where = Place(patch, patch, 0, 0)
        assert patch_grid.visible(mask, where, patch, patch, threshold).item()
        if outside:
            assert not patch_grid.visible(mask, where, patch, patch, threshold - 0.5 / patch**2).item()


def ramps(height: int, width: int) -> torch.Tensor:
    """[2, H, W] rising from 0 to 1 from top to bottom and from left to right: a resize of any kind leaves a ramp a ramp."""
    down, right = (torch.arange(n) + 0.5 for n in (height, width))
    return torch.stack(((down / height)[:, None].expand(height, width), (right / width)[None].expand(height, width)))


@given(st.integers(60, 500), st.integers(60, 500), st.sampled_from([(224, 14), (112, 16), (120, 14)]))
@settings(max_examples=60, deadline=None)
def test_the_crop_is_comfyuis(height: int, width: int, encoder: tuple[int, int]) -> None:
    """A ramp as a mask and as a picture: a pixel off by one would differ by more than the tolerance."""
    size, patch = encoder
    ramp = ramps(height, width)
    where = patch_grid.place(height, width, size, "crop")
    found = patch_grid.shown(ramp, where, size, patch)
    pixels = clip_preprocess(ramp[..., None].expand(-1, -1, -1, 3), size=size, mean=[0.0] * 3, std=[1.0] * 3)[:, 0]
    n = size // patch
    means = pixels[:, : n * patch, : n * patch].reshape(2, n, patch, n, patch).mean((2, 4))
    step = [1 / where.height, 1 / where.width]
    for index in (0, 1):
        assert (found - means)[index, 1:-1, 1:-1].abs().max() < 0.5 * step[index] + 0.0005


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([24, 224, 336]))
def test_a_letterbox_holds_the_whole_picture(height: int, width: int, size: int) -> None:
    where = patch_grid.place(height, width, size, "letterbox")
    assert max(where.height, where.width) == size
    assert where.height == pytest.approx(size * height / max(height, width), abs=0.5) or where.height == 1
    assert where.width == pytest.approx(size * width / max(height, width), abs=0.5) or where.width == 1
    for start, length in ((where.top, where.height), (where.left, where.width)):
        assert 0 <= start <= size - start - length <= start + 1
    crop = patch_grid.place(height, width, size, "crop")
    if height == width:
        assert where == crop == Place(size, size, 0, 0)


def test_bars_count_as_outside_and_are_hidden_at_every_threshold() -> None:
    """24 pixels in patches of 4; a picture of 2:1 has bars of 6 pixels: one and a half patches."""
    where = patch_grid.place(100, 200, 24, "letterbox")
    assert where == Place(12, 24, 6, 0)
    full = torch.ones(1, 7, 9, dtype=torch.bool)
    for threshold, rows in ((0.0, [2, 3]), (0.49, [2, 3]), (0.5, [1, 2, 3, 4]), (1.0, [1, 2, 3, 4])):
        found = patch_grid.visible(full, where, 24, 4, threshold)[0]
        assert found.all(1).nonzero()[:, 0].tolist() == rows
        assert int(found.sum()) == 6 * len(rows)
    assert not patch_grid.visible(full, patch_grid.place(300, 100, 24, "letterbox"), 24, 4, 1.0)[0, :, [0, 1, 4, 5]].any()
    assert patch_grid.visible(~full, SQUARE, 12, 4, 1.0).all()


def test_what_the_crop_leaves_out() -> None:
    masks = torch.zeros(4, 10, 20, dtype=torch.bool)
    masks[0] = True
    masks[1, :, :5] = True
    masks[2, 2:4, 4:6] = True
    found = patch_grid.left_out(masks, patch_grid.place(100, 200, 12, "crop"), 12, 4)
    assert found.tolist() == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert patch_grid.left_out(masks, patch_grid.place(100, 200, 12, "letterbox"), 12, 4).max() < 1e-9


def test_the_preview_greys_hidden_patches_and_what_no_patch_covers() -> None:
    patches = torch.tensor([[[True, False], [False, True]]])
    large = patch_grid.enlarged(patches, 9, 4)
    expected = np.zeros((9, 9), bool)
    expected[:4, :4] = expected[4:8, 4:8] = True
    assert np.array_equal(large[0].numpy(), expected)
    pixels = torch.rand(1, 3, 9, 9) * 1.2 - 0.1
    picture = patch_grid.preview(pixels, patches, 4)[0]
    assert picture.shape == (9, 9, 3)
    assert torch.equal(picture[large[0]], pixels[0].movedim(0, -1)[large[0]].clamp(0, 1))
    assert (picture[~large[0]] == patch_grid.GREY).all()
