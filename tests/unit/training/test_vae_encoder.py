"""A VAE's encoder that gradients pass through: it encodes as the VAE, its gradient is the slope, and the VAE stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from maskprompt.training.engine.vae_encoder import VAEEncoder
from torch import Tensor

from demo.painter import Painter

from ...support.learners import same_bits
from ...support.mask_controlnet_training import of_stable_diffusion


def test_stable_diffusions_vae_keeps_as_much_as_is_reckoned() -> None:
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from maskprompt.training.engine.vae_encoder import KEPT

    shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
             "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    network: Any = AutoencoderKL(ddconfig=shape, embed_dim=4).requires_grad_(False)
    own = {value.untyped_storage().data_ptr() for value in network.parameters()}
    kept = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        latents = network.encode(torch.rand(1, 3, 64, 64).requires_grad_())
    assert latents.requires_grad
    assert sum(kept.values()) / 4 / 64**2 == pytest.approx(KEPT, rel=0.01)


def encoder_and_pictures(kind: str, checkpointing: bool) -> tuple[Any, VAEEncoder, Tensor]:
    given_vae = Painter().vae if kind == "tiny" else of_stable_diffusion()
    pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(6))
    return given_vae, VAEEncoder(given_vae, checkpointing), pictures


KINDS = pytest.mark.parametrize("kind", ["tiny", "Stable Diffusion's"])


@KINDS
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_encoder_is_the_vaes(kind: str, checkpointing: bool) -> None:
    given_vae, encoder, pictures = encoder_and_pictures(kind, checkpointing)
    wanted = given_vae.encode(pictures.movedim(1, -1))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures), wanted, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():
        found = encoder(pictures.requires_grad_())
    assert found.requires_grad
    torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-5)


@KINDS
def test_its_gradient_is_the_slope(kind: str) -> None:
    """Against differences of the given VAE in double precision; kept or computed twice is the same."""
    given_vae, _, pictures = encoder_and_pictures(kind, True)
    generator = torch.Generator().manual_seed(7)
    found = []
    factors = torch.randn(2, 4, 8, 12, generator=generator)
    for checkpointing in (True, False):
        pixels = pictures.clone().requires_grad_()
        with torch.enable_grad():
            (VAEEncoder(given_vae, checkpointing)(pixels) * factors).sum().backward()
        assert pixels.grad is not None
        found.append(pixels.grad)
    torch.testing.assert_close(*found, atol=1e-5 * found[0].abs().max().item(), rtol=1e-4)  # one picture at a time sums in another order
    double = copy.deepcopy(given_vae.first_stage_model).double()
    step = 1e-6
    for place in ((0, 0, 0, 0), (0, 1, 31, 50), (1, 2, 63, 95), (1, 0, 17, 8)):
        values = []
        for side in (step, -step):
            near = pictures.double()
            near[place] += side
            with torch.no_grad():
                values.append((double.encode(near * 2 - 1) * factors).sum().item())
        assert found[0][place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-5)


@KINDS
def test_the_vae_given_is_untouched_and_works_after(kind: str) -> None:
    """Made in inference mode, as in a node."""
    given_vae, _, pictures = encoder_and_pictures(kind, True)
    network = given_vae.first_stage_model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    latents = torch.randn(1, 4, 8, 8)
    wanted = given_vae.decode(latents)
    wants = [value.requires_grad for value in network.parameters()]
    with torch.inference_mode():
        encoder = VAEEncoder(given_vae)
    with torch.enable_grad():
        encoder(pictures.requires_grad_()).sum().backward()
    own = {value.data_ptr() for value in network.state_dict().values()}
    assert not own & {value.data_ptr() for value in encoder.network.state_dict().values()}
    assert not any(value.requires_grad or value.is_inference() for value in encoder.network.parameters())
    assert not any(name.startswith(("decoder", "taesd_decoder", "post_quant")) for name in encoder.network.state_dict())
    assert [value.requires_grad for value in network.parameters()] == wants
    assert all(value.grad is None for value in network.parameters())
    assert network.state_dict().keys() == before.keys()
    assert all(same_bits(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(given_vae.decode(latents), wanted)


def test_a_vae_in_half_precision_has_gradients_in_float32() -> None:
    """float16's would overflow; bfloat16 stays as it is."""
    given_vae = of_stable_diffusion(torch.float16)
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    assert given_vae.vae_dtype == torch.float16
    encoder = VAEEncoder(given_vae)
    whole = copy.deepcopy(given_vae.first_stage_model).float()
    with torch.enable_grad():
        found = encoder(pictures.requires_grad_())
        found.sum().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach(), whole.encode(pictures.detach() * 2 - 1).detach(), atol=1e-5, rtol=1e-5)
    assert pictures.grad is not None
    assert bool(pictures.grad.isfinite().all())
    assert next(given_vae.first_stage_model.parameters()).dtype == torch.float16
    assert VAEEncoder(of_stable_diffusion(torch.bfloat16)).dtype == torch.bfloat16


def test_a_vae_whose_weights_are_streamed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NVIDIA cards ComfyUI streams weights by default, through layers that cannot be copied."""
    given_vae = of_stable_diffusion()
    asked = []

    def load(path: str, disable_dynamic: bool = False) -> Any:
        asked.append((path, disable_dynamic))
        return of_stable_diffusion().patcher

    monkeypatch.setattr(given_vae.patcher, "is_dynamic", lambda: True)
    monkeypatch.setattr(given_vae.patcher, "cached_patcher_init", (load, ("vae.safetensors",)))
    encoder = VAEEncoder(given_vae)
    pictures = torch.rand(1, 3, 64, 64)
    assert asked == [("vae.safetensors", True)]
    assert encoder.network is not given_vae.first_stage_model
    assert given_vae.first_stage_model.decoder is not None
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures), given_vae.encode(pictures.movedim(1, -1)), atol=1e-5, rtol=1e-5)
