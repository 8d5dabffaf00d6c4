"""Points and boxes as people type them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maskprompt.images.typed_coordinates import parse_boxes, parse_points


@pytest.mark.parametrize(
    "text",
    [
        "200,150; 370,290",
        " 200, 150 ;370 290;",
        "(200,150);(370,290)",
        "200,150\n370,290\n",
        "2e2,150.0; 370.,+290",
        "200\uff0c150\uff1b370\uff0c290",
        "\uff08\uff12\uff10\uff10\uff0c150\uff09\uff1b370\u3000290",
        '[{"x": 200, "y": 150}, {"x": 370, "y": 290, "label": "cup"}]',
        [{"x": 200, "y": 150}, {"x": 370.0, "y": 290}],
    ],
)
def test_points_in_every_form_people_write(text: object) -> None:
    assert parse_points(text, "points", 400, 600) == ((200.0, 150.0), (370.0, 290.0))


@given(st.lists(st.tuples(st.integers(0, 640), st.integers(0, 480)), min_size=1, max_size=20))
def test_short_text_and_json_say_the_same(points: list[tuple[int, int]]) -> None:
    short = ";".join(f"{x},{y}" for x, y in points)
    long = json.dumps([{"x": x, "y": y} for x, y in points])
    assert parse_points(short, "p", 480, 640) == parse_points(long, "p", 480, 640) == tuple((float(x), float(y)) for x, y in points)


@pytest.mark.parametrize("nothing", [None, "", "  \n", "[]", ";;", []])
def test_nothing_is_no_points_and_no_boxes(nothing: object) -> None:
    assert parse_points(nothing, "points", 400, 600) == ()
    assert parse_boxes(nothing, "box") == []


def test_boxes_are_rounded_by_their_corners() -> None:
    assert parse_boxes("10,20,200,100", "box") == [{"x": 10, "y": 20, "width": 200, "height": 100}]
    assert parse_boxes("0.4,0.4,10.4,10; 1 2 3 4", "box") == [
        {"x": 0, "y": 0, "width": 11, "height": 10},
        {"x": 1, "y": 2, "width": 3, "height": 4},
    ]
    assert parse_boxes('{"x": 1, "y": 2, "width": 3, "height": 4}', "box") == [{"x": 1, "y": 2, "width": 3, "height": 4}]


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "[1,2,3,4]", '{"x": 1}', "1,2,nan,4", "1,2,3,1e400", "[" * 99_999, 7])
def test_what_is_no_box_is_refused_in_words(text: object) -> None:
    with pytest.raises(ValueError, match="box: write a box as left,top,width,height in pixels"):
        parse_boxes(text, "box")


@pytest.mark.parametrize("text", ["1", "1,2,3", "1;2", "x,y", "0x10,3", "nan,3", "1e400,3", "--1,2", "1,,2"])
def test_what_is_no_point_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="points: write the points as 120,80; 200,150"):
        parse_points(text, "points", 400, 600)
