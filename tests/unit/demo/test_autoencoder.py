"""The autoencoder and the checkpoint that the stock loaders read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from demo import autoencoder, tiny_model
from demo.autoencoder import NarrowAutoencoder, padded


@pytest.fixture(scope="module")
def autoencoders() -> tuple[NarrowAutoencoder, Any]:
    """A narrow autoencoder of random weights, and ComfyUI's TAESD that loaded it padded, latents scaled by 0.75; in float64."""
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    narrow = NarrowAutoencoder()
    for parameter in narrow.parameters():
        parameter.data += torch.randn_like(parameter) * 0.03
    stock = TAESD()
    stock.load_state_dict(padded(narrow, 0.75, stock.state_dict()))
    return narrow.double(), stock.double()


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_the_padded_autoencoder_encodes_as_the_narrow_one(autoencoders: tuple[NarrowAutoencoder, Any], size: tuple[int, int]) -> None:
    narrow, stock = autoencoders
    pictures = torch.rand(2, 3, *size).double()
    with torch.no_grad():
        wanted = narrow.encode(pictures)
        found = stock.encode(pictures * 2 - 1)
    assert wanted.shape == (2, 4, size[0] // 8, size[1] // 8)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted / 0.75, atol=1e-8, rtol=0)


def test_the_padded_autoencoder_decodes_as_the_narrow_one(autoencoders: tuple[NarrowAutoencoder, Any]) -> None:
    narrow, stock = autoencoders
    latents = torch.randn(2, 4, 9, 5).double()
    with torch.no_grad():
        wanted = narrow.decode(latents)
        found = stock.decode(latents / 0.75)
    assert wanted.shape == (2, 3, 72, 40)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted * 2 - 1, atol=1e-8, rtol=0)


def test_a_layout_without_room_is_refused(autoencoders: tuple[NarrowAutoencoder, Any]) -> None:
    reference = {key: value for key, value in autoencoders[1].state_dict().items() if "taesd_decoder.1." not in key}
    with pytest.raises(KeyError, match=r"taesd_decoder\.1\.weight"):
        padded(autoencoders[0], 1.0, reference)


def test_the_registration_is_made_once_and_takes_only_the_tiny_model(model: Any) -> None:
    import comfy.supported_models

    from demo import registration, tiny_model

    registration.register()
    registration.register()
    assert [known.__name__ for known in comfy.supported_models.models].count("TinySD") == 1
    tiny = tiny_model.UNET
    sd15 = comfy.supported_models.SD15.unet_config
    shared = {"adm_in_channels": None, "use_temporal_attention": False}

    def takers(config: dict[str, Any]) -> list[str]:
        return [known.__name__ for known in comfy.supported_models.models if known.matches(config)]

    assert takers({**tiny, **shared}) == ["TinySD"]
    assert takers({**tiny, **shared, **sd15}) == ["SD15"]
    assert type(model.model.model_config).__name__ == "TinySD"
    assert model.model.model_config.inpaint_model()
    assert registration.NODE_CLASS_MAPPINGS == {}


def test_a_checkpoint_file_comes_back_as_what_learned_it(tmp_path: Path) -> None:
    """Training can begin with a checkpoint: UNet, text encoder and the narrow autoencoder are those that were saved."""
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    unet = tiny_model.build_unet()
    text = tiny_model.TextEncoder()
    narrow = autoencoder.NarrowAutoencoder()
    saved = autoencoder.padded(narrow, 1.0, TAESD(latent_channels=4).state_dict())
    tiny_model.save_checkpoint(tmp_path / "tiny.safetensors", unet.state_dict(), text.comfyui_state(), saved, {})
    unet_state, text_state, autoencoder_state = tiny_model.load_checkpoint(tmp_path / "tiny.safetensors")
    fresh = tiny_model.TextEncoder()
    tokens = torch.randint(0, 49408, (2, 77))
    fresh.load_comfyui_state(text_state)
    torch.testing.assert_close(fresh(tokens), text(tokens), atol=2e-2, rtol=1e-2)
    assert all(torch.equal(unet_state[key], value.half()) for key, value in unet.state_dict().items())
    picture = torch.rand(1, 3, 32, 32)
    back = autoencoder.narrowed(autoencoder_state)
    torch.testing.assert_close(back.decode(back.encode(picture)), narrow.decode(narrow.encode(picture)), atol=2e-2, rtol=1e-2)
