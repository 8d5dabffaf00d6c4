"""Mask-ControlNet's training against equation 1: what is learned, from what, and that nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from maskprompt.conditioning.texts import Texts
from maskprompt.training.engine import loop
from maskprompt.training.engine.learner import Learner
from maskprompt.training.mask_controlnet.branch import Branch
from maskprompt.training.mask_controlnet.examples import Batch
from maskprompt.training.mask_controlnet.loss import Loss
from torch import Tensor

from ...support.learners import conditioning, fingerprint, of_random_weights, same_bits, unchanged, with_another_lora
from ...support.mask_controlnet_training import (
    OPTIONS,
    Clip,
    batch_of,
    branch_of,
    known,
    lit,
    model,
    moved,
    noise_for,
    quick_previews,
    source_of,
    vae,
)
from ...support.masked_sampling import small_sdxl
from ...support.models import random_model
from ...support.unets import SD15

__all__ = ["model", "quick_previews", "vae"]  # fixtures

BLANK = (0.8223, -0.6876, 0.6364, 0.1380)
"""What an inpainting model is shown where all is to be painted: SD's latent of mid grey, as ComfyUI writes it."""


def part(batch: Batch, row: slice) -> Batch:
    return Batch(batch.reference[row], batch.mask[row], batch.image[row], batch.texts[row])


def dense_hint(adapter: Any, batch: Batch, masked: bool) -> Tensor:
    """The adapter layer written out: each of the nine neighbours times its weights, the edge repeated outwards."""
    six = torch.cat([batch.reference * (batch.mask if masked else 1), batch.reference], 1)
    height, width = six.shape[2:]
    rows, columns = torch.arange(height), torch.arange(width)
    found = adapter.layer.bias.detach()[None, :, None, None].repeat(len(six), 1, height, width)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            shifted = six[:, :, (rows + down).clamp(0, height - 1)][..., (columns + right).clamp(0, width - 1)]
            found += torch.einsum("oc,bchw->bohw", adapter.layer.weight.detach()[:, :, down + 1, right + 1], shifted)
    return found.clamp(0, 1)


@torch.no_grad()
def dense_loss(
    model: Any, vae: Any, branch: Branch, batch: Batch, noise: Tensor, steps: Tensor, text: Tensor, velocity: bool = False, **more: Any
) -> float:
    """Equation 1 on the given model's own networks, called directly; `more` is what the UNets are told besides."""
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[steps].float()
    alphas = alphas[:, None, None, None]
    comfy.model_management.load_models_gpu([model])
    scale = model.model.latent_format.scale_factor
    z = vae.encode(batch.image.movedim(1, -1)) * scale
    hint = vae.encode(dense_hint(branch.adapter, batch, branch.options.masked).movedim(1, -1)) * scale
    noisy = alphas.sqrt() * z + (1 - alphas).sqrt() * noise
    told = {"timesteps": steps.float(), "context": text, **more}
    control = branch.network(x=noisy, hint=hint, **told)
    unet = model.model.diffusion_model
    blank = torch.tensor([1.0, *BLANK])[: unet.in_channels - 4, None, None].expand(len(z), -1, *z.shape[2:])
    predicted = unet(torch.cat([noisy, blank], 1), control=control, **told)
    wanted = alphas.sqrt() * noise - (1 - alphas).sqrt() * z if velocity else noise
    return ((predicted - wanted) ** 2).mean().item()


@pytest.mark.parametrize(("channels", "masked"), [(9, True), (9, False), (4, True)])
def test_the_loss_is_equation_1(model: Any, vae: Any, channels: int, masked: bool) -> None:
    """A batch of wide pictures; and each alone. With a LoRA on the model, which both sides have."""
    base = with_another_lora(model) if channels == 9 else random_model(in_channels=4)
    batch = batch_of()
    steps = torch.tensor([700, 40])
    noise = noise_for(batch)
    learner = Learner(base, "frozen")
    texts = known(*batch_of().texts)
    text = torch.cat([texts[caption][0][0] for caption in batch.texts])
    with learner.loaded(), torch.no_grad():
        branch = moved(branch_of(learner, vae, replace(OPTIONS, masked=masked)))
        hint = branch.hint(batch)
        assert 0.01 < (hint == 0).float().mean() + (hint == 1).float().mean() < 0.9  # it is cut off at 0 and 1, in part
        loss = Loss(branch, source_of(), texts)
        sigmas = loss.schedule.sigmas[steps]
        found = loss.of(batch, loss.latents(batch), noise, sigmas).item()
        rows = [slice(row, row + 1) for row in range(2)]
        parts = [part(batch, row) for row in rows]
        alone = [loss.of(one, loss.latents(one), noise[row], sigmas[row]).item() for one, row in zip(parts, rows, strict=True)]
    assert found == pytest.approx(dense_loss(base, vae, branch, batch, noise, steps, text), rel=1e-5)
    for one, piece, row in zip(alone, parts, rows, strict=True):
        assert one == pytest.approx(dense_loss(base, vae, branch, piece, noise[row], steps[row], text[row]), rel=1e-5)


def test_a_model_that_predicts_velocity_learns_velocity(vae: Any) -> None:
    """SD 2.1's kind."""
    import comfy.model_base
    import comfy.supported_models

    few = {"num_res_blocks": [1, 1], "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]}
    config: Any = comfy.supported_models.SD15({**SD15, **few, "model_channels": 32, "context_dim": 128})
    config.model_type = lambda *_, **__: comfy.model_base.ModelType.V_PREDICTION
    model = of_random_weights(config)
    batch = part(batch_of(), slice(0, 1))
    steps = torch.tensor([500])
    noise = noise_for(batch)
    learner = Learner(model, "frozen")
    texts = known(*batch.texts)
    with learner.loaded(), torch.no_grad():
        branch = moved(branch_of(learner, vae))
        loss = Loss(branch, source_of(), texts)
        found = loss.of(batch, loss.latents(batch), noise, loss.schedule.sigmas[steps]).item()
    text = texts[batch.texts[0]][0][0]
    assert found == pytest.approx(dense_loss(model, vae, branch, batch, noise, steps, text, velocity=True), rel=1e-4)
    assert found != pytest.approx(dense_loss(model, vae, branch, batch, noise, steps, text), rel=0.01)


def test_sdxls_sizes_and_pooled_texts_reach_the_control_network(vae: Any) -> None:
    """Each sample with its own; and the VAE's latents in SDXL's scale."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    model = small_sdxl()
    batch = batch_of()
    steps = torch.tensor([600, 90])
    generator = torch.Generator().manual_seed(0)
    texts = Texts(Clip())
    noise = noise_for(batch_of())
    pooled = {text: 100 * torch.randn(1, 16, generator=generator) for text in batch.texts}
    texts._known = {text: conditioning(len(text), pooled_output=pooled[text]) for text in batch.texts}
    learner = Learner(model, "frozen")
    with learner.loaded(), torch.no_grad():
        branch = moved(branch_of(learner, vae))
        loss = Loss(branch, source_of(), texts)
        found = loss.of(batch, loss.latents(batch), noise, loss.schedule.sigmas[steps]).item()
    assert branch.about.scale == 0.13025
    sides = torch.cat([Timestep(256)(torch.tensor([float(side)])).flatten() for side in (32, 64, 0, 0, 32, 64)])
    y = torch.stack([torch.cat([pooled[text][0], sides]) for text in batch.texts])
    text = torch.cat([texts[one][0][0] for one in batch.texts])
    assert found == pytest.approx(dense_loss(model, vae, branch, batch, noise, steps, text, y=y), rel=1e-5)
    assert found != pytest.approx(dense_loss(model, vae, branch, batch, noise, steps, text, y=y.flip(0)), rel=1e-5)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_reach_adapter_and_control_network_and_nothing_else(model: Any, vae: Any, checkpointing: bool) -> None:
    """First the layers that begin at zero, next what is behind them, then also what is behind the hint's zero layer: the adapter."""
    before = fingerprint(model)
    given_vae = [value.clone() for value in vae.first_stage_model.state_dict().values()]
    learner = Learner(model, "frozen", checkpointing=checkpointing)
    batch = batch_of()
    texts = known(*batch_of().texts)
    assert learner.parameters == {}
    with learner.loaded(), torch.enable_grad():
        branch = branch_of(learner, vae, replace(OPTIONS, checkpointing=checkpointing))
        frozen = [learner.network, branch.encoder.network]
        copied = [value.clone() for network in frozen for value in network.state_dict().values()]
        loss = Loss(branch, source_of(), texts)
        found = []
        optimizer = torch.optim.AdamW(branch.parameters.values(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            loss.of(batch, loss.latents(batch), noise_for(batch), torch.tensor([2.0, 0.7])).backward()
            found.append(lit(branch.parameters))
            optimizer.step()
        assert all(value.grad is None and not value.requires_grad for network in frozen for value in network.parameters())
        after = [value for network in frozen for value in network.state_dict().values()]
        assert all(same_bits(one, other) for one, other in zip(copied, after, strict=True))
    every = set(branch.parameters)
    zeros = {name for name in every if name.startswith(("control_net.zero_convs.", "control_net.middle_block_out."))}
    hidden = {name for name in every if name.startswith(("control_net.input_hint_block.0.", "adapter."))}
    assert found == [zeros, every - hidden, every]
    assert {"adapter.layer.weight", "adapter.layer.bias"} < hidden
    assert unchanged(model, before)
    assert all(same_bits(*pair) for pair in zip(given_vae, vae.first_stage_model.state_dict().values(), strict=True))
    assert not any(value.requires_grad and value.grad is not None for value in vae.first_stage_model.parameters())


def test_it_begins_as_the_model_without_a_control_network(model: Any, vae: Any) -> None:
    """What it adds is zero; its encoder is the UNet's, with the LoRAs that are on it; the same seed begins the same."""
    base = with_another_lora(model)
    batch = batch_of()
    learner = Learner(base, "frozen")
    noise = noise_for(batch)
    texts = known(*batch.texts)
    with learner.loaded(), torch.no_grad():
        branch, again, other = (branch_of(learner, vae, replace(OPTIONS, seed=seed)) for seed in (0, 0, 1))
        loss = Loss(branch, source_of(), texts)
        latents = loss.latents(batch)
        sigmas = torch.tensor([2.0, 0.7])
        found = loss.of(batch, latents, noise, sigmas)
        conditions = learner.conditions([[torch.cat([texts[text][0][0] for text in batch.texts]), {}]], latents, {"latent_image": latents})
        plain = learner.denoised(loss.schedule.noisy(latents, noise, sigmas), sigmas, conditions)
        assert torch.equal(found, (loss.schedule.error(plain, latents, sigmas) ** 2).mean())
        unet = learner.network.diffusion_model.state_dict()
        changed = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        assert torch.equal(branch.network.state_dict()[changed], unet[changed])
        assert not torch.equal(unet[changed], model.model.diffusion_model.state_dict()[changed])
    states = [{name: value.detach() for name, value in one.parameters.items()} for one in (branch, again, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert {name for name, value in states[0].items() if not torch.equal(value, states[2][name])} == {
        "control_net.input_hint_block.0.weight"
    }


def test_checkpointing_changes_no_gradient(model: Any, vae: Any) -> None:
    found = []
    batch = batch_of()
    texts = known(*batch_of().texts)
    for checkpointing in (True, False):
        learner = Learner(model, "frozen", checkpointing=checkpointing)
        with learner.loaded(), torch.enable_grad():
            branch = moved(branch_of(learner, vae, replace(OPTIONS, checkpointing=checkpointing)))
            loss = Loss(branch, source_of(), texts)
            loss.of(batch, loss.latents(batch), noise_for(batch), torch.tensor([2.0, 0.7])).backward()
        found.append({name: value.grad for name, value in branch.parameters.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-4)


def test_the_loss_on_a_fixed_batch_falls(model: Any, vae: Any) -> None:
    learner = Learner(model, "frozen", checkpointing=False)
    batch = batch_of()
    texts = known(*batch_of().texts)
    with learner.loaded(), torch.enable_grad():
        branch = branch_of(learner, vae, replace(OPTIONS, checkpointing=False))
        loss = Loss(branch, source_of(), texts)
        latents = loss.latents(batch)
        noise = noise_for(batch)
        sigmas = torch.tensor([2.0, 0.7])
        progress = loop.run(branch.parameters, lambda step, generator: loss.of(batch, latents, noise, sigmas), loop.Settings(15, 3e-3))
    assert progress.losses[-1] < 0.9 * progress.losses[0]


def test_every_attention_learns_whatever_attention_the_server_uses(model: Any, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sage's has no gradient, and core gives a control network none of the options by which the UNet's is exchanged."""
    import comfy.ldm.modules.attention as core

    def without_gradient(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return core.attention_pytorch(q.detach(), k.detach(), v.detach(), *args, **kwargs)

    monkeypatch.setattr(core, "optimized_attention", core.wrap_attn(without_gradient))
    batch = batch_of()
    learner = Learner(model, "frozen", checkpointing=False)
    with learner.loaded(), torch.enable_grad():
        branch = moved(branch_of(learner, vae))
        loss = Loss(branch, source_of(), known(*batch.texts))
        loss.of(batch, loss.latents(batch), noise_for(batch), torch.tensor([2.0, 0.7])).backward()
        still = {name for name in branch.parameters if ".attn" in name} - lit(branch.parameters)
    assert still == set()
