"""Shift, zoom and tint are found again that SciPy's splines put on photographs, and nothing is claimed where nothing can be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.images import align, correlation, mend, robust_fit, warp
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from benchmarks.tables import paste_back
from benchmarks.tables.paste_back import SHIFT_BAR, ZOOM_BAR, Case, case, seam_error


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def picture(height: int = 120, width: int = 150, seed: int = 0) -> torch.Tensor:
    """A picture [H, W, 3] of soft blots."""
    grain = np.random.default_rng(seed).normal(size=(height, width, 3))
    soft = ndimage.gaussian_filter(grain, (2.5, 2.5, 0))
    return torch.from_numpy((0.5 + 0.15 * soft / soft.std()).clip(0, 1)).float()


def hole(height: int = 120, width: int = 150) -> torch.Tensor:
    """Where nothing is painted: all but the middle."""
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = False
    return outside


def shifted(original: torch.Tensor, right: float, down: float, zoom: float) -> torch.Tensor:
    """The picture's content moved and zoomed about its centre, by cubic splines."""
    height, width = original.shape[:2]
    rows = height / 2 + (np.arange(height) + 0.5 - height / 2 - down) / zoom - 0.5
    columns = width / 2 + (np.arange(width) + 0.5 - width / 2 - right) / zoom - 0.5
    places = np.meshgrid(rows, columns, indexing="ij")
    planes = [ndimage.map_coordinates(original[..., colour].numpy(), places, order=3, mode="reflect") for colour in range(3)]
    return torch.from_numpy(np.stack(planes, -1)).float().clamp(0, 1)


@pytest.mark.parametrize("seed", range(0, 24, 4))
def test_what_was_done_to_a_photograph_is_found(seed: int) -> None:
    one: Case = case(seed)
    pieces, (report,) = mend.mended(one.original[None], one.painted[None], (one.mask == 0)[None], True, True, False)
    found = report.found
    assert found.place_told
    assert found.tint_told
    assert abs(found.right - one.right) <= SHIFT_BAR
    assert abs(found.down - one.down) <= SHIFT_BAR
    assert abs(found.zoom - one.zoom) <= ZOOM_BAR
    # A gain and an offset make up for each other where a picture has little contrast; what counts is the colour that results.
    colours = one.original[one.mask == 0].numpy()
    seen = np.array(found.gain) * colours + np.array(found.offset)
    assert np.abs(seen - (one.gain * colours + one.offset)).mean() < 0.012
    plain = mend.undone(one.painted, align.Alignment(), pieces.shape[1], pieces.shape[2])
    assert seam_error(one, pieces[0]) < 0.6 * seam_error(one, plain)


@pytest.mark.parametrize("seed", [5, 25])
def test_a_zoom_out_of_the_refinements_reach_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 and 9 %. Where the search tries no zoom, nothing can be told of these two."""
    monkeypatch.setattr(paste_back, "ZOOM", 0.09)
    one = case(seed)
    assert one.zoom < 0.92
    _, (report,) = mend.mended(one.original[None], one.painted[None], (one.mask == 0)[None], True, True, False)
    assert report.found.place_told
    assert abs(report.found.right - one.right) <= SHIFT_BAR
    assert abs(report.found.down - one.down) <= SHIFT_BAR
    assert abs(report.found.zoom - one.zoom) <= ZOOM_BAR


def test_what_is_taken_back_is_the_picture_that_was() -> None:
    original = picture()
    gain, offset = torch.tensor([1.05, 0.95, 1.0]), torch.tensor([-0.03, 0.02, 0.01])
    piece = shifted(original, 2.3, -1.4, 1.015) * gain + offset
    found = align.measure(original, piece, hole())
    assert (found.right, found.down, found.zoom) == (
        pytest.approx(2.3, abs=0.05),
        pytest.approx(-1.4, abs=0.05),
        pytest.approx(1.015, abs=5e-4),
    )
    before, after = ((made - original)[10:-10, 10:-10].abs().mean() for made in (piece, mend.undone(piece, found, 120, 150)))
    assert after < 0.1 * before
    tinted = mend.undone(piece, found, 120, 150, tint=False)
    assert float((tinted - original).mean((0, 1))[0]) == pytest.approx(0.5 * 0.05 - 0.03, abs=0.01)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_numbers_are_pixels_of_the_original_whatever_the_pieces_size(scale: float) -> None:
    original = picture(160, 200)
    piece = shifted(original, 4.0, 3.0, 1.0)
    size = (round(160 * scale), round(200 * scale))
    piece = torch.nn.functional.interpolate(piece.movedim(-1, 0)[None], size=size, mode="bicubic", antialias=True)[0].movedim(0, -1)
    found = align.measure(original, piece, hole(160, 200))
    assert found.place_told
    assert abs(found.right - 4) < 0.1
    assert abs(found.down - 3) < 0.1
    assert abs(found.zoom - 1) < 0.001


def test_a_piece_that_was_left_alone_is_left_alone() -> None:
    original = picture()
    pieces, (report,) = mend.mended(original[None], original[None], hole()[None], True, True, False)
    assert (report.found.right, report.found.down) == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))
    assert report.sentence == "The surroundings came back where they were and in their colours."
    assert not report.moved
    assert not report.tinted
    torch.testing.assert_close(pieces[0], original, atol=2e-4, rtol=0)


def test_with_all_off_the_pieces_are_the_very_tensor() -> None:
    painted = picture()[None]
    assert mend.mended(picture()[None], painted, hole()[None], False, False, False)[0] is painted


@pytest.mark.parametrize(
    ("original", "piece", "outside", "reason"),
    [
        (torch.full((120, 150, 3), 0.4), torch.full((120, 150, 3), 0.5), hole(), "too little to hold on to"),
        (picture(), picture(seed=1), hole(), "painted anew"),
        (picture(), picture(), torch.zeros(120, 150, dtype=torch.bool), "too little outside of the mask"),
        (picture(), picture(), hole() & False | (torch.arange(150) < 1), "too little outside of the mask"),
        (torch.linspace(0, 1, 150)[None, :, None].expand(120, 150, 3), torch.linspace(0, 1, 150)[None, :, None].expand(120, 150, 3), hole(),
         "too little to hold on to"),
    ],
    ids=["an even picture", "another picture", "a full mask", "a line of surroundings", "a slope"],
)  # fmt: skip
def test_what_cannot_be_told_is_not(original: torch.Tensor, piece: torch.Tensor, outside: torch.Tensor, reason: str) -> None:
    found = align.measure(original, piece, outside)
    assert not found.place_told
    assert reason in found.reason
    assert (found.right, found.down, found.zoom) == (0, 0, 1)
    assert f"Shift and zoom cannot be told: {found.reason}." in mend.reported(found, 120, 150).sentence


def test_an_even_surrounding_tells_its_tint() -> None:
    found = align.measure(torch.full((90, 90, 3), 0.4), torch.tensor([0.45, 0.40, 0.35]).expand(90, 90, 3), hole(90, 90))
    assert found.tint_told
    undone = mend.undone(torch.tensor([0.45, 0.40, 0.35]).expand(90, 90, 3), found, 90, 90)
    torch.testing.assert_close(undone, torch.full((90, 90, 3), 0.4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 200), (20, 20), (9, 1000)])
@pytest.mark.parametrize("piece_size", [(8, 8), (64, 32)])
def test_odd_sizes_are_answered_with_numbers(size: tuple[int, int], piece_size: tuple[int, int]) -> None:
    outside = torch.ones(size, dtype=torch.bool)
    pieces, reports = mend.mended(random(1, *size, 3), random(1, *piece_size, 3, seed=1), outside[None], True, True, True)
    assert pieces.shape == (1, *size, 3)
    assert torch.isfinite(pieces).all()
    assert reports[0].sentence


def test_each_picture_of_a_batch_is_measured_by_itself() -> None:
    original = picture()
    painted = torch.stack([shifted(original, 3, 0, 1), shifted(original, 0, -2, 1), original])
    pieces, reports = mend.mended(original[None], painted, hole()[None], True, False, False)
    assert len(pieces) == 3
    assert [round(report.found.right) for report in reports] == [3, 0, 0]
    assert [round(report.found.down) for report in reports] == [0, -2, 0]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (align.Alignment(2.34, -1.1, 1.012, place_told=True, tint_told=True), "back 2.3 px to the right, 1.1 px up, 1.2 % larger."),
        (align.Alignment(-2.34, 0.01, 0.97, place_told=True), "back 2.3 px to the left, 3.0 % smaller."),
        (align.Alignment(gain=(1.1, 1.1, 1.1), place_told=True, tint_told=True), "back 5.0 % brighter, with 10 % more contrast."),
        (align.Alignment(offset=(-0.05, 0, 0), place_told=True, tint_told=True), "back 1.7 % darker, 3.3 % more cyan, 1.7 % greener, 1."),
        (align.Alignment(offset=(0, 0, 0.06), tint_told=True, reason="it is even"), "4.0 % bluer. Shift and zoom cannot be told: it is e"),
    ],
)  # fmt: skip
def test_what_was_found_is_said_in_words(found: align.Alignment, sentence: str) -> None:
    assert sentence in mend.reported(found, 200, 300).sentence


def test_the_correlation_is_pearsons_of_what_overlaps() -> None:
    """Against a loop over all shifts."""
    original, piece, outside = random(12, 15), random(12, 15, seed=1), random(12, 15, seed=2) > 0.3
    found = correlation.correlation(original, piece, outside, 3)
    for down in range(-3, 4):
        for right in range(-3, 4):
            pairs = [
                (original[row, column], piece[row + down, column + right])
                for row in range(12) for column in range(15)
                if outside[row, column] and 0 <= row + down < 12 and 0 <= column + right < 15
            ]  # fmt: skip
            wanted = np.corrcoef(np.array(pairs).T)[0, 1] if len(pairs) >= 0.75 * int(outside.sum()) else 0.0
            assert float(found[down + 3, right + 3]) == pytest.approx(wanted, abs=1e-6)


def test_several_pieces_at_once_are_correlated_as_each_alone() -> None:
    original, pieces, outside = random(12, 15), random(3, 12, 15, seed=1), random(12, 15, seed=2) > 0.3
    found = correlation.correlation(original, pieces, outside, 3)
    assert found.shape == (3, 7, 7)
    for piece, scores in zip(pieces, found, strict=True):
        torch.testing.assert_close(scores, correlation.correlation(original, piece, outside, 3), atol=1e-6, rtol=0)


def test_scikit_images_masked_registration_finds_the_same_shift() -> None:
    original, outside = picture(), hole()
    piece = shifted(original, 5, -3, 1)
    everywhere = np.ones((120, 150), bool)
    theirs: Any = phase_cross_correlation(
        piece.mean(-1).numpy(), original.mean(-1).numpy(), reference_mask=everywhere, moving_mask=outside.numpy(), overlap_ratio=0.7
    )
    scores = correlation.correlation(original.mean(-1), piece.mean(-1), outside, 8)
    down, right = divmod(int(scores.argmax()), 17)
    assert [down - 8, right - 8] == [-3, 5] == [round(float(number)) for number in theirs[0]]


@pytest.mark.parametrize("zoom", [0.97, 1.0, 1.04])
def test_moving_is_scipys_resampling(zoom: float) -> None:
    plane = picture(60, 80)
    found = warp.moved(plane.movedim(-1, 0), 1.3, -0.7, zoom).movedim(0, -1)
    rows = (np.arange(60) + 0.5 - 30) * zoom - 0.7 + 30 - 0.5
    columns = (np.arange(80) + 0.5 - 40) * zoom + 1.3 + 40 - 0.5
    places = np.meshgrid(rows, columns, indexing="ij")
    wanted = np.stack([ndimage.map_coordinates(plane[..., colour].numpy(), places, order=3, mode="nearest") for colour in range(3)], -1)
    inner = warp.inside(60, 80, 1.3, -0.7, zoom).numpy()
    inner[:4], inner[-4:], inner[:, :4], inner[:, -4:] = False, False, False, False
    off = np.abs(found.numpy() - wanted)[inner]
    assert off.mean() < 0.003  # a tenth of a pixel would be 0.004
    assert off.max() < 0.02


def test_what_was_painted_anew_does_not_pull() -> None:
    """A third of the surroundings is another picture: a fit that counted it would be far off."""
    original = picture()
    piece = shifted(original, 1.7, 0.6, 0.99)
    piece[:, :40] = picture(seed=5)[:, :40]
    found = align.measure(original, piece, hole())
    assert abs(found.right - 1.7) < 0.1
    assert abs(found.down - 0.6) < 0.1
    planes = [part.movedim(-1, 0) for part in (original, piece)]
    trusting = robust_fit.refined(planes[0], planes[1], hole(), torch.zeros(3, dtype=torch.float64), (100.0,))
    assert abs(float(trusting.move[0]) - 1.7) > 0.1
