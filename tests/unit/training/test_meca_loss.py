"""MECA's training against its equations: what is learned, from what, and that nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from maskprompt.attention import ip_adapter_layers
from maskprompt.attention.meca import Mode
from maskprompt.conditioning.texts import together
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.models.ip_adapter import file as meca_file
from maskprompt.models.ip_adapter.network import MecaNetwork
from maskprompt.training.engine import loop, memory
from maskprompt.training.engine.job import run
from maskprompt.training.engine.learner import Learner
from maskprompt.training.meca.examples import Examples
from maskprompt.training.meca.job import finished, preview, ready
from maskprompt.training.meca.keys import fresh, keys_of, patches_of, size
from maskprompt.training.meca.loss import Loss
from maskprompt.training.meca.options import Options
from torch import Tensor

from ..attention.test_layers import SD15
from ..nodes.test_masked_attention import small_sdxl
from .test_learner import conditioning, fingerprint, of_random_weights, unchanged, unet_of, with_another_lora

FEATURES = 48
OPTIONS = Options(steps=6, rate=1e-3, batch=2, size=64, tokens=4)


@pytest.fixture(scope="module")
def model() -> Any:
    """Few blocks; 9 channels, as the tiny model has."""
    return unet_of(32, small=True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two samples each."""
    monkeypatch.setattr("maskprompt.training.meca.options.CHUNK", 4)


def examples(count: int = 3, side: tuple[int, int] = (8, 8), seed: int = 0, masked: Sequence[bool] = (True, False, False)) -> Examples:
    """Random samples: the first with the upper left quarter as region, the last without an image, each with its own number of tokens."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.ones(count, side[0] * 8, side[1] * 8)
    for row in range(count):
        if masked[row % len(masked)]:
            regions[row] = 0
            regions[row, : side[0] * 4, : side[1] * 4] = 1
    features = [torch.randn(5 + row, FEATURES, generator=generator) for row in range(count)]
    features[-1] = torch.zeros(1, FEATURES)
    return Examples(
        torch.randn(count, 4, *side, generator=generator), features, regions,
        torch.tensor([masked[row % len(masked)] for row in range(count)]), [conditioning(seed + row) for row in range(count)],
    )  # fmt: skip


def source(seed: int = 0) -> Callable[[int], Examples]:
    """Four samples in each chunk."""
    return lambda chunk: examples(4, seed=seed * 1000 + chunk)


def moved(network: MecaNetwork) -> MecaNetwork:
    """As after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.3 * value.std().nan_to_num() * torch.randn(value.shape, generator=generator)
    return network


def noise_of(pictures: Examples) -> Tensor:
    return torch.randn(pictures.latents.shape, generator=torch.Generator().manual_seed(3))


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
        """Z' = softmax(Q (Z W_k)ᵗ / √d) (Z W_v)."""
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


class StopError(Exception):
    pass


def trained(model: Any, options: Options, state: Path | None = None, stop: int = 0, asked: list[int] | None = None) -> MecaNetwork:
    """A training, or the part of it until `stop`; `asked`: the numbers of the chunks that were asked for."""

    def after(progress: loop.Progress) -> None:
        if progress.step == stop:
            raise StopError

    def noted(chunk: int) -> Examples:
        if asked is not None:
            asked.append(chunk)
        return source()(chunk)

    training = ready(Learner(model, "frozen"), noted, FEATURES, options, "mark")
    states = () if state is None else training.states(state)
    if stop:
        with pytest.raises(StopError):
            run(training, states, after)
    else:
        run(training, states)
    return training.network


@pytest.mark.parametrize("stop", [3, 4], ids=["within a chunk", "at a chunk's end"])
@pytest.mark.usefixtures("small_chunks")
def test_interrupted_and_resumed_it_ends_as_if_nothing_had_been(model: Any, tmp_path: Path, stop: int) -> None:
    options = replace(OPTIONS, average=0.9)
    asked = []
    later = []
    whole = trained(model, options, asked=asked).state_dict()
    broken = trained(model, options, tmp_path / "state.pt", stop).state_dict()
    resumed = trained(model, options, tmp_path / "state.pt", asked=later).state_dict()
    assert asked == [0, 1, 2]
    assert later == ([1, 2] if stop == 3 else [2])
    assert any(not torch.allclose(broken[name], value, atol=1e-4) for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=1e-4)
    done = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (done["step"], done["finished"]) == (6, True), "what was learned stays until it is saved"


@pytest.mark.usefixtures("small_chunks")
def test_each_step_takes_samples_of_its_own(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Examples] = []
    monkeypatch.setattr(Loss, "of", lambda self, pictures, noise, sigmas: seen.append(pictures) or torch.zeros((), requires_grad=True))
    learner = Learner(model, "frozen")
    training = ready(learner, source(), FEATURES, OPTIONS)
    training.begin()
    fetched = []
    for step in range(4):
        fetched.append(training.fetch(step))
        training.loss(step, loop.random_numbers(0, step))
    assert fetched == [True, False, True, False]
    wanted = torch.cat([source()(chunk).latents for chunk in range(2)])
    assert torch.equal(torch.cat([one.latents for one in seen]), wanted)
    assert [OPTIONS.samples(chunk) for chunk in range(4)] == [4, 4, 4, 0]
    assert replace(OPTIONS, steps=5).samples(2) == 2
    with pytest.raises(ValueError, match="chunk 0 of the samples holds 3; 4 are needed"):
        ready(learner, lambda chunk: examples(3), FEATURES, OPTIONS).fetch(1)


def test_what_was_learned_is_saved_and_loaded_as_it_was(model: Any, tmp_path: Path) -> None:
    from ...support.adapters import encoded

    learner = Learner(model, "frozen")
    with learner.loaded():
        network = moved(fresh(learner, FEATURES, replace(OPTIONS, mode="query")))
        adapter = finished(network, replace(OPTIONS, mode="query"), "a test", "it")
    meca_file.save(adapter.patcher.model, adapter.about, str(tmp_path / "it.safetensors"))
    assert [file.name for file in tmp_path.iterdir()] == ["it.safetensors"]
    loaded = meca_adapter.load(str(tmp_path / "it.safetensors"))
    assert loaded.about == adapter.about == meca_file.About("query", meca_file.ZEROS, 1, "a test")
    first, second = (one.pairs(encoded(patches=FEATURES)) for one in (adapter, loaded))
    assert first.keys() == second.keys() == network.widths.keys()
    assert all(torch.equal(one, two) for number in first for one, two in zip(first[number], second[number], strict=True))
    own = network.state_dict()
    tokens = adapter.patcher.model.state_dict()
    assert all(value.dtype == torch.float16 and torch.equal(value, own[name].half()) for name, value in tokens.items())


def test_a_preview_shows_what_was_learned_and_leaves_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoder:
        def decode(self, latents: Tensor) -> Tensor:
            return latents

    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)
    learner = Learner(model, "frozen")
    with learner.loaded():
        network = fresh(learner, FEATURES, OPTIONS)
        fixed = examples(), noise_of(examples()), torch.tensor([0.5, 2.0, 1.0])
        loss = Loss(learner, network, OPTIONS)
        before = loss.of(*fixed).item()

        def previewed(pictures: Examples) -> Tensor:
            found = preview(learner, network, pictures, Decoder(), conditioning(9), OPTIONS)
            learner.load()
            return found

        shown = [previewed(examples()) for _ in range(2)]
        plain = previewed(replace(examples(), masked=torch.zeros(3, dtype=torch.bool)))
        assert loss.of(*fixed).item() == before
        moved(network)
        other = previewed(examples())
    assert shown[0].shape == (1, 4, 8, 8)
    assert torch.equal(*shown)
    assert not torch.equal(shown[0], other)
    assert not torch.equal(shown[0], plain)


def test_a_model_that_predicts_velocity_learns_velocity() -> None:
    """SD 2.1's kind: the loss is the squared error of v, written out."""
    import comfy.model_base
    import comfy.supported_models

    few = {"num_res_blocks": [1, 1], "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]}
    config: Any = comfy.supported_models.SD15({**SD15, **few, "model_channels": 32, "context_dim": 128})
    config.model_type = lambda *_, **__: comfy.model_base.ModelType.V_PREDICTION
    learner = Learner(of_random_weights(config), "frozen")
    pictures = examples(1, masked=(False,))
    steps = torch.tensor([500])
    noise = noise_of(pictures)
    with learner.loaded(), torch.no_grad():
        loss = Loss(learner, fresh(learner, FEATURES, OPTIONS), OPTIONS)
        sigma = loss.schedule.sigmas[steps]
        found = loss.of(pictures, noise, sigma).item()
        z = pictures.latents * 0.18215
        keys = keys_of(loss.network, loss.layers, pictures.features, 1)
        conditions = learner.conditions(pictures.texts[0], z, {"latent_image": z})
        denoised = learner.denoised(z + noise * sigma, sigma, conditions, patches_of(keys, pictures, "region"))
    alpha = 1 / (sigma**2 + 1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
    noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    predicted = (alpha.sqrt() * noisy - denoised) / (1 - alpha).sqrt()
    assert found == pytest.approx(((predicted - velocity) ** 2).mean().item(), rel=1e-4)


def test_the_rate_and_the_shares_are_the_papers() -> None:
    assert Options().settings() == loop.Settings(10_000, 1e-4, weight_decay=0.01)
    assert (Options().text_only, Options().masked, Options().size) == (0.05, 0.5, 512)
    assert Options(batch=1000).steps_per_chunk == 1


def test_the_fingerprint_is_of_all_that_matters() -> None:
    mark = Options(steps=5).fingerprint("pictures", "model")
    assert Options(steps=9, checkpointing=False).fingerprint("pictures", "model") == mark
    others: list[dict[str, Any]] = [
        {"rate": 1e-3}, {"weight_decay": 0.0}, {"batch": 2}, {"size": 64}, {"tokens": 4}, {"mode": "query"}, {"text_only": 0.1},
        {"masked": 0.1}, {"text_dropout": 0.1}, {"blank": 0.1}, {"threshold": 0.1}, {"random_crop": True}, {"flip": True}, {"seed": 1},
        {"average": 0.9},
    ]  # fmt: skip
    marks = {mark, Options().fingerprint("others", "model"), *(Options(**one).fingerprint("pictures", "model") for one in others)}
    assert len(marks) == 2 + len(others)
