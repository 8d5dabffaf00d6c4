"""A mask on a layer's grid, against pooling where pooling is defined and by hand elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.attention import grid

CPU = torch.device("cpu")


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_even_sizes_are_average_pooling(level: int, height: int, width: int, seed: int) -> None:
    factor = 2 ** (level - 1)
    torch.manual_seed(seed)
    mask = torch.rand(height * factor * 8, width * factor * 8)
    latent = (height * factor, width * factor)
    found = grid.to_grid(mask, latent, (0, 0, *latent), (height, width))
    torch.testing.assert_close(found, F.avg_pool2d(mask[None, None], factor * 8)[0, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [61, 83, 72, 104, 9, 1])
def test_the_grids_are_the_unets_own(size: int) -> None:
    """Three convolutions of stride 2 and padding 1, as the UNet halves."""
    x = torch.zeros(1, 1, size, size)
    for level in range(4):
        assert x.shape[-1] == grid.halved(size, level)
        edges = grid.cell_edges(size, x.shape[-1])
        assert edges[0] == 0
        assert edges[-1] == size
        assert torch.equal(edges[:-1], torch.arange(x.shape[-1], dtype=torch.float64) * 2**level)
        x = F.conv2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=1)


def test_an_odd_latents_last_cell_is_covered_by_what_is_left_of_it() -> None:
    mask = torch.zeros(61 * 8, 61 * 8)
    mask[60 * 8 :, 60 * 8 :] = 1
    found = grid.to_grid(mask, (61, 61), (0, 0, 61, 61), (31, 31))
    assert found[30, 30] == pytest.approx(1.0)
    assert found.sum() == pytest.approx(1.0)


def test_a_window_sees_its_own_part() -> None:
    mask = torch.rand(64, 96)
    whole = grid.to_grid(mask, (64, 96), (0, 0, 64, 96), (64, 96))
    window = grid.to_grid(mask, (64, 96), (16, 32, 24, 40), (24, 40))
    torch.testing.assert_close(window, whole[16:40, 32:72])


def test_a_mask_of_another_size_lands_in_the_same_place() -> None:
    small = torch.zeros(32, 48)
    large = torch.zeros(320, 480)
    small[8:16, 12:24] = 1
    large[80:160, 120:240] = 1
    one, two = (grid.to_grid(m, (16, 24), (0, 0, 16, 24), (16, 24)) for m in (small, large))
    torch.testing.assert_close(one, two)


def test_half_covered_is_inside_and_a_tiny_object_keeps_a_cell() -> None:
    mask = torch.zeros(64, 64)
    mask[:, :4] = 1
    assert grid.binary(grid.to_grid(mask, (8, 8), (0, 0, 8, 8), (8, 8)), mask)[:, 0].all()
    mask = torch.zeros(64, 64)
    mask[3:6, 17:20] = 1
    coarse = grid.binary(grid.to_grid(mask, (8, 8), (0, 0, 8, 8), (1, 1)), mask)
    assert coarse.all()
    fine = grid.binary(grid.to_grid(mask, (8, 8), (0, 0, 8, 8), (8, 8)), mask)
    assert fine.nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("window", [(0, 0, 16, 16), (0, 0, 16, 13), (3, 2, 10, 11)])
@pytest.mark.parametrize("cells", [1, 2, 4])
def test_in_a_part_of_the_picture_a_mask_that_lies_elsewhere_has_no_cell(window: grid.Window, cells: int) -> None:
    """Neither where its black is grey (a JPEG's), nor where its soft edge reaches into the part, nor where it covers a little of a cell."""
    size = (grid.halved(window[2], cells - 1), grid.halved(window[3], cells - 1))
    grey = 0.02 * torch.rand(128, 256, generator=torch.Generator().manual_seed(0))
    soft = torch.linspace(0.3, 0, 128).flip(0).repeat(128, 1)
    corner = torch.zeros(128, 256)
    for number, mask in enumerate((grey, torch.cat([soft, torch.zeros(128, 128)], 1), corner)):
        mask[:, 136:] = 1
        if number == 2:
            mask[64:68, 64:66] = 1
        assert not grid.RegionMask(mask[None]).cells(0, (16, 32), window, size, CPU).inside.any()


def test_a_tiny_object_keeps_its_cell_in_the_part_that_it_is_in() -> None:
    mask = torch.zeros(128, 256)
    mask[40:43, 60:63] = 1
    here = grid.RegionMask(mask[None]).cells(0, (16, 32), (0, 0, 16, 16), (4, 4), CPU)
    assert here.foreground.tolist() == [5]
    assert not grid.RegionMask(mask[None]).cells(0, (16, 32), (0, 16, 16, 16), (4, 4), CPU).inside.any()


@pytest.mark.parametrize(("window", "cells"), [((3, 5, 10, 11), (5, 6)), ((0, 0, 16, 13), (2, 2)), ((1, 0, 15, 32), (1, 1))])
def test_the_cells_of_a_part_are_among_those_around_it(window: grid.Window, cells: grid.Size) -> None:
    mask = torch.rand(128, 256, generator=torch.Generator().manual_seed(1))
    own = grid.to_grid(mask, (16, 32), window, cells)
    around = grid.around(mask, (16, 32), window, cells)
    rows, columns = (range(around.shape[axis] - cells[axis] + 1) for axis in (0, 1))
    assert any(torch.allclose(around[row : row + cells[0], column : column + cells[1]], own) for row in rows for column in columns)
    whole = grid.around(torch.ones(128, 256), (16, 32), window, cells)
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_an_almost_full_mask_is_full_and_an_almost_empty_one_empty() -> None:
    """JPEG masks are 0.98 and 0.02 where they mean 1 and 0."""
    for value, wanted in ((0.98, True), (0.02, False)):
        mask = torch.full((64, 64), value)
        cells = grid.RegionMask(mask[None]).cells(0, (8, 8), (0, 0, 8, 8), (8, 8), CPU)
        assert cells.inside.all() if wanted else not cells.inside.any()
        assert not cells.divided


def test_cells_are_remembered_by_everything_they_depend_on() -> None:
    masks = torch.zeros(2, 64, 64)
    masks[0, :32] = 1
    masks[1, 32:] = 1
    region = grid.RegionMask(masks)
    first = region.cells(0, (8, 8), (0, 0, 8, 8), (8, 8), CPU)
    assert region.cells(0, (8, 8), (0, 0, 8, 8), (8, 8), CPU) is first
    assert torch.equal(region.cells(1, (8, 8), (0, 0, 8, 8), (8, 8), CPU).inside, ~first.inside)
    assert len(region.cells(0, (8, 8), (0, 0, 4, 8), (4, 8), CPU).background) == 0
    for size in range(1, 2 * grid.MAX_CACHED):
        region.cells(0, (size, size), (0, 0, size, size), (1, 1), CPU)
    assert len(region._cells) <= grid.MAX_CACHED


@pytest.mark.parametrize(
    ("mask", "latent", "fits"),
    [
        ((512, 512), (64, 64), True),
        ((500, 333), (62, 41), True),
        ((64, 64), (128, 128), True),
        ((488, 664), (61, 83), True),
        ((512, 768), (64, 64), False),
        ((1024, 1024), (64, 96), False),
    ],
)
def test_a_mask_of_another_shape_is_refused(mask: grid.Size, latent: grid.Size, fits: bool) -> None:
    if fits:
        grid.check_aspect(mask, latent)
    else:
        with pytest.raises(ValueError, match="shapes differ"):
            grid.check_aspect(mask, latent)


@pytest.mark.parametrize("masks", [torch.zeros(0, 8, 8), torch.zeros(8, 8), torch.full((1, 8, 8), float("nan"))])
def test_what_is_no_mask_is_refused(masks: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="mask"):
        grid.RegionMask(masks)
