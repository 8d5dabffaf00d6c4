"""What the tiny model learns from: exact scenes, and an autoencoder that the stock VAE loader reads."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from demo import scenes
from demo.scenes import Paint, Scene, Thing

from ...support.demo_scenes import colour_error, thing

distance_inside: Any = ndimage.distance_transform_edt
GROUNDS = (*scenes.GROUNDS, scenes.PHOTO)


def test_there_is_enough_to_learn() -> None:
    assert len(set(scenes.SHAPES)) >= 10
    assert len(scenes.COLOURS) >= 8
    assert len(set(scenes.COLOURS.values())) == len(scenes.COLOURS)
    assert len(set(scenes.GROUNDS)) >= 8
    assert set(scenes.PATTERNS) == {"halves", "stripes", "dots"}


AREAS = {
    "ball": math.pi * 0.88**2,
    "box": 1.44**2,
    "triangle": 1.8 * 1.62 / 2,
    "star": 10 * 0.95 * 0.4 * math.sin(math.pi / 5) / 2,
    "ring": math.pi * (0.9**2 - 0.46**2),
    "cross": 2 * 1.76 * 0.6 - 0.6**2,
    "arrow": 1.0 * 0.52 + 1.4 * 0.82 / 2,
}
"""The areas of shapes in a square from -1 to 1, by hand."""


@pytest.mark.parametrize("shape", AREAS)
def test_a_shape_has_its_area_at_every_tilt(shape: str) -> None:
    for tilt in (0.0, 11.0):
        mask = scenes.shape_mask(shape, 96, tilt)
        assert mask.dtype == np.float32
        assert mask.mean() * 4 == pytest.approx(AREAS[shape], rel=0.025)


def test_no_two_shapes_are_alike() -> None:
    drawn = {shape: scenes.shape_mask(shape, 64) for shape in scenes.SHAPES}
    for one, two in itertools.combinations(drawn.values(), 2):
        assert np.minimum(one, two).sum() / np.maximum(one, two).sum() < 0.9
    for unknown in (lambda: scenes.shape_mask("cube", 64), lambda: scenes.ground_pixels("lava", 64, np.random.default_rng(0))):
        with pytest.raises(ValueError, match=r"unknown .*; known:"):
            unknown()


@pytest.mark.parametrize("ground", scenes.GROUNDS)
def test_a_scene_is_the_same_every_time(ground: str) -> None:
    scene = Scene((thing(),), ground, seed=5)
    one = scenes.render(scene, 64)
    two = scenes.render(scene, 64)
    assert one.image.dtype == np.uint8
    assert one.image.shape == (64, 64, 3)
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(one.image, scenes.render(Scene((thing(),), ground, seed=6), 64).image)


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_masks_boxes_and_colours_are_exact(shape: str, colour: str) -> None:
    rendered = scenes.render(Scene((thing(shape, colour, 0.55, 0.45, 0.6, 9.0),), "grass", seed=3))
    (mask,), (box,) = rendered.masks, rendered.boxes
    rows, columns = np.where((mask > 0.5).any(1))[0], np.where((mask > 0.5).any(0))[0]
    assert box == (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    assert abs(box[0] + box[2] / 2 - 0.55 * 128) < 12
    assert abs(box[1] + box[3] / 2 - 0.45 * 128) < 12
    error, light = colour_error(rendered.image[mask == 1], colour)
    assert error.max() < 9
    assert light.mean() == pytest.approx(scenes.MEAN_LIGHT, abs=0.05)


def test_far_from_an_object_the_ground_is_untouched() -> None:
    rendered = scenes.render(Scene((thing(size=0.4),), "bricks", seed=3))
    empty = scenes.render(Scene((), "bricks", seed=3))
    far = distance_inside(rendered.masks[0] == 0) > 0.4 * 128 / 3
    assert 0.2 < far.mean() < 1
    assert np.array_equal(rendered.image[far], empty.image[far])
    assert not np.array_equal(rendered.image, empty.image)


def test_a_later_object_hides_an_earlier_one() -> None:
    first = thing("ball", "red", 0.4)
    second = thing("box", "blue", 0.6)
    alone = [scenes.render(Scene((one,), "snow", seed=1)).masks[0] for one in (first, second)]
    both = scenes.render(Scene((first, second), "snow", seed=1))
    assert np.array_equal(both.masks[1], alone[1])
    np.testing.assert_allclose(both.masks[0], alone[0] * (1 - alone[1]), atol=1e-6)
    overlap = (alone[0] == 1) & (alone[1] == 1)
    assert overlap.sum() > 100
    assert colour_error(both.image[overlap], "blue")[0].max() < 9
    assert both.boxes[0] == scenes.box_of(both.masks[0])
    assert both.boxes[0][2] < scenes.box_of(alone[0])[2]


def test_a_hidden_object_has_an_empty_box() -> None:
    assert scenes.render(Scene((thing("star", size=0.2), thing("box", "blue", size=0.6)), "sand")).boxes[0] == (0, 0, 0, 0)


@pytest.mark.parametrize("pattern", scenes.PATTERNS)
def test_a_pattern_has_two_colours(pattern: str) -> None:
    paint = Paint("red", "white", pattern)
    rendered = scenes.render(Scene((Thing("ball", paint, 0.5, 0.5, 0.7),), "grass"))
    pixels = rendered.image[rendered.masks[0] == 1]
    errors = [colour_error(pixels, colour)[0] for colour in ("red", "white")]
    assert np.minimum(*errors).max() < 9
    assert all((error < 9).mean() > 0.15 for error in errors)
    assert paint.words == f"red and white {pattern}"
    with pytest.raises(ValueError, match="two colours"):
        scenes.render(Scene((Thing("ball", Paint("red", None, pattern), 0.5, 0.5, 0.7),), "grass"))


def test_a_photograph_is_the_ground() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    rendered = scenes.render(Scene((thing(size=0.3),), scenes.PHOTO, photo=photo))
    far = distance_inside(rendered.masks[0] == 0) > 16
    difference = np.abs(rendered.image[far].astype(int) - photo[far])
    assert difference.mean() < 2
    assert difference.max() < 10


def test_captions() -> None:
    star = thing()
    ball = thing("ball", "red")
    assert Scene((star,), "grass").caption() == "an orange star on grass"
    assert Scene((ball,), "water").caption(prefix="a photo of ") == "a photo of a red ball on water"
    assert Scene((star, ball), "sky").caption() == "an orange star and a red ball on sky"
    assert Scene((star, ball), "sky").caption(with_ground=False) == "an orange star and a red ball"
    assert Scene((ball,), scenes.PHOTO).caption() == "a red ball on a photo"


def test_a_third_of_the_combinations_is_held_out_and_stays_so() -> None:
    triples = list(itertools.product(scenes.SHAPES, scenes.COLOURS, GROUNDS))
    part = sum(scenes.held_out(*triple) for triple in triples) / len(triples)
    assert 0.28 < part < 0.39
    assert part == 259 / 720
    for values in (scenes.SHAPES, scenes.COLOURS, GROUNDS):
        for value in values:
            with_it = [scenes.held_out(*triple) for triple in triples if value in triple]
            assert 0 < sum(with_it) < len(with_it)
    for triple in (("fish", "blue", "water"), ("heart", "purple", "night"), ("moon", "yellow", "night"), ("cross", "green", "photo")):
        assert scenes.held_out(*triple)
    for triple in (("star", "orange", "grass"), ("ball", "red", "grass"), ("ball", "red", "photo"), ("box", "white", "snow")):
        assert not scenes.held_out(*triple)


def test_training_never_shows_what_is_held_out() -> None:
    rng = np.random.default_rng(0)
    photo = np.zeros((8, 8, 3), np.uint8)
    shown = set()
    counts = []
    for number in range(3000):
        scene = scenes.random_scene(rng, photo if number % 4 == 0 else None)
        assert (scene.ground == scenes.PHOTO) == (number % 4 == 0)
        counts.append(len(scene.things))
        for one in scene.things:
            assert one.paint.pattern is None
            assert one.paint.second is None
            assert not scenes.held_out(one.shape, one.paint.colour, scene.ground)
            shown.add((one.shape, one.paint.colour, scene.ground))
    assert len(shown) > 0.97 * (720 - 259)
    # Two objects are refused more often, for either may be held out.
    assert 0.15 < counts.count(2) / len(counts) < 0.3
    assert set(counts) == {1, 2}
    assert any(
        scenes.held_out(one.shape, one.paint.colour, scene.ground)
        for scene in (scenes.random_scene(rng, allow_held_out=True) for _ in range(50))
        for one in scene.things
    )


def test_random_scenes_show_all_of_their_objects_in_the_captions_order() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        scene = scenes.random_scene(rng, two=0.7)
        rendered = scenes.render(scene, 64)
        assert [one.x for one in scene.things] == sorted(one.x for one in scene.things)
        for one, mask in zip(scene.things, rendered.masks, strict=True):
            whole = scenes.shape_mask(one.shape, round(one.size * 64), one.tilt)
            assert mask.sum() > 0.85 * whole.sum()
