"""The second judge of tiny-edit's world, on made-up cut-outs: it names and places what is there, also what no list of training holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from demo.tiny_edit import judge, matching, scenes, things, world

from ...support import tiny_edit_world

CODES = (*things.NAMED[:4], *things.HELD_OUT[:2])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return tiny_edit_world.quartered(tmp_path_factory.mktemp("matching"), CODES)


@pytest.fixture(scope="module")
def eye(place: world.World) -> matching.Matcher:
    return matching.Matcher(place, CODES)


def test_it_names_and_places_things(place: world.World, eye: matching.Matcher) -> None:
    rng = np.random.default_rng(1)
    right = []
    for number in range(24):
        code = CODES[number % len(CODES)]
        scene, picture = judge.random_picture(rng, place, [code], 96)
        found = eye.look(picture)[0]
        right.append(found.code == code and abs(found.centre - scene.things[0].x) < 0.08)
    assert np.mean(right) > 0.9


def test_two_things_are_two(place: world.World, eye: matching.Matcher) -> None:
    ground = scenes.Ground("sand", seed=4)
    layout = (scenes.Placed(CODES[0], 0.25, 0.5, 0.35), scenes.Placed(CODES[3], 0.75, 0.6, 0.4))
    picture = torch.from_numpy(scenes.render(place, scenes.Scene(layout, ground), 96).image).permute(2, 0, 1) / 255
    found = eye.things(picture, 2)
    assert {one.code for one in found} == {CODES[0], CODES[3]}
    assert {one.code: one.centre < 0.5 for one in found} == {CODES[0]: True, CODES[3]: False}


def test_a_thing_that_is_not_there_is_less_like_it(place: world.World, eye: matching.Matcher) -> None:
    ground = scenes.Ground("sand", seed=4)
    empty = torch.from_numpy(scenes.ground_pixels(place, ground, 96).copy()).permute(2, 0, 1) / 255
    thing = scenes.Placed(CODES[5], 0.4, 0.6, 0.4, tilt=4)
    shown = torch.from_numpy(scenes.render(place, scenes.Scene((thing,), ground), 96).image).permute(2, 0, 1) / 255
    there = eye.likeness(shown, CODES[5])
    assert there.likeness > 0.9
    assert eye.likeness(empty, CODES[5]).likeness < there.likeness - 0.2
    assert judge.overlap(there.box, (0.2, 0.4, 0.4, 0.4)) > 0.8
