"""The noise of a training against diffusers' own scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy import model_sampling
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from maskprompt.training.engine.noise import Schedule

STEPS = torch.tensor([0, 1, 17, 500, 998, 999])


def sampling(kind: type) -> Any:
    """What ComfyUI gives an SD model that predicts this."""

    class Sampling(model_sampling.ModelSamplingDiscrete, kind): ...

    return Sampling()


@pytest.fixture
def witness() -> Any:
    return DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(len(STEPS), 4, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(len(STEPS), 4, 5, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [model_sampling.EPS, model_sampling.V_PREDICTION])
def test_noise_is_added_as_diffusers_adds_it(kind: type, witness: Any, latents: torch.Tensor, noise: torch.Tensor) -> None:
    """diffusers scales the noisy picture by the square root of alpha; k-diffusion's models do that themselves."""
    schedule = Schedule(sampling(kind))
    alphas = witness.alphas_cumprod[STEPS][:, None, None, None]
    found = schedule.noisy(latents, noise, schedule.sigmas[STEPS]) * alphas.sqrt()
    torch.testing.assert_close(found, witness.add_noise(latents, noise, STEPS), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [model_sampling.EPS, model_sampling.V_PREDICTION])
def test_the_error_is_that_of_what_the_model_predicts(kind: type, witness: Any, latents: torch.Tensor, noise: torch.Tensor) -> None:
    """A model that is wrong by a known amount: in noise, or in velocity as diffusers defines it."""
    object_of_model = sampling(kind)
    schedule = Schedule(object_of_model)
    sigmas = schedule.sigmas[STEPS]
    target = noise if kind is model_sampling.EPS else witness.get_velocity(latents, noise, STEPS)
    wrong = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    noisy = schedule.noisy(latents, noise, sigmas)
    denoised = object_of_model.calculate_denoised(sigmas, target + wrong, noisy)
    torch.testing.assert_close(schedule.error(denoised, latents, sigmas), wrong, atol=2e-4, rtol=1e-4)
    right = object_of_model.calculate_denoised(sigmas, target, noisy)
    assert schedule.error(right, latents, sigmas).abs().max() < 2e-4


def test_every_noise_level_is_as_likely() -> None:
    schedule = Schedule(sampling(model_sampling.EPS))
    drawn = schedule.draw(200_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.searchsorted(schedule.sigmas, drawn), minlength=1000)
    assert len(counts) == 1000
    assert counts.min() > 120
    assert counts.max() < 290
    assert torch.equal(drawn, schedule.draw(200_000, torch.Generator().manual_seed(0)))
