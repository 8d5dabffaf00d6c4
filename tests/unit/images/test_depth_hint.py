"""Depth Hint: the maths, pixel by pixel and against SciPy, and the node."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.images import depth_hint
from maskprompt.nodes.depth_hint import DepthHint
from scipy import ndimage


def ramp(height: int = 40, width: int = 60, low: float = 0.2, high: float = 0.6) -> torch.Tensor:
    """A depth map [1, H, W] that comes nearer from left to right."""
    return torch.linspace(low, high, width).expand(1, height, width).clone()


def square(top: int, bottom: int, left: int, right: int, height: int = 40, width: int = 60) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


def image(depth: torch.Tensor) -> torch.Tensor:
    return depth[..., None].expand(-1, -1, -1, 3)


def made(reference: torch.Tensor, foreground: torch.Tensor, mask: torch.Tensor, **more: Any) -> torch.Tensor:
    (result,) = DepthHint.execute(reference, foreground, mask, **more).args
    return result


def test_normalising_counts_only_what_is_seen() -> None:
    depth = ramp()
    where = square(0, 40, 15, 45) > 0
    depth[0, 0, 0] = 0.0
    depth[0, 39, 59] = 1.0
    found = depth_hint.normalised(depth, where)
    seen = depth[where]
    torch.testing.assert_close(found[where], (seen - seen.min()) / (seen.max() - seen.min()))
    assert found[where].min() == 0
    assert found[where].max() == 1
    assert ((found >= 0) & (found <= 1)).all()


def test_a_flat_map_is_near_and_an_unseen_one_stays() -> None:
    assert (depth_hint.normalised(torch.full((1, 4, 4), 0.3), torch.ones(1, 4, 4, dtype=torch.bool)) == 1).all()
    assert torch.equal(depth_hint.normalised(ramp(), torch.zeros(1, 40, 60, dtype=torch.bool)), ramp())


def test_each_picture_of_a_batch_has_its_own_range() -> None:
    depth = torch.cat([ramp(), ramp(low=0.0, high=0.1)])
    where = torch.ones(2, 40, 60, dtype=torch.bool)
    found = depth_hint.normalised(depth, where)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@given(height=st.integers(1, 40), width=st.integers(1, 40), density=st.sampled_from([0.02, 0.3, 0.9, 1.0]), seed=st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_filling_keeps_what_is_known_and_invents_no_extremes(height: int, width: int, density: float, seed: int) -> None:
    torch.manual_seed(seed)
    depth = torch.rand(2, height, width)
    known = torch.rand(2, height, width) < density
    found = depth_hint.filled(depth, known)
    assert torch.equal(found[known], depth[known])
    for one, place, result in zip(depth, known, found, strict=True):
        low, high = (float(one[place].min()), float(one[place].max())) if place.any() else (0.0, 0.0)
        assert result.min() >= low - 1e-5
        assert result.max() <= high + 1e-5


def test_a_hole_in_a_plane_is_filled_smoothly() -> None:
    """On a slope the fill lies near the slope; no edge is as high as that of the black hole which the paper's masking leaves."""
    depth = ramp(64, 64, 0.0, 1.0)
    hole = square(20, 44, 20, 44, 64, 64) > 0
    found = depth_hint.filled(torch.where(hole, torch.rand(1, 64, 64), depth), ~hole)
    nearest: Any = ndimage.distance_transform_edt(hole[0].numpy(), return_distances=False, return_indices=True)
    by_nearest = depth[0].numpy()[tuple(nearest)]
    error = (found - depth)[hole].abs()
    assert error.max() < 0.25
    assert error.mean() < np.abs(by_nearest - depth[0].numpy())[hole[0].numpy()].mean()
    assert found.diff(dim=2).abs().max() < 0.2
    assert torch.where(hole, torch.zeros(()), depth).diff(dim=2).abs().max() > 0.6


@pytest.mark.parametrize("fill", [True, False])
def test_the_hint_is_the_product_before_the_reference(fill: bool) -> None:
    reference = ramp()
    foreground = ramp(low=0.9, high=0.1)
    product = square(10, 30, 20, 40)
    visible = square(5, 35, 5, 45) < 0.5
    found = depth_hint.hint(reference, visible, foreground, product, (0.4, 0.9), fill)
    inside = product > 0
    hidden = ~visible
    own = foreground[inside]
    torch.testing.assert_close(found[inside], 0.4 + 0.5 * (own - own.min()) / (own.max() - own.min()), atol=1e-6, rtol=1e-6)
    seen = visible & ~inside
    torch.testing.assert_close(found[seen], (reference[seen] - 0.2) / 0.4, atol=1e-6, rtol=1e-6)
    assert (found[hidden & ~inside] > 0.05).all() == fill
    if not fill:
        assert (found[hidden & ~inside] == 0).all()


def test_without_normalising_the_maps_are_taken_as_they_are() -> None:
    reference = ramp()
    foreground = ramp(low=0.9, high=0.1)
    product = square(10, 30, 20, 40)
    found = depth_hint.hint(reference, torch.ones_like(product) > 0, foreground, product, None)
    assert torch.equal(found, torch.where(product > 0, foreground, reference))


@pytest.mark.parametrize("feather", [0, 1, 6, 50])
def test_the_feather_lies_inside_the_product(feather: int) -> None:
    """Outside of the mask the reference stays bit by bit; inside, the product's share rises with the distance to the edge."""
    reference = torch.zeros(1, 40, 60)
    foreground = torch.ones(1, 40, 60)
    product = square(10, 30, 20, 40)
    found = depth_hint.hint(reference, torch.ones_like(product) > 0, foreground, product, None, feather=feather)
    assert torch.equal(found[product == 0], reference[product == 0])
    assert (found[product > 0] > 0).all()
    assert found[0, 20, 30] == pytest.approx(1, abs=0.06)
    row = found[0, 20, 20:30]
    assert (row.diff() >= 0).all()
    distance = np.asarray(ndimage.distance_transform_edt(product[0].numpy())) - 0.5
    if 0 < feather < 10:
        np.testing.assert_allclose(found[0].numpy(), np.clip(distance / feather, 0, 1), atol=1e-5)


def test_black_that_is_near_is_turned_round() -> None:
    reference = ramp()
    foreground = ramp(low=0.9, high=0.1)
    product = square(10, 30, 20, 40)
    one = made(image(reference), image(foreground), product)
    other = made(image(1 - reference), image(1 - foreground), product, near="black")
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_node_gives_a_grey_picture_of_the_foregrounds_size() -> None:
    result = made(image(ramp(80, 120)), image(ramp()), square(40, 120, 80, 160, 160, 240), reference_mask=square(0, 20, 0, 30, 20, 30))
    assert result.shape == (1, 40, 60, 3)
    assert result.is_contiguous()
    assert torch.equal(result[..., 0], result[..., 1])
    assert torch.equal(result[..., 0], result[..., 2])
    assert ((result >= 0) & (result <= 1)).all()


def test_batches_are_taken_in_turn() -> None:
    references = torch.cat([ramp(), ramp(low=0.6, high=0.2)])
    result = made(image(references), image(ramp()), square(10, 30, 20, 40))
    assert len(result) == 2
    for index in range(2):
        assert torch.equal(result[index : index + 1], made(image(references[index : index + 1]), image(ramp()), square(10, 30, 20, 40)))


def test_other_forms_of_a_depth_map_are_taken() -> None:
    plain = made(image(ramp()), image(ramp()), square(10, 30, 20, 40))
    with_alpha = torch.cat([image(ramp()), torch.zeros(1, 40, 60, 1)], dim=-1)
    torch.testing.assert_close(made(with_alpha, ramp()[..., None], square(10, 30, 20, 40)), plain, atol=1e-6, rtol=1e-6)


def test_empty_masks_are_defined_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = made(image(ramp()), image(ramp()), torch.zeros(1, 64, 96))
        torch.testing.assert_close(result[..., 0], ramp(low=0.0, high=1.0), atol=1e-5, rtol=1e-5)
        assert "foreground_mask is empty" in caplog.text
        assert torch.equal(made(image(ramp()), image(ramp()), torch.zeros(1, 64, 64)), result), "Load Image's, where nothing was painted"
        nothing = made(image(ramp()), image(ramp()), square(10, 30, 20, 40), reference_mask=torch.zeros(1, 40, 60), feather=0)
    assert "reference_mask is empty" in caplog.text
    assert (nothing[0, ..., 0][square(10, 30, 20, 40)[0] == 0] == 0).all()
    assert torch.isfinite(nothing).all()


def test_numbers_that_are_none_do_no_harm() -> None:
    broken = ramp()
    broken[0, 3, 3] = torch.nan
    broken[0, 20, 30] = torch.nan
    assert torch.isfinite(made(image(broken), image(broken), square(10, 30, 20, 40))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": torch.zeros(1, 40, 40, 3)}, "reference_depth is 40x40 but foreground_depth is 60x40: their shapes differ"),
        ({"mask": torch.ones(1, 40, 40)}, "foreground_mask is 40x40 but"),
        ({"reference_mask": torch.ones(1, 60, 40)}, "reference_mask is 40x60 but"),
        ({"foreground_far": 0.9, "foreground_near": 0.2}, r"foreground_far \(0.9\) is larger than foreground_near \(0.2\)"),
        ({"mask": torch.zeros(1, 8, 8, 3)}, "foreground_mask: a mask has the shape"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**{"reference": image(ramp()), "foreground": image(ramp()), "mask": square(10, 30, 20, 40), **changes})
