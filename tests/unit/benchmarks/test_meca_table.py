"""The figures of MECA's table: cases, what the judge's words are made into, intervals, and the distance to renders."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from benchmarks.cache import Kept
from benchmarks.figures import rate
from benchmarks.tables import meca, meca_cases, meca_methods, meca_scores
from benchmarks.tables import run as tables
from demo import judge, scenes

GOOD = meca_scores.Score(True, False, True, True, True, True, False, False, 3.0)
BAD = meca_scores.Score(False, True, False, False, False, False, True, False, 30.0)
SIDE = 128


@pytest.fixture(scope="module")
def eye() -> judge.Judge:
    return judge.load()


@pytest.fixture(scope="module")
def made(eye: judge.Judge) -> list[meca_cases.Case]:
    return meca_cases.cases(eye, 10)


def picture(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).float() / 255


def scene(things: tuple[scenes.Thing, ...], ground: str, seed: int = 3) -> np.ndarray:
    return scenes.render(scenes.Scene(things, ground, seed), SIDE).image


def thing(shape: str, colour: str, x: float = 0.5, y: float = 0.5, size: float = 0.44) -> scenes.Thing:
    return scenes.Thing(shape, scenes.Paint(colour), x, y, size)


CASE = meca_cases.Case(scenes.Scene((thing("star", "red"),), "grass", 1), thing("heart", "blue"), "sand", (64, 64, 56, 56))
CENTRE = (64 + 28) / SIDE


def score_of(eye: judge.Judge, things: tuple[scenes.Thing, ...], ground: str) -> meca_scores.Score:
    return meca_scores.judged(eye, picture(scene(things, ground)), [CASE])[0]


def test_it_is_a_table() -> None:
    assert tables.TABLES["meca"] == "meca"


def test_cases_are_of_two_objects_and_two_grounds_that_training_never_put_together(made: list[meca_cases.Case]) -> None:
    grounds = [case.reference.ground for case in made]
    assert [ground == scenes.PHOTO for ground in grounds] == [number % 5 == 4 for number in range(10)]
    assert len(set(grounds)) >= 7
    for case in made:
        one = case.unwanted
        two = case.thing
        assert one.shape != two.shape
        assert one.paint.colour != two.paint.colour
        assert case.ground not in (case.reference.ground, scenes.PHOTO)
        assert scenes.held_out(one.shape, one.paint.colour, case.reference.ground)
        assert scenes.held_out(two.shape, two.paint.colour, case.reference.ground)
        assert scenes.held_out(two.shape, two.paint.colour, case.ground)
        assert two.shape in case.text
        assert case.text.endswith(f"{two.paint.colour} {two.shape} on {case.ground}")
        assert (case.reference.photo is not None) == (case.reference.ground == scenes.PHOTO)


def test_boxes_are_whole_cells_inside_the_picture(made: list[meca_cases.Case]) -> None:
    for x, y, width, height in (case.box for case in made):
        assert all(value % 8 == 0 for value in (x, y, width, height))
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= SIDE
        assert all(0.4 <= side / SIDE <= 0.55 for side in (width, height))
    regions = meca_cases.regions_of(made)
    for region, (x, y, width, height) in zip(regions, (case.box for case in made), strict=True):
        assert region.sum() == SIDE * SIDE - width * height
        assert region[y : y + height, x : x + width].sum() == 0


def test_fewer_cases_are_the_first_of_more(eye: judge.Judge, made: list[meca_cases.Case]) -> None:
    again = meca_cases.cases(eye, 5)
    assert again == made[:5]
    assert again[4].reference.photo is not None
    assert np.array_equal(np.asarray(again[4].reference.photo), np.asarray(made[4].reference.photo))


def test_the_ground_is_that_of_the_region_alone(eye: judge.Judge) -> None:
    """Grass around a box of night: the whole picture's ground is one of them, the parts' grounds are both."""
    outside = scene((), "grass")
    inside = scene((), "night")
    both = outside.copy()
    both[16:112, 24:104] = inside[16:112, 24:104]
    box = torch.zeros(2, SIDE, SIDE)
    box[:, 16:112, 24:104] = 1
    pictures = picture(both, both)
    assert meca_cases.grounds_of(eye, pictures, 1 - box) == ["grass", "grass"]
    assert meca_cases.grounds_of(eye, pictures, box) == ["night", "night"]
    assert meca_cases.grounds_of(eye, pictures, torch.stack([box[0], 1 - box[0]])) == ["night", "grass"]


def test_of_the_whole_picture_it_is_what_the_judge_says(eye: judge.Judge, made: list[meca_cases.Case]) -> None:
    pictures = torch.stack([meca_cases.shown(case.reference)[0] for case in made])
    assert meca_cases.grounds_of(eye, pictures, torch.ones(10, SIDE, SIDE)) == [verdict.ground for verdict in judge.look(eye, pictures)]


def test_renders_of_what_was_asked_are_pure_and_leak_nothing(eye: judge.Judge, made: list[meca_cases.Case]) -> None:
    rng = np.random.default_rng(0)
    scores = meca_scores.judged(eye, picture(*(case.wanted(rng) for case in made)), made)
    assert sum(score.pure for score in scores) >= 9
    assert sum(score.leak for score in scores) <= 1
    assert all(score.off < 15 for score in scores if score.ground)


def test_what_is_asked_is_an_object_in_the_box_on_the_ground_of_the_reference(eye: judge.Judge) -> None:
    right = score_of(eye, (thing("heart", "blue", CENTRE, CENTRE, 0.4),), "grass")
    assert (right.pure, right.leak, right.other) == (True, False, False)
    beside = score_of(eye, (thing("heart", "blue", 0.25, 0.25, 0.4),), "grass")
    assert (beside.ground, beside.found, beside.asked, beside.anywhere) == (True, False, False, True)
    other = score_of(eye, (thing("heart", "blue", CENTRE, CENTRE, 0.4),), "sand")
    assert (other.asked, other.ground, other.other, other.pure) == (True, False, True, False)
    assert other.off > 2 * right.off


def test_a_leak_is_the_shape_or_the_colour_of_the_references_object_anywhere(eye: judge.Judge) -> None:
    heart = thing("heart", "blue", CENTRE, CENTRE, 0.4)
    seen = {
        "both": score_of(eye, (thing("star", "red", 0.25, 0.25, 0.4), heart), "grass"),
        "shape": score_of(eye, (thing("star", "white", 0.25, 0.25, 0.4), heart), "grass"),
        "colour": score_of(eye, (thing("heart", "red", CENTRE, CENTRE, 0.4),), "grass"),
        "another": score_of(eye, (thing("ball", "white", 0.25, 0.25, 0.4), heart), "grass"),
    }
    assert {name: (score.same_shape, score.same_colour) for name, score in seen.items()} == {
        "both": (True, True), "shape": (True, False), "colour": (False, True), "another": (False, False),
    }  # fmt: skip
    assert [score.leak for score in seen.values()] == [True, True, True, False]
    assert (seen["colour"].shape, seen["colour"].colour, seen["colour"].asked) == (True, False, False)


def units(wanted: np.ndarray) -> np.ndarray:
    return wanted.std(0) + 0.1 * wanted.std(0).mean()


def test_the_distance_is_frechets() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 3
    found = rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6))
    one, two = (part / units(wanted) for part in (found, wanted))
    first, second = (np.cov(part, rowvar=False) for part in (one, two))
    root: Any = linalg.sqrtm(first @ second)
    expected = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root.real)
    assert meca_scores.fid(found, wanted) == pytest.approx(float(expected), rel=1e-6)
    assert meca_scores.fid(wanted, wanted) == pytest.approx(0, abs=1e-6)
    assert meca_scores.fid(wanted + 2 * units(wanted), wanted) == pytest.approx(4 * 6)


def test_the_distance_of_fewer_pictures_than_features() -> None:
    """Two pictures each, apart along one feature: normal distributions, (mean 1 - mean 2)² + (deviation 1 - deviation 2)² apart."""
    found = np.zeros((2, 5))
    wanted = np.zeros((2, 5))
    found[1, 2] = 6.0
    wanted[1, 2] = 2.0
    unit = 1 + 0.1 * 1 / 5
    assert meca_scores.fid(found, wanted) == pytest.approx(((6 - 2) / 2 / unit) ** 2 + ((6 - 2) / math.sqrt(2) / unit) ** 2)


def test_a_feature_that_renders_hardly_have_does_not_outweigh_the_others() -> None:
    rng = np.random.default_rng(4)
    wanted = np.concatenate([rng.normal(size=(300, 4)), 1e-9 * rng.normal(size=(300, 1))], 1)
    found = np.concatenate([rng.normal(size=(300, 4)), 0.1 * rng.normal(size=(300, 1))], 1)
    assert meca_scores.fid(found, wanted) < 3


def test_the_distances_interval_is_that_of_cases_left_out() -> None:
    rng = np.random.default_rng(1)
    wanted = rng.normal(size=(500, 3))
    figures = [meca_scores.fid_figure("", rng.normal(size=(count, 2, 3)) + 0.5, wanted) for count in (20, 180)]
    for figure in figures:
        assert figure.low < figure.value < figure.high
    assert [figure.cases for figure in figures] == [40, 360]
    assert (figures[1].high - figures[1].low) < 0.6 * (figures[0].high - figures[0].low)
    same = np.tile(rng.normal(size=(1, 1, 3)), (9, 2, 1))
    assert meca_scores.fid_figure("", same, wanted).high == pytest.approx(meca_scores.fid_figure("", same, wanted).low)


def test_seeds_of_one_mind_count_once() -> None:
    rng = np.random.default_rng(2)
    single = rng.random((64, 1)) < 0.4
    assert meca_scores.design_effect(single.tolist()) == 1
    assert meca_scores.design_effect(single.repeat(4, 1).tolist()) == 4
    assert meca_scores.design_effect((rng.random((2000, 2)) < 0.4).tolist()) == pytest.approx(1, abs=0.1)
    assert meca_scores.design_effect([[True, True]] * 9) == 1
    assert meca_scores.design_effect([[True, False]]) == 1


def test_a_rates_interval_is_no_narrower_than_its_cases_allow() -> None:
    rng = np.random.default_rng(3)
    cases = (rng.random((64, 1)) < 0.4).tolist()
    alone = meca_scores.clustered_rate("", cases)
    twice = meca_scores.clustered_rate("", [[row[0], row[0]] for row in cases])
    assert alone == rate("", [row[0] for row in cases])
    assert twice.value == alone.value
    assert (twice.cases, alone.cases) == (128, 64)
    assert (twice.high - twice.low) == pytest.approx(alone.high - alone.low, rel=0.05)
    every = meca_scores.clustered_rate("", [[True, True]] * 64)
    assert every.value == 1
    assert every.high == pytest.approx(1)
    assert 0.9 < every.low < 1


def mixed(share: float, count: int = 64) -> meca_scores.Scores:
    return [[GOOD if number < share * count else BAD] * 2 for number in range(count)]


@pytest.mark.parametrize(
    ("measure", "more", "one", "two", "met"),
    [
        (meca_scores.PURE, True, 0.9, 0.2, True),
        (meca_scores.PURE, True, 0.2, 0.9, False),
        (meca_scores.PURE, True, 0.5, 0.5, False),
        (meca_scores.PURE, True, 0.55, 0.45, False),
        (meca_scores.PURE, False, 0.9, 0.2, False),
        (meca_scores.LEAK, False, 0.9, 0.2, True),
        (meca_scores.LEAK, False, 0.2, 0.9, False),
        (meca_scores.LEAK, False, 0.55, 0.45, False),
    ],
)
def test_the_bar_is_met_by_intervals_that_do_not_touch(measure: str, more: bool, one: float, two: float, met: bool) -> None:
    """GOOD is pure, BAD leaks: so with more GOOD there is more purity and less leak."""
    figure = meca_scores.against("", measure, mixed(one), mixed(two), more)
    wanted = (one - two) * (1 if measure == meca_scores.PURE else -1)
    assert figure.met is met
    assert figure.value == pytest.approx(wanted, abs=0.02)
    assert figure.low - 1e-9 <= figure.value <= figure.high + 1e-9
    assert figure.bar.startswith("more" if more else "less")


def test_figures_of_a_method_are_of_its_scores() -> None:
    scores = [[GOOD, GOOD], [GOOD, BAD], [replace(GOOD, colour=False), replace(GOOD, ground=False)], [BAD, BAD]]
    figures = {figure.name.removeprefix("x: "): figure for figure in meca_scores.figures_of("x", scores, [False, True, False, True])}
    assert figures[meca_scores.PURE].value == 3 / 8
    assert figures[meca_scores.GROUND].value == 4 / 8
    assert figures[meca_scores.LEAK].value == 3 / 8
    assert figures["leak of its colour"].value == 0
    assert figures["the text's object in the box"].value == 4 / 8
    assert figures["ground outside the box is the text's"].value == 3 / 8
    assert figures["colour of the ground off (CIEDE2000)"].value == pytest.approx((5 * 3 + 3 * 30) / 8)
    assert figures[f"{meca_scores.GROUND}, drawn grounds"].value == 3 / 4
    assert figures[f"{meca_scores.GROUND}, photographs"].value == 1 / 4


def test_a_set_of_pictures_is_kept_by_all_that_it_is_made_from(tmp_path: Path, made: list[meca_cases.Case]) -> None:
    bench = object.__new__(meca.Bench)
    bench.kept = Kept(tmp_path, {})
    bench.files = {"checkpoint": "c", "vision": "v"}
    bench.of_adapters = {"region": "a", "query": "b"}
    pages = {bench.page(made[:2], method, seed) for method in meca_methods.METHODS for seed in (0, 1)}
    assert len(pages) == 2 * len(meca_methods.METHODS)
    moved = replace(made[0], box=(0, 0, 56, 56))
    assert bench.page([moved, made[1]], meca_methods.REGION, 0) not in pages
    assert bench.page(made[1:3], meca_methods.REGION, 0) not in pages
    bench.of_adapters = {**bench.of_adapters, "region": "trained further"}
    assert bench.page(made[:2], meca_methods.TEXT, 0) in pages
    assert bench.page(made[:2], meca_methods.REGION, 0) not in pages
    assert bench.page(made[:2], meca_methods.OWN_QUERY, 0) in pages


def test_methods_have_names_of_their_own() -> None:
    assert len({method.name for method in meca_methods.METHODS}) == len(meca_methods.METHODS)
    for seen in ({meca_methods.WHOLE}, {meca_methods.HIDE, meca_methods.PAPER}):
        row = [meca.short(method) for method in meca_methods.METHODS if method.seen in seen]
        assert len(set(row)) == len(row)
    assert {method.mode for method in meca_methods.METHODS} == {"", "render", "global", "region", "query"}


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (GOOD, "right"),
        (BAD, "text's ground, empty, leak"),
        (replace(GOOD, colour=False, same_colour=True), "colour, leak"),
        (replace(GOOD, ground=False, shape=False), "other ground, shape"),
        (replace(GOOD, shape=False, colour=False), "object"),
    ],
)
def test_a_verdict_in_words(score: meca_scores.Score, words: str) -> None:
    assert meca.said(score) == words
