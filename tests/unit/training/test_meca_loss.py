"""MECA's training against its equations: what is learned, from what, and that nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import pytest
import torch
from maskprompt.attention import ip_adapter_layers
from maskprompt.attention.meca import Mode
from maskprompt.conditioning.texts import together
from maskprompt.models.ip_adapter.network import MecaNetwork
from maskprompt.training.engine import loop, memory
from maskprompt.training.engine.learner import Learner
from maskprompt.training.meca.examples import Examples
from maskprompt.training.meca.job import finished, ready
from maskprompt.training.meca.keys import fresh, keys_of, size
from maskprompt.training.meca.loss import Loss
from torch import Tensor

from ...support.learners import conditioning, fingerprint, unchanged, with_another_lora
from ...support.masked_sampling import small_sdxl
from ...support.meca_training import FEATURES, OPTIONS, examples, model, moved, noise_of, source

__all__ = ["model"]  # fixtures


class DenseAttention:
    """Equations 3, 4 and 6 written out for one row after the other, from the network's weights by name."""

    def __init__(self, unet: Any, network: MecaNetwork, pictures: Examples, mode: Mode) -> None:
        self.weights = {name: value.detach() for name, value in network.state_dict().items()}
        self.pictures = pictures
        self.mode = mode
        self.number = {layer: number for number, layer in ip_adapter_layers.numbered(unet).items()}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], **_: Any) -> Tensor:
        heads, (height, width) = extra_options["n_heads"], extra_options["activations_shape"][2:]
        weights = self.weights
        number = self.number[(*extra_options["block"], extra_options["block_index"])]
        result = torch.zeros_like(q)
        for row in range(len(q)):
            tokens = self.compressed(self.pictures.features[row])
            image_k, image_v = (tokens @ weights[f"ip_adapter.{number}.to_{part}_ip.weight"].T for part in ("k", "v"))
            text = softmax(q[row], k[row], v[row], heads)
            image = softmax(q[row], image_k, image_v, heads)
            step = self.pictures.regions.shape[-1] // width
            inside = self.pictures.regions[row, step // 2 :: step, step // 2 :: step][:height, :width].reshape(-1, 1)
            if not self.pictures.masked[row]:
                result[row] = text + image
            elif self.mode == "query":
                result[row] = softmax((1 - inside) * q[row], k[row], v[row], heads) + softmax(inside * q[row], image_k, image_v, heads)
            else:
                result[row] = text * (1 if self.mode == "global" else 1 - inside) + inside * image
        return result

    def compressed(self, features: Tensor) -> Tensor:
        """Z' = softmax(Q transpose(Z W_k) / sqrt(d)) (Z W_v)."""
        part = {name.removeprefix("image_proj."): value for name, value in self.weights.items() if name.startswith("image_proj.")}
        z = normed(features, part["norm_in.weight"], part["norm_in.bias"])
        k = z @ part["to_k.weight"].T
        v = z @ part["to_v.weight"].T
        found = torch.softmax(part["queries"] @ k.T / FEATURES**0.5, -1) @ v
        return normed(found @ part["proj_out.weight"].T + part["proj_out.bias"], part["norm_out.weight"], part["norm_out.bias"])


def softmax(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    depth = q.shape[-1] // heads
    found = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * depth, (head + 1) * depth)
        found[:, part] = torch.softmax(q[:, part] @ k[:, part].T / depth**0.5, -1) @ v[:, part]
    return found


def normed(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def dense_loss(model: Any, network: MecaNetwork, pictures: Examples, noise: Tensor, steps: Tensor, mode: Mode) -> float:
    """Equation 7 on the given model's own network."""
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[steps].float()
    sigmas = ((1 - alphas) / alphas).sqrt()
    alphas = alphas[:, None, None, None]
    z = pictures.latents * 0.18215
    noisy = alphas.sqrt() * z + (1 - alphas).sqrt() * noise
    dense = DenseAttention(model.model.diffusion_model, network, pictures, mode)
    blocks = [("middle", 0), *((part, number) for part in ("input", "output") for number in range(12))]
    comfy.model_management.load_models_gpu([model])
    blank = torch.cat([torch.ones_like(z[:, :1]), blank_picture(z)], 1)
    with torch.no_grad():
        denoised = model.model.apply_model(
            noisy / alphas.sqrt(), sigmas, c_concat=blank, c_crossattn=torch.cat([text[0][0] for text in pictures.texts]),
            transformer_options={"patches_replace": {"attn2": dict.fromkeys(blocks, dense)}},
        )  # fmt: skip
    predicted = (noisy / alphas.sqrt() - denoised) / sigmas[:, None, None, None]
    return ((noise - predicted) ** 2).mean().item()


def blank_picture(latents: Tensor) -> Tensor:
    """What an inpainting model is shown where all is to be painted: SD's latent of mid grey, as ComfyUI writes it."""
    return torch.tensor([0.8223, -0.6876, 0.6364, 0.1380])[:, None, None].expand_as(latents)


@pytest.mark.parametrize("mode", ["region", "query", "global"])
def test_the_loss_is_equation_7_under_equations_3_4_and_6(model: Any, mode: Mode) -> None:
    """A batch of one with a region, one without and one without an image; and each alone."""
    pictures = examples()
    steps = torch.tensor([700, 40, 300])
    noise = noise_of(pictures)
    learner = Learner(model, "frozen")
    with learner.loaded():
        network = moved(fresh(learner, FEATURES, OPTIONS))
        loss = Loss(learner, network, replace(OPTIONS, mode=mode))
        sigmas = loss.schedule.sigmas[steps]
        found = loss.of(pictures, noise, sigmas).item()
        rows = [slice(row, row + 1) for row in range(3)]
        alone = [loss.of(pictures.part(row), noise[row], sigmas[row]).item() for row in rows]
    assert found == pytest.approx(dense_loss(model, network, pictures, noise, steps, mode), rel=1e-5)
    for row, one in zip(rows, alone, strict=True):
        assert one == pytest.approx(dense_loss(model, network, pictures.part(row), noise[row], steps[row], mode), rel=1e-5)


@pytest.mark.parametrize("side", [(9, 13), (11, 8)])
def test_odd_sizes_and_texts_of_several_lengths(model: Any, side: tuple[int, int]) -> None:
    """A batch is the mean of its samples alone, each with its own text unrepeated and its own region."""
    pictures = examples(3, side, masked=(True, True, False))
    pictures = replace(pictures, texts=[[[torch.cat([text[0][0]] * (row + 1), 1) + row, {}]] for row, text in enumerate(pictures.texts)])
    noise = noise_of(pictures)
    sigmas = torch.tensor([5.0, 0.3, 1.0])
    learner = Learner(model, "frozen")
    with learner.loaded(), torch.no_grad():
        loss = Loss(learner, moved(fresh(learner, FEATURES, OPTIONS)), OPTIONS)
        rows = [slice(row, row + 1) for row in range(3)]
        alone = [loss.of(pictures.part(row), noise[row], sigmas[row]).item() for row in rows]
        found = loss.of(pictures, noise, sigmas).item()
    assert [text[0][0].shape[1] for text in pictures.texts] == [77, 154, 231]
    assert together(pictures.texts)[0][0].shape == (3, 462, 128)
    assert found == pytest.approx(sum(alone) / 3, rel=1e-5)
    assert len({round(one, 3) for one in alone}) == 3


def test_sdxls_pooled_texts_stay_with_their_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [conditioning(row, pooled_output=100 * torch.randn(1, 16, generator=generator)) for row in range(2)]
    pictures = replace(examples(2), texts=texts)
    noise = noise_of(pictures)
    sigmas = torch.tensor([5.0, 0.3])
    learner = Learner(small_sdxl(), "frozen")
    with learner.loaded(), torch.no_grad():
        network = moved(fresh(learner, FEATURES, OPTIONS))
        assert list(network.widths) == [*range(1, 2 * len(network.widths), 2)]
        loss = Loss(learner, network, OPTIONS)
        alone = [loss.of(pictures.part(slice(row, row + 1)), noise[row : row + 1], sigmas[row : row + 1]).item() for row in range(2)]
        found = loss.of(pictures, noise, sigmas).item()
        crossed = loss.of(replace(pictures, texts=[conditioning(row, **texts[1 - row][0][1]) for row in range(2)]), noise, sigmas).item()
    assert found == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert crossed != pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("patched", [False, True], ids=["bare", "with a LoRA"])
def test_it_begins_with_the_texts_own_keys_and_values(model: Any, patched: bool) -> None:
    """With a LoRA on the model: what its text then has."""
    learner = Learner(with_another_lora(model) if patched else model, "frozen")
    with learner.loaded():
        network = fresh(learner, FEATURES, OPTIONS)
        state = {name: value.clone() for name, value in learner.network.diffusion_model.state_dict().items()}
    assert sum(value.numel() for value in network.parameters()) == size(learner, FEATURES, OPTIONS)
    weights = network.state_dict()
    for number, (name, block, index) in ip_adapter_layers.numbered(model.model.diffusion_model).items():
        place = (
            f"middle_block.{{}}.transformer_blocks.{index}" if name == "middle" else f"{name}_blocks.{block}.1.transformer_blocks.{index}"
        )
        for part in ("k", "v"):
            own = f"{place.format(1)}.attn2.to_{part}.weight"
            assert torch.equal(weights[f"ip_adapter.{number}.to_{part}_ip.weight"], state[own])
    changed = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    assert torch.equal(state[changed], model.model.diffusion_model.state_dict()[changed]) is not patched
    assert network.image_proj.tokens == OPTIONS.tokens
    again = fresh(learner, FEATURES, OPTIONS).state_dict()
    other = fresh(learner, FEATURES, replace(OPTIONS, seed=1)).state_dict()
    assert torch.equal(again["image_proj.queries"], weights["image_proj.queries"])
    assert not torch.equal(other["image_proj.queries"], weights["image_proj.queries"])


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_reach_the_adapter_and_nothing_else(model: Any, checkpointing: bool) -> None:
    before = fingerprint(model)
    learner = Learner(model, "frozen", checkpointing=checkpointing)
    assert learner.parameters == {}
    with learner.loaded():
        training = ready(learner, source(), FEATURES, replace(OPTIONS, steps=1))
        training.fetch(0)
        training.begin()
        training.load()
        network = moved(training.network)
        copied = {name: value.clone() for name, value in learner.network.state_dict().items()}
        loop.run(training.parameters(0), training.loss, training.phases[0].settings)
        Loss(learner, network, OPTIONS).of(examples(), noise_of(examples()), torch.tensor([1.0, 2.0, 3.0])).backward()
        assert all(value.grad is None and not value.requires_grad for value in learner.network.parameters())
        assert all(torch.equal(value, copied[name]) for name, value in learner.network.state_dict().items())
        dead = [name for name, value in network.named_parameters() if value.grad is None or not bool(value.grad.any())]
        assert learner.learned() == {}
    assert dead == []
    assert unchanged(model, before)


def test_checkpointing_changes_no_gradient(model: Any) -> None:
    found = []
    for checkpointing in (True, False):
        learner = Learner(model, "frozen", checkpointing=checkpointing)
        with learner.loaded():
            network = fresh(learner, FEATURES, OPTIONS)
            Loss(learner, network, OPTIONS).of(examples(), noise_of(examples()), torch.tensor([1.0, 2.0, 3.0])).backward()
        found.append({name: value.grad for name, value in network.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-4)


def test_no_image_is_learned_as_guidance_asks_for_it(model: Any) -> None:
    """The keys of a text-only sample are those that the finished adapter gives the unconditional half."""
    from ...support.adapters import encoded

    learner = Learner(model, "frozen")
    with learner.loaded(), torch.no_grad():
        network = moved(fresh(learner, FEATURES, OPTIONS))
        numbers = ip_adapter_layers.numbered(learner.network.diffusion_model)
        learned = keys_of(network.half().float(), numbers, examples().features, 3)
        pairs = finished(network, OPTIONS, "a test", "it").pairs(encoded(patches=FEATURES))
        for number, layer in numbers.items():
            for found, wanted in zip(learned.of(layer, (2,), torch.zeros(1)), pairs[number], strict=True):
                torch.testing.assert_close(found, wanted[-1:], atol=1e-5, rtol=1e-4)
            k, _ = learned.of(layer, (0, 1, 2), torch.zeros(1))
            assert not torch.allclose(k[0], k[2], atol=1e-3)


def test_the_loss_on_a_fixed_batch_falls(model: Any) -> None:
    learner = Learner(model, "frozen", checkpointing=False)
    pictures = examples()
    with learner.loaded():
        network = fresh(learner, FEATURES, OPTIONS)
        loss = Loss(learner, network, OPTIONS)
        fixed = pictures, noise_of(pictures), torch.tensor([0.5, 2.0, 1.0])
        progress = loop.run(dict(network.named_parameters()), lambda step, generator: loss.of(*fixed), loop.Settings(20, 3e-3))
    assert progress.losses[-1] < 0.9 * progress.losses[0]


def test_what_it_will_take_counts_the_frozen_model_once_and_the_adapter_four_times(model: Any) -> None:
    learner = Learner(model, "frozen")
    for average, copies in ((False, 4), (True, 5)):
        found = memory.estimate(learner, OPTIONS.latents, True, average, 10**9)
        assert found.learning == copies * 4 * 10**9
        assert found.weights == learner.patcher.model_size() > 0
        assert found.activations == memory.estimate(Learner(model, "lora", 4), OPTIONS.latents, True).activations
