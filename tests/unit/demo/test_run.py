"""Workflows by number and by words of their titles, as one types them."""

from __future__ import annotations

import re

import pytest

from demo import run

TITLES = ["01 Cut out an object", "03 Cut out what a word names", "10 Two pictures, each in its region", "broken", "11 The model 1"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("01 Cut out an object", TITLES[:1]),
        ("1", TITLES[:1]),
        ("01", TITLES[:1]),
        ("10", TITLES[2:3]),
        ("cut_out", TITLES[:2]),
        ("cut_out_an_object", TITLES[:1]),
        ("Word names", TITLES[1:2]),
        ("pictures each", TITLES[2:3]),
        ("broken", TITLES[3:4]),
        ("11", TITLES[4:]),
    ],
)
def test_a_number_or_some_words_are_enough(typed: str, meant: list[str]) -> None:
    assert run.matching(typed, TITLES) == meant


@pytest.mark.parametrize("typed", ["0", "", "cut out a product", "2"])
def test_what_means_nothing_is_told(typed: str) -> None:
    with pytest.raises(ValueError, match="there are 01 Cut out an object; 03 Cut out what"):
        run.matching(typed, TITLES)


def test_one_that_is_needed_alone_must_be_meant_alone() -> None:
    assert run.workflow("2") == run.workflows(["02 Paint an object into a box"])["02 Paint an object into a box"]
    with pytest.raises(ValueError, match=r"each of 20 Teach your subject; .*write its number"):
        run.workflow("subject")


def test_numbers_are_titles_and_lead_from_easy_to_training() -> None:
    titles = list(run.workflows())
    numbers = [int(title[:2]) for title in titles]
    assert all(re.fullmatch(r"\d\d [A-Z][A-Za-z0-9,. -]+", title) for title in titles)
    assert numbers == sorted(set(numbers))
    trainings = [any(entry["class_type"].startswith("MaskPromptTrain") for entry in run.workflow(title).values()) for title in titles]
    assert not any(trainings[: trainings.index(True)])
    assert trainings[-1]
    assert titles[0] == "01 Cut out an object"


def test_what_needs_nothing_of_each_other_is_painted_beside_each_other() -> None:
    every = run.in_order(run.paintable(run.workflows()))
    parts = run.together(every)
    assert sorted(name for part in parts for name in part) == sorted(every)
    numbers = [[title[:2] for title in part] for part in parts]
    assert ["20", "21"] in numbers
    assert ["22", "23", "24"] in numbers
    assert all(len(part) == 1 for part in numbers if part[0] not in ("20", "22"))
    assert [part[0] for part in numbers[:4]] == ["22", "20", "25", "26"]
