"""Mask-ControlNet's training against equation 1: what is learned, from what, and that nothing else is."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from maskprompt.conditioning.texts import Texts
from maskprompt.models.mask_controlnet import control as rooms
from maskprompt.models.mask_controlnet import file as mask_controlnet_file
from maskprompt.models.mask_controlnet.diffusers_layout import shape_of
from maskprompt.models.mask_controlnet.network import weights_of
from maskprompt.training.data.objects import Example, Given
from maskprompt.training.engine import loop, memory
from maskprompt.training.engine.job import run
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.preview import paint
from maskprompt.training.mask_controlnet import checks
from maskprompt.training.mask_controlnet import job as mask_controlnet
from maskprompt.training.mask_controlnet.branch import Branch
from maskprompt.training.mask_controlnet.examples import Batch, Source
from maskprompt.training.mask_controlnet.job import ready
from maskprompt.training.mask_controlnet.loss import Loss
from maskprompt.training.mask_controlnet.options import Options
from torch import Tensor

from ..attention.test_layers import SD15
from ..conftest import random_model
from ..nodes.test_masked_attention import small_sdxl
from .test_learner import conditioning, fingerprint, of_random_weights, same_bits, unchanged, unet_of, with_another_lora

OPTIONS = Options(steps=4, rate=1e-3, batch=1, size=64, text_dropout=0.3, checkpointing=False)
BLANK = (0.8223, -0.6876, 0.6364, 0.1380)
"""What an inpainting model is shown where all is to be painted: SD's latent of mid grey, as ComfyUI writes it."""


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def model() -> Any:
    """Few blocks; 9 channels, as the tiny model has."""
    return unet_of(32, small=True)


def of_stable_diffusion(dtype: torch.dtype = torch.float32) -> Any:
    """A VAE of Stable Diffusion's kind, narrow, of random weights, as ComfyUI loads it."""
    shape = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 2, 2],
             "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config: Any = {"params": {"ddconfig": shape, "embed_dim": 4}}
    generator = torch.Generator().manual_seed(4)
    state = {}
    for name, value in AutoencoderKL(**config["params"]).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        state[name] = noise / value[0].numel() ** 0.5 if value.ndim > 1 else float(name.endswith("weight")) + 0.1 * noise
    return comfy.sd.VAE(sd=state, config=config, dtype=dtype)


@pytest.fixture(scope="module")
def vae() -> Any:
    return of_stable_diffusion()


class Clip:
    """Each text has a conditioning of its own, drawn from its letters."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> Any:
        self.encoded.append(text)
        return conditioning(sum(ord(letter) for letter in text))


def squares(count: int = 3, height: int = 64, width: int = 64) -> Given:
    """Noise with a bright square in each, somewhere else in each, and its caption."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        image = 0.7 * torch.rand(height, width, 3, generator=generator)
        marks = torch.zeros(1, height, width)
        marks[0, 8 + 8 * number : 32 + 8 * number, 4 : 28 + 4 * number] = 1
        found.append(Example(torch.where(marks[0, ..., None] > 0, torch.tensor([1.0, 0.5, 0.2]), image), marks, f"square {number}"))
    return Given(found)


def source_of(options: Options = OPTIONS, examples: Given | None = None) -> Source:
    return Source(examples or squares(), options.batch, options.size, options.text_dropout)


def known(*texts: str) -> Texts:
    found = Texts(Clip())
    found.know(texts)
    return found


def batch_of(height: int = 32, width: int = 64) -> Batch:
    """Two pictures of one wide bucket, another one as reference for each, soft masks."""
    generator = torch.Generator().manual_seed(2)
    reference, image = (torch.rand(2, 3, height, width, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, height, width)
    mask[0, :, 4:20, 8:50] = 1
    mask[1, :, 12:, :32] = 1
    mask[:, :, 15:17] = 0.5
    return Batch(reference, mask, image, ("a red ball", ""))


def part(batch: Batch, row: slice) -> Batch:
    return Batch(batch.reference[row], batch.mask[row], batch.image[row], batch.texts[row])


def moved(branch: Branch) -> Branch:
    """As after some training, by numbers that half precision holds exactly: no layer is zero, and the hint reaches over 0..1."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in branch.parameters.values():
            size = 0.3 * value.std().nan_to_num() + (0.05 if value.abs().max() == 0 else 0)
            value.copy_((value + size * torch.randn(value.shape, generator=generator)).half())
    return branch


def branch_of(learner: Learner, vae: Any, options: Options = OPTIONS) -> Branch:
    branch = Branch(learner, vae, options)
    branch.load()
    return branch


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


def noise_for(batch: Batch) -> Tensor:
    size = batch.image.shape[2] // 8, batch.image.shape[3] // 8
    return torch.randn(len(batch.image), 4, *size, generator=torch.Generator().manual_seed(3))


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


def lit(values: dict[str, Any]) -> set[str]:
    """The names of those with a gradient."""
    return {name for name, value in values.items() if value.grad is not None and bool(value.grad.any())}


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


class StopError(Exception):
    pass


def trained(
    model: Any, vae: Any, options: Options, state: Path | None = None, stop: int = 0, examples: Given | None = None
) -> tuple[Branch, loop.Progress | None, Clip]:
    """A training, or the part of it until `stop`."""

    def after(progress: loop.Progress) -> None:
        if progress.step == stop:
            raise StopError

    learner = Learner(model, "frozen", checkpointing=options.checkpointing)
    clip = Clip()
    training = ready(learner, vae, options, source_of(options, examples), Texts(clip), "mark")
    states = () if state is None else training.states(state)
    done = None
    if stop:
        with pytest.raises(StopError):
            run(training, states, after)
    else:
        done, _ = run(training, states)
    return training.branch, done, clip


def weights(branch: Branch) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in branch.parameters.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(("average", "stop"), [(0.0, 1), (0.9, 2), (0.0, 3)])
def test_interrupted_and_resumed_it_ends_to_the_bit_as_if_nothing_had_been(
    model: Any, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float, stop: int
) -> None:
    """Within the steps whose texts are read together, and at their end."""
    monkeypatch.setattr(mask_controlnet, "AHEAD", 2)
    options = replace(OPTIONS, average=average)
    file = tmp_path / "state.pt"
    whole, progress, _ = trained(model, vae, options)
    broken, _, _ = trained(model, vae, options, file, stop)
    kept = torch.load(file, weights_only=True)
    resumed, again, _ = trained(model, vae, options, file)
    assert kept["step"] == stop
    assert not equal(weights(broken), weights(whole))
    assert equal(weights(resumed), weights(whole))
    assert again == progress
    done = torch.load(file, weights_only=True)
    assert (done["step"], done["finished"]) == (4, True), "what was learned stays until it is saved"


def test_more_steps_go_on_where_the_training_ended(model: Any, vae: Any, tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    trained(model, vae, replace(OPTIONS, steps=2), file, stop=2)
    longer, _, _ = trained(model, vae, OPTIONS, file)
    whole, _, _ = trained(model, vae, OPTIONS)
    assert equal(weights(longer), weights(whole))


@pytest.mark.parametrize("happens", ["done", "an error", "an interrupt", "a preview"])
def test_all_that_was_given_stays_to_the_bit(model: Any, vae: Any, monkeypatch: pytest.MonkeyPatch, happens: str) -> None:
    tiny = vae.first_stage_model
    before = fingerprint(model)
    own = [value.clone() for value in tiny.state_dict().values()]
    texts = [conditioning(1), conditioning(2)]
    same = [[[entry.clone(), dict(more)] for entry, more in text] for text in texts]
    learner = Learner(model, "frozen")
    options = replace(OPTIONS, steps=2)
    training = ready(learner, vae, options, source_of(options), Texts(Clip()), shown=batch_of(), prompts=texts)

    def after(progress: loop.Progress) -> None:
        if happens == "an interrupt":
            raise comfy.model_management.InterruptProcessingException
        if happens == "a preview":
            assert training.painted() is not None

    if happens == "an error":
        monkeypatch.setattr(Loss, "of", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
    failures = {"an error": torch.OutOfMemoryError, "an interrupt": comfy.model_management.InterruptProcessingException}
    failed: Any = None
    try:
        run(training, on_step=after)
    except (torch.OutOfMemoryError, comfy.model_management.InterruptProcessingException) as error:
        failed = type(error)
    assert failed is failures.get(happens)
    assert all(value.grad is None for value in training.branch.parameters.values())
    assert unchanged(model, before)
    assert all(same_bits(*one) for one in zip(own, tiny.state_dict().values(), strict=True))
    assert all(torch.equal(one[0][0], other[0][0]) and one[0][1] == other[0][1] for one, other in zip(texts, same, strict=True))


def begun_on(learner: Learner, vae: Any, options: Options, examples: Given) -> mask_controlnet.MaskControlNet:
    """A training whose first step may be taken."""
    training = ready(learner, vae, options, source_of(options, examples), Texts(Clip()))
    training.fetch(0)
    training.begin()
    training.load()
    return training


def test_a_step_is_the_mean_of_its_batches(model: Any, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two batches with random numbers of their own, and other texts, of which both are read before."""
    monkeypatch.setattr(mask_controlnet, "AHEAD", 1)
    options = replace(OPTIONS, accumulate=2, steps=1, text_dropout=0.0)
    examples = squares(6, 96, 64)
    _, progress, clip = trained(model, vae, options, examples=examples)
    shared: list[list[Tensor]] = []
    learner = Learner(model, "frozen")
    with learner.loaded(), torch.enable_grad():
        whole = begun_on(learner, vae, options, examples)
        found = moved(whole.branch).parameters
        loop.run(found, whole.loss, options.settings(32), share=lambda values: shared.append([value.clone() for value in values]))
        half = begun_on(learner, vae, options, examples)
        fresh = half.branch
        first = half.loss
        begun = [first(0, loop.random_numbers(0, 0, lane)).item() for lane in range(2)]
        moved(fresh)
        parts = [first(0, loop.random_numbers(0, 0, lane)) for lane in range(2)]
        ((parts[0] + parts[1]) / 2).backward()
    assert progress is not None
    assert begun[0] != pytest.approx(begun[1], rel=1e-3)
    assert progress.losses == pytest.approx([sum(begun) / 2], rel=1e-6)
    ((mean, *gradients),) = shared
    torch.testing.assert_close(mean, ((parts[0] + parts[1]) / 2).detach())
    for found, value in zip(gradients, fresh.parameters.values(), strict=True):
        torch.testing.assert_close(found, value.grad, atol=1e-7, rtol=1e-4)
    assert len(clip.encoded) == 2


def test_texts_are_read_some_steps_ahead_and_once(model: Any, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_controlnet, "AHEAD", 2)
    reads: list[list[str]] = []
    know = Texts.know
    monkeypatch.setattr(Texts, "know", lambda self, captions: (reads.append(list(captions)), know(self, reads[-1]))[1])
    seen: list[str] = []
    of = Loss.of
    monkeypatch.setattr(Loss, "of", lambda self, batch, *given: (seen.extend(batch.texts), of(self, batch, *given))[1])
    _, _, clip = trained(model, vae, replace(OPTIONS, batch=2, text_dropout=0.5))
    assert [len(one) for one in reads] == [4, 4]
    assert seen == reads[0] + reads[1]
    assert len(clip.encoded) == len(set(reads[0])) + len(set(reads[1]) - set(reads[0]))


def previewed(branch: Branch, batch: Batch, vae: Any) -> Tensor:
    """A preview, after which the training may go on."""
    found = mask_controlnet.preview(branch, batch, vae, conditioning(1), conditioning(2))
    branch.learner.load()
    branch.load()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bfloat16_as_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and a preview in the precision of a GPU, with weights of any: nothing meets a number of another kind."""
    base = unet_of(32, small=True, dtype=dtype)
    half = of_stable_diffusion(dtype)
    found = {}
    base.model.manual_cast_dtype = None  # a GPU samples in the weights' own precision
    batch = batch_of()
    texts = known(*batch_of().texts)
    for compute in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("maskprompt.training.engine.learner.compute_dtype", lambda model, compute=compute: compute)
        learner = Learner(base, "frozen", checkpointing=True)
        with learner.loaded(), torch.enable_grad():
            branch = moved(branch_of(learner, half, replace(OPTIONS, checkpointing=True)))
            seen: list[torch.dtype] = []
            branch.network.middle_block_out.register_forward_hook(lambda *given, seen=seen: seen.append(given[2].dtype))
            loss = Loss(branch, source_of(), texts)
            value = loss.of(batch, loss.latents(batch), noise_for(batch), torch.tensor([2.0, 0.7]))
            value.backward()
            assert lit(branch.parameters) == set(branch.parameters)
            assert {one.dtype for one in branch.parameters.values()} == {torch.float32}
            assert all(bool(one.grad.isfinite().all()) for one in branch.parameters.values() if one.grad is not None)
            assert bool(previewed(branch, batch, half).isfinite().all())
            assert bool(loss.of(batch, loss.latents(batch), noise_for(batch), torch.tensor([2.0, 0.7])).isfinite())
        found[compute] = value.item()
        assert seen[0] == compute
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=0.05)


@pytest.mark.parametrize("masked", [True, False])
def test_what_paints_is_what_learned(model: Any, vae: Any, masked: bool, tmp_path: Path) -> None:
    """What the finished, and the saved, control network adds in the sampler; the adapter's hint; in the bare variant without the mask."""
    batch = batch_of()
    learner = Learner(model, "frozen")
    generator = torch.Generator().manual_seed(8)
    noisy = torch.randn(2, 4, 4, 8, generator=generator)
    sigma = torch.tensor([1.5, 1.5])
    text = conditioning(3)[0][0].expand(2, -1, -1)
    with learner.loaded(), torch.no_grad():
        branch = moved(branch_of(learner, vae, replace(OPTIONS, masked=masked)))
        hint = branch.hint(batch)
        wanted: Any = branch.acting(hint).get_control(noisy, sigma, {"c_crossattn": text}, 1, {})
        other_mask = branch.hint(replace(batch, mask=batch.mask.flip(2)))
        finished = rooms.of_content(branch.content(), "it")
        mask_controlnet_file.save(branch.content(), str(tmp_path / "it.safetensors"), {"steps": "3"})
    assert torch.equal(hint, other_mask) is not masked
    for control, adapter in (finished, rooms.load(str(tmp_path / "it.safetensors"))):
        assert (control.about, adapter.masked) == (branch.about, masked)
        assert control.about.masked is masked
        image = batch.reference.movedim(1, -1)
        assert torch.equal(adapter.hint(image, batch.mask[:, 0]), hint.movedim(1, -1))
        with torch.no_grad():
            set_up = control.copy().set_cond_hint(hint, vae=vae)
            set_up.pre_run(model.model, model.model.model_sampling.percent_to_sigma)
            found: Any = set_up.get_control(noisy, sigma, {"c_crossattn": text}, 1, {})
        for place in ("middle", "output"):
            for one, two in zip(found[place], wanted[place], strict=True):
                torch.testing.assert_close(one.float(), two, atol=1e-4, rtol=1e-3)
        state = control.network.state_dict()
        assert all(torch.equal(value.half(), state[name].half()) for name, value in branch.network.state_dict().items())


def test_what_is_saved_is_half_of_what_learned_and_a_copy(model: Any, vae: Any, tmp_path: Path) -> None:
    learner = Learner(model, "frozen")
    with learner.loaded(), torch.no_grad():
        branch = moved(branch_of(learner, vae))
        branch.adapter.layer.weight += 1e-5  # what half precision would lose
        control, adapter = rooms.of_content(branch.content(), "it")
        mask_controlnet_file.save(branch.content(), str(tmp_path / "it.safetensors"), {"steps": "3"})
        own = branch.content()
        for value in branch.parameters.values():
            value.zero_()
    read = mask_controlnet_file.read(str(tmp_path / "it.safetensors"))
    assert (read.about, read.shape) == (branch.about, branch.network.shape)
    assert read.about.base == "a UNet of 32 channels with text of width 128"
    for kept in (read, own):
        assert kept.adapter is not None
        assert {value.dtype for value in kept.control.values()} == {torch.float16}
        assert {value.dtype for value in kept.adapter.values()} == {torch.float32}
        assert equal(dict(kept.control), dict(read.control))
        assert equal(dict(kept.adapter), dict(adapter.layer.state_dict()))
    assert any(bool(value.any()) for value in control.network.state_dict().values())


def test_a_preview_shows_what_was_learned_and_leaves_nothing(model: Any, vae: Any) -> None:
    learner = Learner(model, "frozen")
    batch = batch_of()
    texts = known(*batch_of().texts)
    with learner.loaded():
        branch = branch_of(learner, vae)
        loss = Loss(branch, source_of(), texts)
        objects = {name: id(value) for name, value in branch.parameters.items()}
        before = loss.of(batch, loss.latents(batch), noise_for(batch), torch.tensor([2.0, 0.7]))
        shown = [previewed(branch, batch, vae) for _ in range(2)]
        assert {name: id(value) for name, value in branch.parameters.items()} == objects
        assert torch.equal(loss.of(batch, loss.latents(batch), noise_for(batch), torch.tensor([2.0, 0.7])), before)
        assert all(value.requires_grad for value in branch.parameters.values())
        hint = branch.hint(batch)[:1].movedim(1, -1).detach()
        painted = previewed(moved(branch), batch, vae)
        control = branch.control.copy().set_cond_hint(branch.hint(batch)[:1].detach(), vae=vae)  # as Apply ControlNet does it
        wanted = paint(learner, conditioning(1), conditioning(2), torch.zeros(1, 4, 4, 8), {"control": control})
    assert shown[0].shape == (1, 32, 128, 3)
    torch.testing.assert_close(painted[:, :, 64:], vae.decode(wanted), atol=1e-4, rtol=1e-3)
    assert torch.equal(*shown)
    assert torch.equal(shown[0][:, :, :64], hint)
    assert not torch.allclose(shown[0][:, :, 64:], painted[:, :, 64:], atol=1e-3)
    assert not torch.allclose(shown[0][:, :, :64], painted[:, :, :64], atol=1e-3)


def test_a_preview_streams_no_weights(model: Any, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ComfyUI streams weights, it puts other parameters in the place of those that learn."""

    class Streaming(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self) -> Any:
            return True

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Streaming)
    learner = Learner(model, "frozen")
    with learner.loaded():
        branch = branch_of(learner, vae)
        patchers = branch.control.copy().get_models()
    assert [one.model for one in patchers] == [branch.network]
    assert not any(one.is_dynamic() for one in patchers)


def test_nothing_is_left_when_the_branch_is_gone(model: Any, vae: Any) -> None:
    import weakref

    branch, _, _ = trained(model, vae, replace(OPTIONS, steps=1))
    networks = [weakref.ref(one) for one in (branch.network, branch.adapter, branch.encoder.network, branch.learner.network)]
    finished = rooms.of_content(branch.content(), "it")
    del branch
    gc.collect()
    assert [one() for one in networks] == [None] * 4
    assert any(bool(value.any()) for value in finished[0].network.zero_convs.parameters())


def test_what_it_will_take(model: Any, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen model once, the control network four or five times, and the larger of UNet's and VAE's share of a step."""
    found: list[Any] = []
    monkeypatch.setattr(memory, "check", lambda needed, device, method: found.append((needed, method)))
    learner = Learner(model, "frozen")
    weights = weights_of(shape_of(model.model.model_config.unet_config))
    assert weights == sum(value.numel() for value in Branch(learner, vae, OPTIONS).network.parameters())
    plain = memory.estimate(learner, (2, 4, 8, 8), True)
    usual = replace(OPTIONS, batch=2, checkpointing=True)
    for options in (usual, replace(usual, average=0.9), replace(usual, checkpointing=False)):
        checks.check_memory(learner, vae, options)
    pixels = 3046 * 4 * 64 * 64
    assert [needed.learning for needed, _ in found] == [4 * copies * weights for copies in (4, 5, 4)]
    assert {needed.weights for needed, _ in found} == {learner.patcher.model_size()}
    assert [needed.activations for needed, _ in found] == [
        *[max(plain.activations, pixels)] * 2, memory.estimate(learner, (2, 4, 8, 8), False).activations + 2 * pixels
    ]  # fmt: skip
    assert {method for _, method in found} == {"frozen"}


def test_the_options_are_the_usual_ones() -> None:
    usual = Options()
    assert usual.settings(320) == loop.Settings(10_000, 1e-5, weight_decay=0.01)
    assert usual.settings(32).learning_rate == pytest.approx(1e-4)
    assert replace(usual, rate=3e-4, accumulate=8, average=0.9, seed=5).settings(32) == loop.Settings(
        10_000, 3e-4, 5, average=0.9, accumulate=8
    )
    assert (usual.size, usual.batch, usual.masked, usual.text_dropout, usual.checkpointing) == (512, 4, True, 0.1, True)
    assert usual.latents == (4, 4, 64, 64)


def test_the_fingerprint_is_of_all_that_matters() -> None:
    mark = Options(steps=5).fingerprint("pictures", "model")
    assert Options(steps=9, checkpointing=False).fingerprint("pictures", "model") == mark
    others: list[dict[str, Any]] = [
        {"rate": 1e-3}, {"weight_decay": 0.0}, {"batch": 2}, {"accumulate": 2}, {"size": 64}, {"masked": False}, {"text_dropout": 0.5},
        {"seed": 1}, {"average": 0.9},
    ]  # fmt: skip
    marks = {mark, Options().fingerprint("others", "model"), *(Options(**one).fingerprint("pictures", "model") for one in others)}
    assert len(marks) == 2 + len(others)
