"""The seam's colours: against a dense sum over all pixels, and on pieces whose tint is known."""

from __future__ import annotations

import pytest
import torch
from maskprompt.images import colour


def hole(height: int, width: int) -> torch.Tensor:
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = False
    return outside


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


def test_shepards_mean_is_the_dense_sum() -> None:
    values = torch.rand(2, 9, 13, generator=torch.Generator().manual_seed(0))
    weight = (torch.rand(9, 13, generator=torch.Generator().manual_seed(1)) - 0.5).clamp(min=0)
    found = colour.shepard(values, weight)
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(13.0), indexing="ij")
    for row in range(9):
        for column in range(13):
            near = weight * ((rows - row) ** 2 + (columns - column) ** 2 + colour.SOFT**2) ** -1.5
            torch.testing.assert_close(found[:, row, column], (values * near).sum((1, 2)) / near.sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(60, 80), (400, 250)])
def test_a_tint_goes_from_inside_the_mask_too(size: tuple[int, int]) -> None:
    original = picture(*size)
    tinted = original + torch.tensor([0.08, -0.05, 0.02])
    found = colour.seam_matched(tinted, original, hole(*size))
    torch.testing.assert_close(found, original, atol=2e-3, rtol=0)


def test_a_tint_that_changes_from_side_to_side_is_followed_at_the_seam() -> None:
    """One gain for the whole piece could not: one side is too bright, the other too dark."""
    original = picture(120, 160)
    slope = torch.linspace(-0.1, 0.1, 160)[None, :, None]
    found = colour.seam_matched(original + slope, original, hole(120, 160))
    for column in (41, 119):
        before = (slope[0, column].expand(60, 3)).abs().mean()
        assert (found - original)[30:90, column].mean(0).abs().max() < 0.25 * before


def test_what_was_painted_anew_beside_the_mask_is_let_go_of() -> None:
    """A shadow that the model added outside of the mask must not brighten the object."""
    original = picture(120, 120)
    piece = original + 0.03
    piece[30:60, :30] -= 0.4
    found = colour.seam_matched(piece, original, hole(120, 120))
    assert (found - original)[40:80, 40:80].mean() == pytest.approx(0, abs=0.005)


def test_nothing_outside_of_the_mask_leaves_the_piece_as_it_is() -> None:
    piece = picture(30, 40)
    assert colour.seam_matched(piece, picture(30, 40, 1), torch.zeros(30, 40, dtype=torch.bool)) is piece


def test_a_piece_that_fits_stays() -> None:
    piece = picture(61, 83)
    torch.testing.assert_close(colour.seam_matched(piece, piece, hole(61, 83)), piece, atol=1e-6, rtol=0)
