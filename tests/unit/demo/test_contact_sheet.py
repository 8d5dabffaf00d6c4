"""The README's row of before and after, and the thumbnails: every picture in its place, and renewed only when it was painted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import run
from demo.contact_sheet import GAP, INK, PAPER, before_and_after, thumbnail

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (40, 40, 200)


def plain(colour: tuple[int, int, int], size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_pairs_stand_in_a_row_with_an_arrow_between() -> None:
    """Sizes by hand: at a height of 60 a picture of 3:2 is 90 wide, a square one 60."""
    pairs = [(plain(RED, (300, 200)), plain(GREEN, (300, 200))), (plain(BLUE, (80, 80)), plain(RED, (80, 80)))]
    page = np.asarray(before_and_after(pairs, height=60))
    assert page.shape == (60, 2 * 90 + 2 * GAP + 2 * GAP + 2 * 60 + 2 * GAP, 3)
    for left, width, colour in ((0, 90, RED), (90 + 2 * GAP, 90, GREEN), (180 + 4 * GAP, 60, BLUE), (240 + 6 * GAP, 60, RED)):
        assert (page[:, left : left + width] == colour).all()
    arrow = page[:, 90 : 90 + 2 * GAP]
    assert (arrow[30] == INK).all(-1).any()
    assert (arrow[[0, -1]] == PAPER).all()
    assert (page[:, 180 + 2 * GAP : 180 + 4 * GAP] == PAPER).all()


def test_a_row_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        before_and_after([])


def test_the_row_is_renewed_when_all_that_it_shows_was_painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(run.IN_STRIP) <= run.workflows().keys()
    monkeypatch.setattr(run, "WORKFLOWS", tmp_path)
    monkeypatch.setattr(run, "STRIP", tmp_path / "row.jpg")
    painted = {
        name: [("before", plain(RED, (60, 40))), ("seen", plain(BLUE, (60, 40))), ("after", plain(GREEN, (60, 40)))]
        for name in run.IN_STRIP
    }
    first = run.IN_STRIP[0]
    run.renew_pictures({first: painted[first]})
    assert [file.name for file in tmp_path.iterdir()] == [f"{first}.jpg"]
    run.renew_pictures(painted)
    assert {file.stem for file in tmp_path.iterdir()} == {*run.IN_STRIP, "row"}
    with Image.open(tmp_path / "row.jpg") as row:
        colours = np.asarray(row.convert("RGB"))[20]
    reds, greens, blues = (int((abs(colours - np.array(colour)).max(-1) < 25).sum()) for colour in (RED, GREEN, BLUE))
    assert reds > 1000
    assert greens > 1000
    assert blues == 0


def test_the_inset_lies_where_it_hides_least() -> None:
    """Three corners of the painted picture are speckled; the inset is in the fourth."""
    for x, y in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pixels = np.random.default_rng(x + 2 * y).integers(0, 255, (512, 512, 3), dtype=np.uint8)
        pixels[256 * y : 256 * (y + 1), 256 * x : 256 * (x + 1)] = GREEN
        page = np.asarray(thumbnail(plain(RED, (512, 512)), Image.fromarray(pixels)))
        reds = (page == RED).all(-1)
        assert reds[256 * y : 256 * (y + 1), 256 * x : 256 * (x + 1)].sum() > 20_000
        assert reds.sum() < 30_000
