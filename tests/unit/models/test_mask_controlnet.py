"""Mask-ControlNet's adapter layer and control network, the latter as a CONTROL_NET in a real sampler on a small model of random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models.mask_controlnet.adapter import MaskConcat
from maskprompt.models.mask_controlnet.control import Adapter
from maskprompt.models.mask_controlnet.network import ADDED, LatentControlNet, started
from torch import Tensor

from ...support.control_networks import SMALL, TINY, random_network
from ...support.mask_controlnet import PADDING, apart, control, control_of, features, fed, reference, vae, weights
from ...support.models import random_model

__all__ = ["control", "vae"]  # fixtures


@given(height=st.integers(1, 33), width=st.integers(1, 33), batch=st.integers(1, 3), seed=st.integers(0, 2**30))
@settings(max_examples=40, deadline=None)
def test_an_untrained_hint_is_the_object_over_its_darkened_reference(height: int, width: int, batch: int, seed: int) -> None:
    """Half of the object plus half of the reference, exactly; a trained layer is a convolution whose borders go on, kept in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, height, width, generator=generator)
    mask = torch.rand(batch, 1, height, width, generator=generator)
    adapter = MaskConcat()
    with torch.no_grad():
        assert torch.equal(adapter(image, mask), 0.5 * (image * mask) + 0.5 * image)
        assert torch.equal(adapter(image, torch.ones_like(mask)), image)
        assert torch.equal(adapter(image, torch.zeros_like(mask)), 0.5 * image)
        for value in adapter.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
        both = torch.cat([image * mask, image], 1)
        rows, columns = torch.arange(-1, height + 1).clamp(0, height - 1), torch.arange(-1, width + 1).clamp(0, width - 1)
        wide = both[:, :, rows][:, :, :, columns]
        wanted = sum(
            torch.einsum("oc,bchw->bohw", adapter.layer.weight[:, :, i, j], wide[:, :, i : i + height, j : j + width])
            for i in range(3) for j in range(3)
        )  # fmt: skip
        assert adapter.layer.bias is not None
        wanted = (wanted + adapter.layer.bias[:, None, None]).clamp(0, 1)
        torch.testing.assert_close(adapter(image, mask), wanted, atol=1e-5, rtol=0)


def test_an_adapter_that_was_trained_without_masks_reads_the_bare_reference() -> None:
    """So that it sees what it learned from (the paper's ablation), whatever mask there is."""
    image = reference(2, 24, 16)
    mask = torch.rand(2, 24, 16)
    assert torch.equal(Adapter(MaskConcat(), masked=False).hint(image, mask), image)
    assert not torch.equal(Adapter(MaskConcat()).hint(image, mask), image)


@pytest.mark.parametrize("name", SMALL)
def test_an_untrained_control_network_knows_what_the_base_knows_and_says_nothing(name: str) -> None:
    """The encoder's weights are the base's, what is new begins at zero, but for the first convolution of the hint's embedding."""
    shape = SMALL[name]
    base = random_network(shape, 1).state_dict()
    state = torch.get_rng_state()
    network = started(shape, base, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in network.state_dict().items():
        if not key.startswith(ADDED):
            assert torch.equal(value, base[key]), key
        elif key != "input_hint_block.0.weight":
            assert not value.any(), key
    first = network.state_dict()["input_hint_block.0.weight"]
    assert first.std() == pytest.approx((2 / (4 * 9)) ** 0.5, rel=0.05)
    assert torch.equal(started(shape, base, seed=4).state_dict()["input_hint_block.0.weight"], first)
    assert not torch.equal(started(shape, base, seed=5).state_dict()["input_hint_block.0.weight"], first)
    with torch.no_grad():
        adm = torch.randn(2, shape["adm_in_channels"]) if "adm_in_channels" in shape else None
        found = network(*torch.randn(2, 2, 4, 8, 8), torch.tensor([3.0, 900.0]), torch.randn(2, 7, shape["context_dim"]), adm)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in [*found["output"], *found["middle"]])
    assert all(value.requires_grad and value.dtype == torch.float32 for value in network.parameters())


def test_it_begins_from_half_precision_and_leaves_the_base_alone() -> None:
    base = {name: value.half() for name, value in random_network(TINY).state_dict().items()}
    before = {name: value.clone() for name, value in base.items()}
    network = started(TINY, base)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1)
    assert all(torch.equal(base[name], before[name]) for name in base)
    assert torch.equal(network.state_dict()["time_embed.0.bias"], before["time_embed.0.bias"].float() + 1)


def unets_features(model: Any, x: Tensor, sigma: float, context: Tensor) -> list[Tensor]:
    """Every level of a UNet's encoder and its middle block in text to image, as ComfyUI runs it."""
    found: list[Tensor] = []

    def levels(h: Tensor, options: dict[str, Any]) -> Tensor:
        found.append(h.clone())
        return h

    def middle(given: dict[str, Any]) -> dict[str, Any]:
        found.append(given["h"].clone())
        return given

    base = model.model
    concat = base.concat_cond(noise=x, device=x.device, latent_image=torch.zeros_like(x))
    patches = {"input_block_patch": [levels], "middle_block_after_patch": [middle]}
    with torch.no_grad():
        base.apply_model(x, torch.full((len(x),), sigma), c_concat=concat, c_crossattn=context, transformer_options={"patches": patches})
    return found


def open_network(network: LatentControlNet) -> LatentControlNet:
    """With last convolutions that let the encoder's features through as they are."""
    for convolution in [*network.zero_convs, network.middle_block_out]:
        (layer,) = convolution.children()
        layer.weight.data[:, :, 0, 0] = torch.eye(len(layer.weight))
    return network


@pytest.mark.parametrize("channels", [4, 9])
def test_the_encoder_is_the_bases(vae: Any, channels: int) -> None:
    """Of an inpainting model too, where what text to image finds in the further channels has gone into the bias."""
    model = random_model(in_channels=channels)
    if channels > 4:
        first = model.get_model_object("diffusion_model").input_blocks[0][0].weight
        centre = first.data[:, 4:, 1, 1].clone() * 3
        first.data[:, 4:] = 0
        first.data[:, 4:, 1, 1] = centre
    x, context = fed(batch=2)
    wanted = unets_features(model, x, 3.5, context)
    network = open_network(started(TINY, weights(model), PADDING if channels > 4 else None))
    control = control_of(network).set_cond_hint(reference().movedim(-1, 1), vae=vae)
    found = features(control, model, x, 3.5, context)
    assert found is not None
    assert len(wanted) == 13
    for one, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_of_an_inpainting_model_the_border_differs(model: Any) -> None:
    """There the UNet's convolution reads zeros beside the constant channels, which no bias can tell. Inside, the sum is the same."""
    x, _ = fed()
    base = model.get_model_object("diffusion_model")
    network = started(TINY, weights(model), PADDING)
    constant = PADDING[None, :, None, None].expand(1, 5, 16, 16)
    with torch.no_grad():
        wanted = base.input_blocks[0][0](torch.cat([x, constant], 1))
        found = network.input_blocks[0](x, None, None)
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1], atol=1e-5, rtol=1e-5)
    assert apart(found, wanted) > 0.01


@pytest.mark.parametrize("constant", [None, torch.ones(4), torch.ones(0)])
def test_further_channels_must_be_told(model: Any, constant: Tensor | None) -> None:
    with pytest.raises(ValueError, match="the UNet reads 5 further channels"):
        started(TINY, weights(model), constant)
