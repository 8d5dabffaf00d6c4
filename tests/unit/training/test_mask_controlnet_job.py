"""Mask-ControlNet's training as a whole: resumed, in other precisions, previewed, and what it leaves."""

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
from maskprompt.training.data.objects import Given
from maskprompt.training.engine import loop, memory
from maskprompt.training.engine.job import run
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.preview import paint
from maskprompt.training.mask_controlnet import checks
from maskprompt.training.mask_controlnet import job as mask_controlnet
from maskprompt.training.mask_controlnet.branch import Branch
from maskprompt.training.mask_controlnet.examples import Batch
from maskprompt.training.mask_controlnet.job import ready
from maskprompt.training.mask_controlnet.loss import Loss
from maskprompt.training.mask_controlnet.options import Options
from torch import Tensor

from ...support.learners import conditioning, fingerprint, same_bits, unchanged, unet_of
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
    of_stable_diffusion,
    quick_previews,
    source_of,
    squares,
    vae,
)

__all__ = ["model", "quick_previews", "vae"]  # fixtures


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
