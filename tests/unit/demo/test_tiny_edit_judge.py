"""The judge of tiny-edit's world, on made-up cut-outs: it names and places what is there, also what no list of training holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from demo.tiny_edit import judge, painter, records, scenes, things, world

from ...support import tiny_edit_world

CODES = (*things.NAMED[:4], *things.HELD_OUT[:2])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return tiny_edit_world.quartered(tmp_path_factory.mktemp("judge"), CODES)


@pytest.fixture(scope="module")
def eye(place: world.World) -> judge.Judge:
    return judge.Judge(place, CODES)


def test_it_names_and_places_things(place: world.World, eye: judge.Judge) -> None:
    """Coloured squares are no things of its world: it knows most of them all the same, one of six by chance."""
    rng = np.random.default_rng(1)
    named = []
    placed = []
    for number in range(48):
        code = CODES[number % len(CODES)]
        scene, picture = judge.random_picture(rng, place, [code], 96)
        found = eye.look(picture)[0]
        named.append(found.code == code)
        placed.append(abs(found.centre - scene.things[0].x) < 0.1)
    assert np.mean(named) > 0.8
    assert np.mean(placed) > 0.8


def test_it_is_asked_about_some_things_or_all(place: world.World, eye: judge.Judge) -> None:
    _, picture = judge.random_picture(np.random.default_rng(2), place, [CODES[3]], 96)
    every = eye.look(picture)
    assert sorted(one.code for one in every) == sorted(CODES)
    assert [one.evidence for one in every] == sorted((one.evidence for one in every), reverse=True)
    some = eye.look(picture, CODES[:2])
    assert some == [one for one in every if one.code in CODES[:2]]


def test_two_things_are_two(place: world.World, eye: judge.Judge) -> None:
    ground = scenes.Ground("sand", seed=4)
    layout = (scenes.Placed(CODES[0], 0.25, 0.5, 0.35), scenes.Placed(CODES[3], 0.75, 0.6, 0.4))
    picture = torch.from_numpy(scenes.render(place, scenes.Scene(layout, ground), 96).image).permute(2, 0, 1) / 255
    found = eye.things(picture, 2)
    assert {one.code for one in found} == {CODES[0], CODES[3]}
    assert {one.code: one.centre < 0.5 for one in found} == {CODES[0]: True, CODES[3]: False}


def test_a_thing_that_is_not_there_is_less_like_it(place: world.World, eye: judge.Judge) -> None:
    ground = scenes.Ground("sand", seed=4)
    empty = torch.from_numpy(scenes.ground_pixels(place, ground, 96).copy()).permute(2, 0, 1) / 255
    thing = scenes.Placed(CODES[5], 0.4, 0.6, 0.4, tilt=4)
    shown = torch.from_numpy(scenes.render(place, scenes.Scene((thing,), ground), 96).image).permute(2, 0, 1) / 255
    there = eye.likeness(shown, CODES[5])
    assert eye.likeness(empty, CODES[5]).evidence < there.evidence - 5
    assert eye.likeness(empty, CODES[5]).likeness < there.likeness - 0.2
    assert judge.overlap(there.box, (0.2, 0.4, 0.4, 0.4)) > 0.8


def test_overlap_is_of_the_smaller_box() -> None:
    assert judge.overlap((0, 0, 0.5, 0.5), (0.25, 0, 0.25, 0.25)) == pytest.approx(1)
    assert judge.overlap((0, 0, 0.5, 0.5), (0.5, 0, 0.25, 0.25)) == 0
    assert judge.overlap((0, 0, 0.5, 0.4), (0.25, 0.3, 0.5, 0.5)) == pytest.approx(0.025 / 0.2)


def test_what_lies_inside_is_a_part_of_the_first_box() -> None:
    assert judge.inside((0.25, 0, 0.25, 0.25), (0, 0, 0.5, 0.5)) == pytest.approx(1)
    assert judge.inside((0, 0, 0.5, 0.5), (0.25, 0, 0.25, 0.25)) == pytest.approx(0.25)
    assert judge.inside((0, 0, 0.5, 0.5), (0.5, 0, 0.25, 0.25)) == 0


def test_it_names_grounds(place: world.World) -> None:
    eye = judge.GroundJudge(place, each=6)
    rng = np.random.default_rng(77)
    names = [name for name in place.grounds() for _ in range(2)]
    assert np.mean([eye.name(judge.picture_on(rng, place, name)) == name for name in names]) > 0.8


def test_held_out_sentences_are_of_held_out_pairs(place: world.World) -> None:
    chosen = painter.held_out_sentences(place, 40)
    assert len({text for text, _, _ in chosen}) == 40
    for text, code, ground in chosen:
        assert records.held_out(code, ground)
        assert things.words_of(code) in text
