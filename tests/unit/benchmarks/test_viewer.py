"""What a viewer saw beside what judges say: only of the pictures of these very weights, picture by picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.tables import viewer
from demo.tiny_edit import things

FOX, PANDA, PENGUIN = things.NAMED[:3]
SAID = {
    "weights": "abc",
    "pairs": [["panda", "fox"], ["fox", ""], ["penguin", "fox"]],
    "boxes": {"0": [True, True, False], "1": [True, True, True]},
    "named": {"0": ["fox", "panda", "fox"], "1": ["panda", "panda", "panda"]},
    "subjects": {"0": ["koala", "crab", "koala"], "1": ["koala", "koala", "koala"]},
}


@pytest.fixture
def said(tmp_path: Path) -> Path:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(SAID), "utf-8")
    return file


def test_it_is_a_viewer_of_these_weights_or_none(said: Path, tmp_path: Path) -> None:
    assert viewer.Viewer.load("abc", said) is not None
    assert viewer.Viewer.load("other", said) is None
    assert viewer.Viewer.load("abc", tmp_path / "none.json") is None


def test_two_things_are_right_in_any_order_and_judges_are_held_against_it(said: Path) -> None:
    seen = viewer.Viewer.load("abc", said)
    assert seen is not None
    asked = [(FOX, PANDA), (FOX, PENGUIN), (FOX, PENGUIN)]
    own, first, second = seen.of_pairs("two", asked, [[True, False, False], [False, True, False]])
    assert (own.value, own.cases) == (pytest.approx(2 / 3), 3)
    assert first.value == pytest.approx(2 / 3)
    assert second.value == 0
    assert own.met is None
    assert "viewer" in own.name
    assert "the judge" in first.name
    assert "matching" in second.name


def test_boxes_and_subjects_are_those_of_their_prompts(said: Path) -> None:
    seen = viewer.Viewer.load("abc", said)
    assert seen is not None
    verdicts = [[True, True, True]]
    assert [one.value for one in seen.of_boxes("box", 1, verdicts)] == [1, 1]
    assert [one.value for one in seen.of_boxes("box", 0, verdicts)] == [pytest.approx(2 / 3)] * 2
    assert seen.of_named("box", 0, [FOX] * 3, verdicts)[0].value == pytest.approx(2 / 3)
    assert seen.of_named("box", 1, [FOX] * 3, verdicts)[0].value == 0
    koala = next(code for code in things.HELD_OUT if things.words_of(code) == "koala")
    assert seen.of_subjects("subject", 0, [koala] * 3, verdicts)[0].value == pytest.approx(2 / 3)
    assert seen.of_subjects("subject", 1, [koala] * 3, verdicts)[0].value == 1
