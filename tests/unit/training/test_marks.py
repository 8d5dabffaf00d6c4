"""Masks that look like a background's are named before hours are spent on them."""

from __future__ import annotations

import pytest
import torch
from maskprompt.training.data import marks


def box(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    """A mask of 100 x 200 pixels, white from row `top` to before `bottom` and column `left` to before `right`."""
    mask = torch.zeros(100, 200)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (1 - box(30, 70, 60, 140), "touches all four borders of it"),
        (torch.ones(100, 200), "touches all four borders of it"),
        (box(2, 98, 3, 197), "covers 93 % of it"),
        (box(0, 100, 40, 160), None),
        (box(0, 96, 0, 170), "covers 82 % of it"),
        (box(0, 75, 0, 200), None),
        (box(0, 76, 0, 200), "covers 76 % of it"),
        (box(20, 80, 30, 100), None),
        (torch.full((100, 200), 0.4), None),
    ],
)
def test_what_touches_every_border_or_covers_most_is_doubted(mask: torch.Tensor, said: str | None) -> None:
    found = marks.doubt("picture 3", mask)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"The mask of picture 3 {said}. If it marks the background, invert it")


def test_a_thin_frame_is_enough() -> None:
    frame = 1 - box(1, 99, 1, 199)
    assert frame.mean() < 0.04
    assert "all four borders" in str(marks.doubt("picture 1", frame))


def test_the_first_are_named_and_the_others_counted() -> None:
    inverted = 1 - box(30, 70, 60, 140)
    named = [(f"picture {number}", inverted if number != 2 else box(30, 70, 60, 140)) for number in range(1, 8)]
    found = marks.doubts(named)
    assert [sentence.split(" ")[4] for sentence in found[:3]] == ["1", "3", "4"]
    assert found[3:] == ("So do 3 more.",)
    assert marks.doubts(named[:2]) == found[:1]
    assert marks.doubts([]) == ()
