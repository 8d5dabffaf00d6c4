"""Which tokens of a reference may be seen: against a loop over their pixels; and that a real encoder is told nothing of what is hidden."""

from __future__ import annotations

import math

import pytest
import torch
from maskprompt.conditioning import references
from maskprompt.images.depth_hint import filled

from demo import photos, stand_ins, tiny_model
from demo.autoencoder import NarrowAutoencoder, narrowed


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def autoencoder() -> NarrowAutoencoder:
    """The tiny model's."""
    *_, state = tiny_model.load_checkpoint(stand_ins.TINY_MODEL)
    return narrowed(state).eval()


def encoded(autoencoder: NarrowAutoencoder, picture: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return autoencoder.encode(picture.movedim(-1, 1))


def half_hidden() -> tuple[torch.Tensor, torch.Tensor]:
    """A photograph of 128 x 256 pixels, and its left half as what may be seen."""
    picture = torch.from_numpy(photos.load("coffee")[:128, :256].copy()).float()[None] / 255
    visible = torch.ones(1, 128, 256, dtype=torch.bool)
    visible[:, :, 128:] = False
    return picture, visible


@pytest.mark.parametrize("size", [(64, 96), (67, 101), (40, 24), (9, 200)])
@pytest.mark.parametrize(("downscale", "patch"), [(8, 2), (8, 1), (16, 1)])
@pytest.mark.parametrize("margin", [0, 6])
def test_a_token_is_seen_if_half_of_its_pixels_are(size: tuple[int, int], downscale: int, patch: int, margin: int) -> None:
    if min(size) < downscale:
        with pytest.raises(ValueError, match=f"{size[1]}x{size[0]} pixels is smaller than one cell of the VAE"):
            references.visible_tokens(torch.ones(1, *size, dtype=torch.bool), downscale, patch)
        return
    height, width = size
    visible = torch.nn.functional.avg_pool2d(random(2, height, width), 9, 1, 4) > 0.5
    found = references.visible_tokens(visible, downscale, patch, margin)
    used = [side // downscale * downscale for side in size]
    top, left = ((side - part) // 2 for side, part in zip(size, used, strict=True))
    assert found.shape == (2, *(math.ceil(part / downscale / patch) for part in used))
    hidden = [torch.nonzero(~one).float() for one in visible]
    cell = downscale * patch
    for index, row, column in [(0, 0, 0), (1, found.shape[1] - 1, found.shape[2] - 1), (0, found.shape[1] // 2, found.shape[2] // 3)]:
        counted = [
            float(visible[index, y, x]) and float((hidden[index] - torch.tensor([y, x])).square().sum(1).min().sqrt() > margin)
            for y in range(top + row * cell, min(top + (row + 1) * cell, top + used[0]))
            for x in range(left + column * cell, min(left + (column + 1) * cell, left + used[1]))
        ]
        assert bool(found[index, row, column]) == (sum(counted) >= 0.5 * len(counted))


def test_all_or_nothing() -> None:
    everything = torch.ones(1, 65, 130, dtype=torch.bool)
    assert references.visible_tokens(everything, 8, 2, 32).all()
    assert not references.visible_tokens(~everything, 8, 2).any()


def test_the_visible_part_stays_and_the_hidden_part_has_no_part_in_it() -> None:
    picture = random(2, 33, 47, 3)
    visible = random(2, 33, 47, seed=1) > 0.4
    found = references.without_hidden(picture, visible)
    assert torch.equal(found[visible], picture[visible])
    for other in (torch.full_like(picture, math.nan), torch.full_like(picture, math.inf), random(2, 33, 47, 3, seed=2)):
        changed = torch.where(visible[..., None], picture, other)
        assert torch.equal(references.without_hidden(changed, visible), found)
    for colour in range(3):
        assert torch.equal(found[..., colour], filled(picture[..., colour], visible))


def test_a_wholly_hidden_reference_is_black_and_a_wholly_seen_one_itself() -> None:
    picture = random(1, 20, 20, 3)
    assert not references.without_hidden(picture, torch.zeros(1, 20, 20, dtype=torch.bool)).any()
    assert torch.equal(references.without_hidden(picture, torch.ones(1, 20, 20, dtype=torch.bool)), picture)


def test_an_encoder_is_told_nothing_of_what_is_hidden(autoencoder: NarrowAutoencoder) -> None:
    """To the bit, at every cell, while a picture whose hidden part is only painted over tells the cells beside it."""
    picture, visible = half_hidden()
    other = torch.where(visible[..., None], picture, random(*picture.shape))
    one, two = (encoded(autoencoder, references.without_hidden(given, visible)) for given in (picture, other))
    assert torch.equal(one, two)
    told = (encoded(autoencoder, picture) - encoded(autoencoder, other)).abs().amax((0, 1, 2))
    assert (told[8:16] > 0).any(), "the encoder looks over the edge, or this test says nothing"


def test_how_far_the_fill_reaches_into_what_is_seen(autoencoder: NarrowAutoencoder) -> None:
    """Of the latents' deviation: more than a tenth in the cell at the edge, below a tenth one cell on, below a twentieth from two on."""
    picture, visible = half_hidden()
    true = encoded(autoencoder, picture)
    off = (encoded(autoencoder, references.without_hidden(picture, visible)) - true).abs().amax(1).mean((0, 1)) / true.std()
    assert off[15] > 0.1
    assert off[14] < 0.1
    assert off[:14].max() < 0.05
    assert off[:10].max() < 0.005
    tokens = references.visible_tokens(visible, 8, 1, margin=8)
    assert not tokens[0, :, 15].any()
    assert tokens[0, :, :15].all()
