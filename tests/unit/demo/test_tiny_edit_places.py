"""Where tokens lie in the things that they show, held to the renderer: a thing whose colours say where in it a pixel is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.tiny_edit import places, records, scenes, things
from demo.tiny_edit.places import NOTHING
from demo.tiny_edit.scenes import Ground, Placed, Scene
from demo.tiny_edit.world import World

from ...support import tiny_edit_world

TOKENS = 16
SIZE = 256
THING = "1f98a"
WIDE = "1f697"


def told(width: int, height: int) -> np.ndarray:
    """A full rectangle, red from left to right, green from top to bottom, blue all over: uint8 [256, 256, 4]."""
    picture = np.zeros((256, 256, 4), np.uint8)
    left, top = (256 - width) // 2, (256 - height) // 2
    across = np.linspace(0, 200, width)[None, :].repeat(height, 0)
    along = np.linspace(0, 200, height)[:, None].repeat(width, 1)
    picture[top : top + height, left : left + width] = np.stack(
        [across, along, np.full_like(across, 200), np.full_like(across, 255)], -1
    )  # fmt: skip
    return picture


WORLD = World({THING: told(120, 240), WIDE: told(256, 128)}, {})
PARTS = {THING: (120 / 240, 1.0), WIDE: (1.0, 0.5)}


def seen(picture: np.ndarray, code: str) -> np.ndarray:
    """What the colours at the tokens' centres say: across and along in hundredths [2, 16, 16]."""
    centres = (np.arange(TOKENS) * SIZE + SIZE // 2) // TOKENS
    colours = picture[centres][:, centres].astype(float)
    blue = np.maximum(colours[..., 2], 1)
    width, height = PARTS[code]
    return np.stack([(colours[..., 0] / blue - 0.5) * 100 * width, (colours[..., 1] / blue - 0.5) * 100 * height])


def test_places_are_what_the_renderer_paints_there() -> None:
    """Of two shapes, small and large, turned and flipped; but for the very edge, where a pixel is half of the thing."""
    for thing in (
        Placed(THING, 0.5, 0.5, 0.8),
        Placed(THING, 0.4, 0.6, 0.6, tilt=20.0),
        Placed(WIDE, 0.55, 0.45, 0.7, tilt=-15.0, flip=True),
        Placed(WIDE, 0.3, 0.7, 0.45, flip=True),
    ):
        picture = scenes.render(WORLD, Scene((thing,), Ground("white wall", seed=1)), SIZE)
        expected = seen(picture.image, thing.code)
        found = places.places_of(WORLD, [thing], TOKENS)
        centres = (np.arange(TOKENS) * SIZE + SIZE // 2) // TOKENS
        covered = picture.masks[0][centres][:, centres]
        shown = found[0] != NOTHING
        assert np.array_equal(shown, found[1] != NOTHING)
        assert (shown[covered == 1]).mean() > 0.95
        assert not shown[covered == 0].mean() > 0.02
        sure = shown & (covered == 1)
        assert sure.sum() > 12
        assert np.abs(found[:2, sure] - expected[:, sure]).max() < 4
        assert set(found[2, sure].tolist()) == {places.NUMBERS[thing.code]}


def test_the_last_thing_counts_and_a_grey_box_shows_nothing() -> None:
    behind, before = Placed(WIDE, 0.5, 0.5, 0.9), Placed(THING, 0.5, 0.5, 0.5)
    both = places.places_of(WORLD, [behind, before], TOKENS)
    alone = places.places_of(WORLD, [before], TOKENS)
    covered = alone[0] != NOTHING
    assert np.array_equal(both[:, covered], alone[:, covered])
    assert np.array_equal(both[:, ~covered], places.places_of(WORLD, [behind], TOKENS)[:, ~covered])
    boxed = places.places_of(WORLD, [behind], TOKENS, (0.25, 0.0, 0.5, 1.0))
    assert (boxed[:, :, 4:12] == NOTHING).all()
    assert np.array_equal(boxed[:, :, :4], places.places_of(WORLD, [behind], TOKENS)[:, :, :4])


def test_half_of_the_size_has_the_places_of_half_as_many_tokens() -> None:
    """Those that are worked out anew, to a few hundredths; at the outline one may show the thing and the other not."""
    things = [Placed(THING, 0.45, 0.5, 0.9, tilt=10.0, flip=True)]
    half = places.halved(places.places_of(WORLD, things, 2 * TOKENS))
    anew = places.places_of(WORLD, things, TOKENS)
    assert half.shape == anew.shape
    assert half.dtype == np.int8
    both = (half[0] != NOTHING) & (anew[0] != NOTHING)
    assert both.sum() > 60
    assert (half[0] != NOTHING).sum() < 1.3 * both.sum()
    assert np.abs(half[:, both].astype(int) - anew[:, both]).max() <= 4
    assert np.array_equal(half[2, both], anew[2, both])


def test_features_tell_places_apart_and_are_zero_where_nothing_is() -> None:
    found = places.features_of(torch.tensor([[[NOTHING, NOTHING, NOTHING], [-50, 25, 5], [10, 0, -127]]], dtype=torch.int8))
    assert found.shape == (1, 3, places.FEATURES)
    assert not found[0, 0].any()
    angles = torch.tensor([part * math.pi * wave for part in (-0.5, 0.25) for wave in places.WAVES])
    five = torch.tensor([1, -1, 1, -1, -1, -1, -1, -1])
    torch.testing.assert_close(found[0, 1], torch.cat([torch.ones(1), angles.cos(), angles.sin(), five]))
    numbers = {*places.NUMBERS.values()}
    every = torch.tensor([[[0, 0, number] for number in numbers]], dtype=torch.int8)
    assert len(places.features_of(every)[0].unique(dim=0)) == len(numbers) == 2**places.BITS - 1


def test_a_named_things_number_is_its_own() -> None:
    named = [places.NUMBERS[code] for code in things.NAMED]
    assert len({*named}) == len(things.NAMED)
    assert not {*named} & {places.NUMBERS[code] for code in (*things.UNNAMED, *things.HELD_OUT)}
    assert NOTHING not in places.NUMBERS.values()
    assert len({*things.TRAINING, *things.HELD_OUT}) == len(things.TRAINING) + len(things.HELD_OUT)


def test_a_record_tells_the_places_of_all_its_pictures(tmp_path: Path) -> None:
    """The things' in the picture, without the one that the box hides, and none where there is the ground alone."""
    place = tiny_edit_world.make(tmp_path)
    for seed in range(6):
        one = records.record(np.random.default_rng(seed), place, 64)
        assert one.places.shape == (records.PICTURES, 3, 4, 4)
        assert (one.places[records.GROUND] == NOTHING).all()
        assert (one.places[records.PORTRAIT] != NOTHING).any()
        assert np.array_equal(one.places[records.FULL], one.places[records.ELSEWHERE])
        x, y, width, height = (round(part * 8) for part in one.about["box"])
        box = np.zeros((8, 8), bool)
        box[y : y + height, x : x + width] = True
        whole = box.reshape(4, 2, 4, 2).all((1, 3))
        assert (one.places[records.MASKED][:, whole] == NOTHING).all()
        if len(one.about["codes"]) == 1:
            assert (one.places[records.MASKED] == NOTHING).all()


def test_a_token_finds_its_own_piece_in_a_reference() -> None:
    """Of a thing turned, flipped, smaller: what the renderer paints there is what it paints here; other things are not looked at."""
    painted = Placed(WIDE, 0.55, 0.45, 0.7, tilt=-15.0, flip=True)
    shown = [Placed(WIDE, 0.3, 0.3, 0.55, tilt=10.0), Placed(THING, 0.75, 0.7, 0.5)]
    here = torch.from_numpy(places.places_of(WORLD, [painted], TOKENS)).flatten(1).T[None]
    there = torch.from_numpy(places.places_of(WORLD, shown, TOKENS)).flatten(1).T[None]
    wanted = places.matches(here, there)[0]
    sums = wanted.sum(-1)
    is_shown = here[0, :, 0] != NOTHING
    assert not sums[~is_shown].any()
    found = sums > 0
    assert found[is_shown].float().mean() > 0.95
    torch.testing.assert_close(sums[found], torch.ones(int(found.sum())))
    assert not wanted[:, there[0, :, 2] != places.NUMBERS[WIDE]].any()
    wall = Ground("white wall", seed=1)
    here_seen = seen(scenes.render(WORLD, Scene((painted,), wall), SIZE).image, WIDE).reshape(2, -1)
    there_seen = seen(scenes.render(WORLD, Scene((shown[0],), wall), SIZE).image, WIDE).reshape(2, -1)
    brought = there_seen @ wanted.numpy().T
    assert np.median(np.abs(brought - here_seen)[:, found.numpy()]) < 3


def test_looking_error_is_the_cross_entropy_of_tokens_that_have_a_match() -> None:
    """Written out for one token; as small as the wanted distribution's entropy if attention is that; zero without a match."""
    wanted = torch.tensor([[[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]]])
    looks = torch.tensor([[[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]]])
    shares = torch.tensor([1.0, 2.0, 3.0]).exp()
    expected = -(0.75 * math.log(shares[0] / shares.sum()) + 0.25 * math.log(shares[1] / shares.sum()))
    assert float(places.looking_error(looks, wanted)) == pytest.approx(expected, rel=1e-5)
    right = torch.tensor([[[math.log(0.75), math.log(0.25), -99.0], [0.0, 0.0, 0.0]]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(places.looking_error(right, wanted)) == pytest.approx(entropy, rel=1e-5)
    assert float(places.looking_error(looks, torch.zeros_like(wanted))) == 0
