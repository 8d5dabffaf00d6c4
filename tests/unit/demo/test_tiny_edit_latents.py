"""tiny-edit's autoencoder in its training folder: what is kept of it, and what goes with an encoder that is no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo.autoencoder import NarrowAutoencoder
from demo.tiny_edit import folders, latents

from ...support import tiny_edit_world

DECODER_STATE = "decoder-state.pt"


def test_latents_are_normalised_in_the_weights() -> None:
    """The encoder exactly; the decoder's first layer nearly, away from the edge, for latents that its soft bound leaves alone."""
    torch.manual_seed(0)
    network = NarrowAutoencoder(latents.CHANNELS)
    mean = torch.linspace(-0.02, 0.02, latents.CHANNELS)
    deviation = torch.linspace(0.5, 1.5, latents.CHANNELS)
    same = latents.normalised(network, mean, deviation)
    pictures = torch.rand(1, 3, 32, 32)
    small = 0.02 * torch.randn(1, latents.CHANNELS, 8, 8)
    with torch.no_grad():
        expected = (network.encode(pictures) - mean[:, None, None]) / deviation[:, None, None]
        torch.testing.assert_close(same.encode(pictures), expected, atol=1e-4, rtol=1e-4)
        first = network.decoder[:2](small * deviation[:, None, None] + mean[:, None, None])
        torch.testing.assert_close(same.decoder[:2](small)[..., 1:-1, 1:-1], first[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-3)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A training folder with an autoencoder, and a file where records lie."""
    tiny_edit_world.prepare(tmp_path)
    (tmp_path / folders.SHARDS).mkdir()
    (tmp_path / folders.SHARDS / "32-00000.pt").touch()
    return tmp_path


def state(network: NarrowAutoencoder, spent: float) -> dict[str, object]:
    """A training's state in which nothing was optimized yet."""
    weights = network.state_dict()
    optimizer = torch.optim.Adam(network.decoder.parameters()).state_dict()
    return {"model": weights, "average": weights, "optimizer": optimizer, "step": 0, "spent": spent}


def another(place: Path, encoder_too: bool) -> NarrowAutoencoder:
    """Gives the folder's autoencoder with another decoder, or another altogether."""
    torch.manual_seed(1)
    network = NarrowAutoencoder(latents.CHANNELS)
    if not encoder_too:
        network.encoder.load_state_dict(latents.Latents.load(place).autoencoder.encoder.state_dict())
    return network


@pytest.mark.parametrize("encoder_too", [False, True])
def test_a_decoder_goes_on_only_under_its_own_encoder(place: Path, encoder_too: bool) -> None:
    """With no time for a step: a state that is taken is written as it is."""
    before = torch.load(place / latents.FILE, weights_only=True)
    kept = another(place, encoder_too)
    folders.save(state(kept, 0.0), place / DECODER_STATE)
    latents.train(place, 1e-9, 1, 1e-3, decoder_only=True, start=None)
    written = torch.load(place / latents.FILE, weights_only=True)
    expected = before if encoder_too else kept.state_dict()
    for name, value in written.items():
        assert torch.equal(value, expected[name]), name
    assert any((place / folders.SHARDS).iterdir()), "the latents are still of this encoder"


def test_where_the_minutes_are_over_nothing_is_written(place: Path) -> None:
    before = (place / latents.FILE).read_bytes()
    folders.save(state(another(place, encoder_too=True), 2.0), place / latents.STATE)
    latents.train(place, 2.0, 1, 1e-3, decoder_only=False, start=None)
    assert (place / latents.FILE).read_bytes() == before
    assert any((place / folders.SHARDS).iterdir())
    assert "has learned for 2.0 minutes already" in (place / "training.log").read_text("utf-8")


def test_another_encoder_leaves_no_record_of_the_old_one(place: Path) -> None:
    latents.train(place, 1e-9, 1, 1e-3, decoder_only=False, start=None)
    assert not (place / folders.SHARDS).exists()
