"""Which of SAM's masks is the whole object, and a mask in one piece: against drawn cases and against a flood fill written another way."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models.sam import choice


def disc(size: int, radius: float, sharpness: float = 10.0) -> torch.Tensor:
    """Logits [size, size] of a disc in the middle; a small sharpness means an unsteady outline."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (radius - torch.hypot(rows - size / 2, columns - size / 2)) * sharpness


def first(*logits: torch.Tensor, scores: tuple[float, ...]) -> int:
    return int(choice.whole_object_rank(torch.stack(logits), torch.tensor(scores)).argmax())


def test_a_coat_comes_before_its_button_though_the_button_is_sharper() -> None:
    button = disc(64, 4)
    coat = disc(64, 20)
    assert first(button, coat, scores=(0.99, 0.93)) == 1
    assert first(coat, button, scores=(0.93, 0.99)) == 0


def test_the_wall_behind_the_coin_does_not_win_by_its_size() -> None:
    coin = disc(64, 8)
    wall = torch.full((64, 64), 10.0)
    assert first(coin, wall, scores=(1.0, 0.94)) == 0


def test_an_unsteady_outline_loses_to_a_steady_one_of_half_the_size() -> None:
    assert first(disc(64, 14), disc(64, 20, sharpness=0.05), scores=(0.95, 0.95)) == 0


def test_equal_masks_are_ranked_by_score() -> None:
    assert first(disc(64, 9), disc(64, 9), scores=(0.8, 0.9)) == 1


def test_empty_masks_are_ranked_without_nan() -> None:
    rank = choice.whole_object_rank(torch.full((3, 8, 8), -5.0), torch.tensor([0.1, 0.2, 0.3]))
    assert rank.isfinite().all()
    assert int(rank.argmax()) == 2


def reached(inside: list[list[bool]], starts: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """All cells that are connected to the starts through cells of the same kind, by their sides."""
    seen: set[tuple[int, int]] = set()
    todo = list(starts)
    while todo:
        row, column = todo.pop()
        if (row, column) in seen or not inside[row][column]:
            continue
        seen.add((row, column))
        for below, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= row + below < len(inside) and 0 <= column + right < len(inside[0]):
                todo.append((row + below, column + right))
    return seen


@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 10_000), st.booleans())
@settings(max_examples=150, deadline=None)
def test_one_piece_is_a_flood_fill_from_the_point_and_from_the_border(height: int, width: int, seed: int, dense: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(height, width, generator=generator) < (0.7 if dense else 0.5)
    if not mask.any():
        assert not choice.one_piece(mask).any()
        return
    cells = mask.nonzero()
    row, column = cells[int(torch.randint(len(cells), (1,), generator=generator))].tolist()
    piece = reached(mask.tolist(), {(row, column)})
    rest = [[(r, c) not in piece for c in range(width)] for r in range(height)]
    border = {(r, c) for r in range(height) for c in range(width) if r in (0, height - 1) or c in (0, width - 1)}
    outside = reached(rest, border)
    expected = torch.tensor([[(r, c) not in outside for c in range(width)] for r in range(height)])
    assert torch.equal(choice.one_piece(mask, on=[(column + 0.5, row + 0.5)]), expected)


def test_the_one_hole_of_a_mask_along_the_whole_border_is_filled() -> None:
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[2, 2] = False
    assert choice.one_piece(ring).all()
    assert not choice.one_piece(ring, off=[(2.5, 2.5)])[2, 2]


def test_without_a_point_the_largest_piece_stays_and_with_a_part_those_of_that_size() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[1:11, 1:11] = True
    mask[1:7, 14:20] = True
    mask[15:17, 1:3] = True
    assert choice.one_piece(mask).sum() == 100
    assert choice.one_piece(mask, least=0.25).sum() == 136
    assert choice.one_piece(mask, on=[(2, 16)]).sum() == 4
    assert choice.one_piece(mask, on=[(2, 16), (15, 2)]).sum() == 40
    assert choice.one_piece(mask, on=[(25, 18)]).sum() == 100


def test_a_point_that_is_not_on_the_object_keeps_its_hole_open() -> None:
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[2:18, 2:18] = True
    mask[5:8, 5:8] = False
    mask[12:15, 12:15] = False
    assert choice.one_piece(mask).sum() == 256
    kept = choice.one_piece(mask, off=[(6.5, 6.5)])
    assert kept.sum() == 256 - 9
    assert not kept[6, 6]
    assert kept[13, 13]


def test_points_on_the_far_edge_count_as_the_last_pixel() -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[3, 5] = True
    mask[:2, :2] = True
    assert choice.one_piece(mask, on=[(6.0, 4.0)]).nonzero().tolist() == [[3, 5]]
