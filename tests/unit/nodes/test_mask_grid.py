"""Mask Grid: the picture's cells are those that Masked Attention works with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from maskprompt.attention import grid, layers
from maskprompt.nodes.mask_grid import INSIDE, NODES, PANEL, TITLE, MaskGrid

from ...support.unets import unet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def disc(height: int, width: int) -> torch.Tensor:
    """A mask [1, H, W] of a disc right of the middle."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((y - height / 2) ** 2 + (x - width * 0.6) ** 2 < (min(height, width) * 0.3) ** 2).float()[None]


def drawn(model: Any, mask: torch.Tensor, latent: tuple[int, ...] | None = None) -> torch.Tensor:
    """Mask Grid's picture, [H, W, 3]."""
    (image,) = MaskGrid.execute(model, mask, None if latent is None else {"samples": torch.zeros(1, 4, *latent)}).args
    assert image.ndim == 4
    assert image.shape[0] == 1
    assert image.min() >= 0
    assert image.max() <= 1
    return image[0]


def panels(image: torch.Tensor, grids: list[tuple[int, int]]) -> list[torch.Tensor]:
    """The panels' cells as colours [h, w, 3], read at the middle of every cell; checks that each cell is one colour."""
    found = []
    left = 0
    for height, width in grids:
        scale = max(1, PANEL // max(height, width))
        pixels = image[TITLE : TITLE + height * scale, left : left + width * scale]
        cells = pixels[scale // 2 :: scale, scale // 2 :: scale]
        assert torch.equal(cells.repeat_interleave(scale, 0).repeat_interleave(scale, 1), pixels)
        found.append(cells)
        left += image.shape[1] // len(grids)
    return found


def white(cells: torch.Tensor) -> torch.Tensor:
    return (cells * 255).round().eq(torch.tensor(INSIDE)).all(-1)


@pytest.mark.parametrize("latent", [(64, 64), (61, 83), (104, 72), (9, 7), (1, 1)])
@pytest.mark.parametrize("given", [True, False], ids=["latent", "no latent"])
def test_white_cells_are_those_inside(model: Any, latent: tuple[int, int], given: bool) -> None:
    mask = disc(latent[0] * 8, latent[1] * 8)
    grids = [(grid.halved(latent[0], level), grid.halved(latent[1], level)) for level in range(4)]
    image = drawn(model, mask, latent if given else None)
    region = grid.RegionMask(mask)
    for cells, size in zip(panels(image, grids), grids, strict=True):
        wanted = region.cells(0, latent, (0, 0, *latent), size, CPU).inside.view(size)
        assert torch.equal(white(cells), wanted)
        assert wanted.any()


def test_white_cells_counted_by_hand(model: Any) -> None:
    """A quarter of 16 x 16 cells, of 8 x 8, 4 x 4 and 2 x 2."""
    mask = torch.zeros(1, 128, 128)
    mask[:, :64, 64:] = 1
    grids = [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert [int(white(cells).sum()) for cells in panels(drawn(model, mask), grids)] == [64, 16, 4, 1]


def test_partly_covered_cells_are_neither_white_nor_dark(model: Any) -> None:
    mask = torch.zeros(1, 128, 128)
    mask[:, :64, :64] = 1
    mask[:, :64, 64:67] = 1
    fine = panels(drawn(model, mask), [(16, 16), (8, 8), (4, 4), (2, 2)])[0]
    assert white(fine[:8, :8]).all()
    edge = fine[0, 8]
    dark = fine[0, 12]
    assert not white(fine[:, 8:]).any()
    assert (edge > dark + 0.05).any()
    assert torch.equal(fine[9, 9], dark)


def test_a_mask_of_another_size_is_shown_on_the_latents_grid(model: Any) -> None:
    grids = [(16, 24), (8, 12), (4, 6), (2, 3)]
    small, large = (panels(drawn(model, disc(64 * scale, 96 * scale), (16, 24)), grids) for scale in (1, 4))
    for one, two in zip(small, large, strict=True):
        assert (white(one) != white(two)).float().mean() < 0.05


def test_an_empty_mask_has_no_white_cell(model: Any) -> None:
    assert not any(white(cells).any() for cells in panels(drawn(model, torch.zeros(1, 64, 64)), [(8, 8), (4, 4), (2, 2), (1, 1)]))
    drawn(model, torch.zeros(1, 64, 64), (16, 24))  # Load Image's, whatever the picture


def test_the_first_of_a_batch_is_shown_and_odd_forms_are_taken(model: Any) -> None:
    mask = disc(64, 96)
    wanted = drawn(model, mask)
    for form in (mask[0], mask[None], torch.cat([mask, 1 - mask])):
        assert torch.equal(drawn(model, form), wanted)


def test_a_latent_of_another_shape_is_refused_in_words(model: Any) -> None:
    with pytest.raises(ValueError, match=r"the mask is 96x64 but the picture .* 128x128: their shapes differ"):
        drawn(model, disc(64, 96), (16, 16))


def test_a_model_that_is_not_known_is_refused_in_words() -> None:
    class Unknown:
        def get_model_object(self, name: str) -> torch.nn.Module:
            return torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="neither a UNet nor a transformer"):
        drawn(Unknown(), disc(64, 64))


def test_the_preview_is_the_picture(model: Any, tmp_path: Path) -> None:
    from PIL import Image

    output = MaskGrid.execute(model, disc(64, 64))
    shown: Any = output.ui
    (saved,) = shown.as_dict()["images"]
    preview = Image.open(tmp_path / saved["subfolder"] / saved["filename"])
    assert preview.size == (output.args[0].shape[2], output.args[0].shape[1])


def test_sdxl_has_two_grids() -> None:
    class Sdxl:
        def get_model_object(self, name: str) -> Any:
            return unet("SDXL")

    assert set(layers.levels_of(unet("SDXL")).values()) == {1, 2}
    grids = [(64, 64), (32, 32)]
    found = panels(drawn(Sdxl(), disc(1024, 1024)), grids)
    assert all(white(cells).any() for cells in found)


def test_it_shows_its_picture_without_another_node() -> None:
    assert all(node.GET_SCHEMA().is_output_node for node in NODES)
