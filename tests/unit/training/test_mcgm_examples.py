"""The pictures that MCGM learns from: subjects of one picture, some of them, flipped, moved, on other grounds; and their encoding."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.training.mcgm import examples as mcgm_samples
from maskprompt.training.mcgm.examples import Shown, draw
from maskprompt.training.mcgm.scene import Scene
from torch import Tensor

from ...support.scenes import BLUE, COLOURS, GREEN, RED, THREE, scene_of

YELLOW = (1.0, 1.0, 0.0)


def quartered(box: tuple[int, int, int, int], height: int, width: int) -> Scene:
    """One rectangle whose quarters are red and green above, blue and yellow below."""
    scene, (top, left, tall, wide) = scene_of((box,), height, width), box
    middle = top + tall // 2
    centre = left + wide // 2
    for rows, columns, colour in (
        (slice(top, middle), slice(left, centre), RED), (slice(top, middle), slice(centre, left + wide), GREEN),
        (slice(middle, top + tall), slice(left, centre), BLUE), (slice(middle, top + tall), slice(centre, left + wide), YELLOW),
    ):  # fmt: skip
        scene.image[rows, columns] = torch.tensor(colour)
    return scene


def drawn(scene: Scene, count: int, background: Any = "plain", move: bool = True, seed: int = 0) -> Shown:
    return draw(scene, count, background, move, np.random.default_rng(seed))


@given(height=st.integers(20, 300), width=st.integers(20, 300), size=st.sampled_from([64, 96, 128, 200]))
@settings(max_examples=40, deadline=None)
def test_any_picture_is_fitted_in_its_own_proportions(height: int, width: int, size: int) -> None:
    """About size x size pixels; sides are multiples of 32, each at most half of that from the exact one, and at least 64."""
    left = torch.zeros(1, height, width)
    left[:, :, : width // 2] = 1
    found = Scene(torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0)), left).fitted(size)
    assert found.image.shape == (*found.masks.shape[1:], 3)
    for side, given_ in zip(found.masks.shape[1:], (height, width), strict=True):
        exact = given_ * size / math.sqrt(height * width)
        assert side % 32 == 0
        assert abs(side - exact) <= 16 + 1e-6 or (side == 64 and exact < 64)
    assert found.masks.mean() == pytest.approx((width // 2) / width, abs=0.01)
    assert found.masks[0, :, 0].min() > 0.99
    assert found.masks[0, :, -1].max() < 0.01
    for part in (found.image, found.masks):
        assert part.min() >= 0
        assert part.max() <= 1


def test_a_picture_that_fits_stays_as_it_is_and_a_larger_one_is_averaged() -> None:
    """As Pillow shrinks it: each pixel is a weighted mean of all it stands for, of the colours as of the masks."""
    from PIL import Image

    scene = scene_of(height=96, width=128)
    size = round(math.sqrt(96 * 128))
    torch.testing.assert_close(scene.fitted(size).image, scene.image, atol=1e-6, rtol=0)
    assert torch.equal(scene.fitted(size).masks, scene.masks)
    smaller = scene_of(height=192, width=256).fitted(size)
    assert smaller.masks.shape == (2, 96, 128)
    given_ = scene_of(height=192, width=256)
    for found, plane in ((smaller.image[..., 0], given_.image[..., 0]), (smaller.masks[1], given_.masks[1])):
        wanted = Image.fromarray(plane.numpy(), "F").resize((128, 96), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found.numpy(), np.asarray(wanted), atol=1e-4)


def test_the_fingerprint_is_of_picture_masks_and_sizes() -> None:
    scene = scene_of()
    mark = scene.fingerprint()
    assert len(mark) == 16
    assert Scene(scene.image.clone(), scene.masks.clone()).fingerprint() == mark
    others = [Scene(scene.image.flip(0), scene.masks), Scene(scene.image, scene.masks.flip(0)), Scene(scene.image, scene.masks[:1]),
              Scene(scene.image.reshape(64, 192, 3), scene.masks.reshape(2, 64, 192))]  # fmt: skip
    assert len({mark, *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_union_sampling_reaches_every_subset_in_every_order_equally_often(count: int) -> None:
    scene = scene_of(THREE)
    rng = np.random.default_rng(0)
    orders = list(itertools.permutations(range(3), count))
    found = Counter(draw(scene, count, "original", False, rng).subjects for _ in range(60 * len(orders)))
    assert found.keys() == set(orders)
    assert all(30 < times < 90 for times in found.values())


@pytest.mark.parametrize(("background", "move"), [("plain", True), ("plain", False), ("original", True)])
def test_the_same_numbers_draw_the_same_and_others_another(background: Any, move: bool) -> None:
    scene = scene_of(THREE)
    first, again = (drawn(scene, 2, background, move, seed=4) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.masks, again.masks)
    assert first.subjects == again.subjects
    others = [drawn(scene, 2, background, move, seed) for seed in range(5, 12)]
    assert not all(torch.equal(first.masks, other.masks) for other in others)


def flipped(scene: Scene, shown: Shown) -> bool:
    """Whether the masks are mirrored ones; each mask must be its subject's, so or so."""
    own = scene.masks[list(shown.subjects)]
    straight = torch.equal(shown.masks, own)
    mirrored = torch.equal(shown.masks, own.flip(2))
    assert straight != mirrored
    return mirrored


@pytest.mark.parametrize("move", [True, False])
def test_the_original_background_leaves_the_picture_as_it_is(move: bool) -> None:
    """To the bit, but for a flip of picture and masks together, in about half of all pictures."""
    scene = scene_of(THREE)
    mirrored = 0
    for seed in range(60):
        shown = drawn(scene, 2, "original", move, seed)
        turned = flipped(scene, shown)
        mirrored += turned
        assert torch.equal(shown.image, scene.image.flip(1) if turned else scene.image)
    assert 18 < mirrored < 42


def test_subjects_that_stay_stand_on_one_colour() -> None:
    """The paper's way: their own pixels to the bit inside of the masks drawn, a plain colour elsewhere, also over subjects not drawn."""
    scene = scene_of(THREE)
    mirrored = 0
    colours = set()
    scene.masks[0, 8:12] *= 0.5  # a soft edge is a mixture of both
    for seed in range(40):
        shown = drawn(scene, 2, "plain", False, seed)
        turned = flipped(scene, shown)
        mirrored += turned
        image = shown.image.flip(1) if turned else shown.image
        union = scene.masks[list(shown.subjects)].amax(0)
        assert torch.equal(image[union == 1], scene.image[union == 1])
        ground = image[union == 0]
        assert torch.equal(ground, ground[:1].expand_as(ground))
        torch.testing.assert_close(image[union == 0.5], (scene.image[union == 0.5] + ground[0]) / 2)
        colours.add(tuple(ground[0].tolist()))
    assert 10 < mirrored < 30
    assert len(colours) == 40


def moments(weight: Tensor) -> tuple[float, Tensor, Tensor]:
    """Area, middle (down, across) and covariance of a weight [H, W], in pixels."""
    places = torch.stack(torch.meshgrid(*(torch.arange(side) + 0.5 for side in weight.shape), indexing="ij"), -1).double()
    part = (weight.double() / weight.double().sum())[..., None]
    middle = (places * part).sum((0, 1))
    apart = places - middle
    return float(weight.sum()), middle, torch.einsum("hwi,hwj->ij", apart * part, apart)


@given(
    canvas=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    halves=st.tuples(st.integers(6, 35), st.integers(6, 35)),
    seed=st.integers(0, 2**30),
)
@settings(max_examples=60, deadline=None)
def test_a_moved_subject_is_whole_and_little_changed(canvas: tuple[int, int], halves: tuple[int, int], seed: int) -> None:
    """Its mask is still a rectangle's: area and covariance belong together only if nothing is cut off at the canvas's edges.

    Its size, proportions and turn are within what was promised, and its quarters' colours are equally large and stand in their order.
    """
    height = 32 * canvas[0]
    width = 32 * canvas[1]
    box = (2 * halves[0], 2 * halves[1])
    shown = drawn(quartered((5, 7, *box), height, width), 1, seed=seed)
    (mask,) = shown.masks
    area, _, covariance = moments(mask)
    sides = (12 * torch.linalg.eigvalsh(covariance)).sqrt()
    assert float(sides.prod()) == pytest.approx(area, rel=0.03)
    ratio = float(sides[1] / sides[0])
    own = max(box) / min(box)
    assert max(1.0, own / 1.25 / 1.08) < ratio < own * 1.25 * 1.08
    part, (rows, columns) = math.sqrt(area / (height * width)), torch.where(mask > 0.5)
    reaches_over_all = int(rows.max() - rows.min()) > height - 3 or int(columns.max() - columns.min()) > width - 3
    assert part < 0.75 * 1.03
    assert part > 0.35 * 0.95 or reaches_over_all
    quarters = [mask * ((shown.image - torch.tensor(colour)).abs().amax(-1) < 0.1) for colour in (RED, GREEN, BLUE, YELLOW)]
    areas, middles, _ = zip(*(moments(quarter) for quarter in quarters), strict=True)
    assert min(areas) > 0.8 * max(areas)
    (down, across), (below, aside) = ((middles[number] - middles[0]).tolist() for number in (1, 2))
    assert below > 0
    assert max(abs(math.degrees(math.atan(down / across))), abs(math.degrees(math.atan(aside / below)))) < 20 + 3


def test_moved_subjects_stand_anywhere_in_many_sizes_and_turns_both_ways() -> None:
    scene = quartered((30, 40, 36, 36), 96, 128)
    found = []
    mirrored = 0
    for seed in range(80):
        shown = drawn(scene, 1, seed=seed)
        area, middle, _ = moments(shown.masks[0])
        red, green, blue = (
            moments(shown.masks[0] * ((shown.image - torch.tensor(colour)).abs().amax(-1) < 0.1))[1] for colour in (RED, GREEN, BLUE)
        )
        mirrored += bool(green[1] < red[1])
        aside = float(blue[1] - red[1])
        below = float(blue[0] - red[0])
        found.append([area / (96 * 128), float(middle[0]) / 96, float(middle[1]) / 128, math.degrees(math.atan(aside / below))])
    least, most = torch.tensor(found).aminmax(dim=0)
    assert 24 < mirrored < 56
    assert least[0] < 0.42**2
    assert most[0] > 0.68**2
    assert (least[1:3] < 0.35).all()
    assert (most[1:3] > 0.65).all()
    assert least[3] < -14
    assert most[3] > 14


@pytest.mark.parametrize("count", [1, 2, 3])
def test_inside_a_moved_mask_are_the_subjects_own_colours_and_one_plain_colour_outside(count: int) -> None:
    scene = scene_of(THREE)
    grounds = set()
    for seed in range(25):
        shown = drawn(scene, count, seed=seed)
        assert shown.masks.shape == (count, 96, 128)
        assert shown.image.shape == (96, 128, 3)
        assert shown.masks.min() >= 0
        assert shown.masks.max() <= 1
        assert ((shown.masks > 0.1) & (shown.masks < 0.9)).float().mean() < 0.03
        for mask, number in zip(shown.masks, shown.subjects, strict=True):
            apart = (shown.image[mask > 0.99] - COLOURS[number]).abs()
            assert len(apart) > 100
            assert apart.max() < 0.02
        ground = shown.image[shown.masks.amax(0) == 0]
        assert len(ground) > 1000
        assert torch.equal(ground, ground[:1].expand_as(ground))
        grounds.add(tuple(ground[0].tolist()))
    assert len(grounds) == 25


def test_several_never_cover_much_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one covers another, that part of the mask is the upper one's alone."""
    scene = scene_of(THREE)
    placed = mcgm_samples._placed
    seen: list[Tensor] = []

    def watched(*given_: Any) -> tuple[Tensor, Tensor]:
        found = placed(*given_)
        seen.append(found[1])
        return found

    monkeypatch.setattr(mcgm_samples, "_placed", watched)
    touching = tried = 0
    for seed in range(40):
        seen.clear()
        shown = drawn(scene, 2, seed=seed)
        lower = seen[0]
        upper = seen[-1]
        tried += len(seen) > 2
        covered = float((lower * upper).sum() / lower.sum())
        touching += covered > 0
        assert covered <= 0.05
        wanted = torch.stack([lower * (1 - upper), upper])
        assert torch.equal(shown.masks, wanted) or torch.equal(shown.masks, wanted.flip(2))
    assert touching > 2
    assert tried > 2
    for seed in range(20):
        assert drawn(scene, 3, seed=seed).masks.sum(0).max() <= 1 + 1e-6


def test_where_there_is_no_room_the_covered_part_is_taken_from_the_lower_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three subjects that can only stand upon one another: the search ends, and each mask is what is seen of its subject."""
    scene = scene_of(THREE)
    calls = []

    def stacked(image: Tensor, mask: Tensor, count: int, rng: Any) -> tuple[Tensor, Tensor]:
        number = next(number for number, own in enumerate(scene.masks) if own is mask or torch.equal(own, mask))
        calls.append(number)
        assert count == 3
        mark = torch.zeros(96, 128)
        mark[20:60, 10 + 10 * number : 70 + 10 * number] = 1
        return COLOURS[number].expand(96, 128, 3), mark

    monkeypatch.setattr(mcgm_samples, "_placed", stacked)
    shown = drawn(scene, 3)
    assert len(calls) == 1 + 2 * (mcgm_samples.TRIES + 1)
    assert torch.equal(shown.masks.sum(0).max(), torch.tensor(1.0))
    for mask, number in zip(shown.masks, shown.subjects, strict=True):
        assert (shown.image[mask == 1] == COLOURS[number]).all()
    assert shown.masks[-1].sum() == 40 * 60
    assert shown.masks.sum() == max(abs(one - other) for one, other in itertools.combinations(range(3), 2)) * 400 + 40 * 60


def test_an_empty_mask_is_no_subject() -> None:
    scene = scene_of()
    with pytest.raises(ValueError, match="the mask is empty"):
        drawn(Scene(scene.image, scene.masks * 0.4), 1)
