"""The random crops that a training lives on, whatever the picture's shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.images import masks
from maskprompt.training.data.references import Reference
from maskprompt.training.dreamcom.augment import FILL, Augmentation, Crop, cut
from PIL import Image


def coordinates(height: int, width: int) -> torch.Tensor:
    """[H, W, 3]: red rises to the right, green downwards, blue is full: it tells where a pixel was, and what is padding."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width), torch.ones(height, width)], -1)


def reference(height: int, width: int, box: masks.Box, disc: bool = False) -> Reference:
    mask = masks.box_mask(box, height, width)[0]
    if disc:
        rows = (torch.arange(height) + 0.5 - box["y"] - box["height"] / 2) / (box["height"] / 2)
        columns = (torch.arange(width) + 0.5 - box["x"] - box["width"] / 2) / (box["width"] / 2)
        mask = ((rows[:, None] ** 2 + columns[None] ** 2) <= 1).float()
    return Reference(coordinates(height, width), mask)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    height, width = draw(st.integers(40, 300)), draw(st.integers(40, 300))
    box: masks.Box = {"x": 0, "y": 0, "width": draw(st.integers(8, width)), "height": draw(st.integers(8, height))}
    box["x"] = draw(st.integers(0, width - box["width"]))
    box["y"] = draw(st.integers(0, height - box["height"]))
    return reference(height, width, box, draw(st.booleans()))


def share_in_view(reference: Reference, crop: Crop) -> float:
    """Which part of the subject's box the crop shows, from the coordinates painted into the picture."""
    box, (height, width) = reference.box, reference.mask.shape
    inside = crop.valid > 0
    part = 1.0
    for channel, start, length, total in ((0, box["x"], box["width"], width), (1, box["y"], box["height"], height)):
        seen = crop.image[..., channel][inside]
        # Half a pixel of the crop lies beyond the first and last one's middle.
        step = (seen.max() - seen.min()).item() / max(1, int(inside.any(channel).sum()) - 1)
        low, high = max(start / total, seen.min().item() - step / 2), min((start + length) / total, seen.max().item() + step / 2)
        part *= max(0.0, high - low) / (length / total)
    return part


@settings(max_examples=150, deadline=None)
@given(references(), st.sampled_from([32, 64, 104]), st.integers(0, 2**31))
def test_a_crop_has_its_size_and_keeps_the_subject(reference: Reference, size: int, seed: int) -> None:
    crop = Augmentation()(reference, size, np.random.default_rng(seed))
    assert crop.image.shape == (size, size, 3)
    assert crop.box.shape == crop.valid.shape == (size, size)
    assert crop.image.dtype == crop.box.dtype == crop.valid.dtype == torch.float32
    assert crop.image.min() >= 0
    assert crop.image.max() <= 1
    assert set(crop.valid.unique().tolist()) <= {0.0, 1.0}
    assert set(crop.box.unique().tolist()) == {0.0, 1.0} or bool((crop.box == 1).all())
    assert share_in_view(reference, crop) >= 0.8 - 4 / size
    # What is padding is grey, and says so; the picture's blue is full everywhere else.
    assert torch.allclose(crop.image[crop.valid == 0], torch.tensor(FILL))
    assert torch.allclose(crop.image[..., 2][crop.valid == 1], torch.tensor(1.0), atol=1e-5)
    again = Augmentation()(reference, size, np.random.default_rng(seed))
    assert all(torch.equal(getattr(crop, name), getattr(again, name)) for name in ("image", "box", "valid"))


def edges(box: masks.Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


@settings(max_examples=60, deadline=None)
@given(references(), st.integers(0, 2**31))
def test_the_box_is_that_of_the_mask_in_the_crop(reference: Reference, seed: int) -> None:
    """Pillow cuts and scales the mask in one go; its edges may fall on the next pixel."""
    rng = np.random.default_rng(seed)
    size = 64
    height, width = reference.mask.shape
    factor = rng.uniform(0.8, 1.2) * size / min(height, width)
    scaled = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = (int(rng.integers(min(0, side - size), max(0, side - size) + 1)) for side in scaled)
    crop = cut(reference, scaled, top, left, size)
    drawn = Image.fromarray((reference.mask.numpy() * 255).astype("uint8")).resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR)
    wanted = masks.bounding_box(torch.from_numpy(np.array(drawn.crop((left, top, left + size, top + size)))) / 255)
    found = masks.bounding_box(crop.box)
    if wanted is not None:
        assert found is not None
        assert all(abs(one - two) <= 1 for one, two in zip(edges(wanted), edges(found), strict=True)), (wanted, found)


def test_a_subject_cut_off_by_the_crop_has_the_box_of_what_is_seen() -> None:
    """A disc whose right half is out of view: the box of the half, which is as high as the disc is at the cut, not its whole box."""
    disc = reference(100, 200, {"x": 60, "y": 10, "width": 80, "height": 80}, disc=True)
    crop = cut(disc, (100, 200), 0, -12, 84)
    assert masks.bounding_box(crop.box) == masks.bounding_box(torch.nn.functional.pad(disc.mask, (12, -128, 0, -16)))
    assert (masks.bounding_box(crop.box) or {})["height"] < 80


@settings(max_examples=60, deadline=None)
@given(references(), st.integers(0, 2**31))
def test_scales_stay_in_their_range(reference: Reference, seed: int) -> None:
    """Size of a pixel in the crop, against a picture whose short side is the crop's; unless it had to be shown whole."""
    crop = Augmentation()(reference, 64, np.random.default_rng(seed))
    size = 64
    height, width = reference.mask.shape
    rows = (crop.image[..., 1] * height)[crop.valid > 0]
    shown = int((crop.valid > 0).any(1).sum())
    zoom = (shown - 1) / (rows.max() - rows.min()).item() * min(height, width) / size
    whole = min(height, width) / max(height, width)
    assert 0.78 <= zoom <= 1.22 or zoom == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize(("chance", "wanted"), [(0.0, 0.0), (0.6, 0.6), (1.0, 1.0)])
def test_pictures_are_scaled_with_their_chance(chance: float, wanted: float) -> None:
    """A square picture of the crop's size is itself, but for those that are scaled (a few of them by less than a pixel)."""
    picture = reference(64, 64, {"x": 20, "y": 20, "width": 20, "height": 20})
    rng = np.random.default_rng(0)
    crops = [Augmentation(chance=chance)(picture, 64, rng) for _ in range(300)]
    scaled = [not torch.allclose(crop.image, picture.image, atol=1e-3) for crop in crops]
    assert sum(scaled) / 300 == pytest.approx(wanted, abs=0.08)
    same = crops[scaled.index(False)] if False in scaled else None
    assert same is None or torch.equal(same.box, picture.mask)


@settings(max_examples=60, deadline=None)
@given(references(), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_a_margin_draws_the_box_larger_and_changes_nothing_else(reference: Reference, margin: float, seed: int) -> None:
    """By up to its part of the tight box on each side, never beyond the crop, and not always the same."""
    tight, roomy = (Augmentation(margin=part)(reference, 64, np.random.default_rng(seed)) for part in (0.0, margin))
    assert torch.equal(tight.image, roomy.image)
    assert torch.equal(tight.valid, roomy.valid)
    assert bool((roomy.box >= tight.box).all())
    inner = masks.bounding_box(tight.box)
    outer = masks.bounding_box(roomy.box)
    assert inner is not None
    assert outer is not None
    assert int(roomy.box.sum()) == outer["width"] * outer["height"]
    for start, length in (("x", "width"), ("y", "height")):
        added = inner[start] - outer[start], outer[start] + outer[length] - inner[start] - inner[length]
        assert all(0 <= pixels <= round(margin * inner[length]) for pixels in added)


def test_a_margin_differs_from_crop_to_crop() -> None:
    picture = reference(64, 64, {"x": 24, "y": 24, "width": 16, "height": 16})
    rng = np.random.default_rng(0)
    sizes = [float(Augmentation(chance=0, margin=0.5)(picture, 64, rng).box.sum()) for _ in range(50)]
    assert len(set(sizes)) > 20
    assert 16 * 16 < sum(sizes) / 50 < 32 * 32


@pytest.mark.parametrize(("height", "width"), [(2000, 60), (60, 2000), (997, 41)])
def test_a_very_tall_picture_is_shown_whole_where_its_subject_is_tall(height: int, width: int) -> None:
    """Else a square of it, as of any picture."""
    tall = reference(height, width, {"x": 2, "y": 2, "width": width - 4, "height": height - 4})
    crop = Augmentation()(tall, 64, np.random.default_rng(0))
    long = crop.image[..., 1 if height > width else 0][crop.valid > 0]
    assert long.min() < 0.01
    assert long.max() > 0.99
    assert 0 < crop.valid.mean() < 0.1
    assert crop.box[crop.valid > 0].mean() > 0.9
    assert crop.box[crop.valid == 0].max() == 0
    small = Augmentation()(reference(height, width, {"x": 2, "y": 2, "width": 20, "height": 20}), 64, np.random.default_rng(0))
    assert small.valid.mean() > 0.6


def test_a_subject_too_thin_for_its_scaled_mask_keeps_its_place() -> None:
    """A hair of one pixel in a huge picture: where the mask vanishes, its box is scaled with the picture."""
    mask = torch.zeros(1024, 1024)
    mask[100:900, 700] = 1
    crop = cut(Reference(coordinates(1024, 1024), mask), (64, 64), 0, 0, 64)
    assert masks.bounding_box(crop.box) == {"x": 44, "y": 6, "width": 1, "height": 50}
