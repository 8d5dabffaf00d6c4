"""What learns: gradients where they belong, a result that any stock loader applies, and a MODEL that stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import loop, model_copy
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.preview import paint
from maskprompt.training.engine.trainable_weights import Method
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...support.learners import (
    METHODS,
    conditioning,
    examples,
    fingerprint,
    learner_predicts,
    model,
    predicted,
    quick_previews,
    roughened,
    trained,
    unchanged,
    unet_of,
    with_another_lora,
    with_lora,
)
from ...support.models import Sample, random_model

__all__ = ["model", "quick_previews"]  # fixtures


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_all_that_learns_and_nothing_else(model: Any, method: Method) -> None:
    learner = Learner(model, method, 4)
    with learner.loaded():
        roughened(learner)  # a LoRA's upper half starts without a gradient for its lower one
        Loss(learner, examples(), conditioning(), Options(size=64))(0, loop.random_numbers(0, 0)).backward()
        frozen = [value for value in learner.network.parameters() if all(value is not one for one in learner.parameters.values())]
        assert all(value.grad is None and not value.requires_grad for value in frozen)
        dead = [name for name, value in learner.parameters.items() if value.grad is None or not bool(value.grad.any())]
    assert dead == []
    modules = dict(model.model.diffusion_model.named_modules())
    if method == "full":
        assert len(learner.parameters) == len(list(model.model.diffusion_model.parameters()))
        assert frozen == []
    else:
        layers = [name for name, module in modules.items() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
        assert {name.removeprefix("diffusion_model.") for name in learner.adapted.adapters} == set(layers)
        assert len(learner.parameters) == 2 * len(layers)


@pytest.mark.parametrize("method", METHODS)
def test_untrained_it_is_the_model_to_the_bit(model: Any, method: Method) -> None:
    wanted = predicted(model)
    learner = Learner(model, method, 3, seed=7)
    with learner.loaded():
        assert torch.equal(learner_predicts(learner), wanted)
        learned = learner.learned()
    again = with_lora(model, learned)
    assert torch.equal(predicted(again), wanted)


def test_the_same_seed_trains_the_same(model: Any) -> None:
    results = []
    for seed in (4, 4, 5):
        learner = Learner(model, "lora", 2, seed)
        with learner.loaded():
            trained(learner, 2)
            results.append(learner.learned())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("channels", "small"), [(32, True), (64, True), (32, False)], ids=["small", "wide", "all blocks"])
def test_the_loss_on_a_fixed_batch_falls(method: Method, channels: int, small: bool) -> None:
    """Of the small UNet, of one of twice the width, and of one with all of SD 1.5's blocks."""
    learner = Learner(unet_of(channels, small), method, 8, checkpointing=False)
    with learner.loaded():
        loss = Loss(learner, examples(), conditioning(), Options(size=64))
        fixed = torch.tensor([0, 1]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
        rate = 3e-3 if method == "lora" else 3e-4
        progress = loop.run(learner.parameters, lambda step, generator: loss.of(*fixed), loop.Settings(20, rate))
    assert progress.losses[-1] < 0.6 * progress.losses[0]


@pytest.mark.parametrize("patched", [False, True], ids=["bare", "with a LoRA"])
@pytest.mark.parametrize(("method", "rank"), [("lora", 5), ("lora", 64), ("full", 1)])
def test_what_was_learned_leaves_for_any_stock_loader(model: Any, tmp_path: Path, method: Method, rank: int, patched: bool) -> None:
    """Through the dictionary, and through a file as SaveLoRA and Load LoRA write and read it; on top of a LoRA that was there."""
    base = with_another_lora(model) if patched else model
    before = predicted(base)
    learner = Learner(base, method, rank)
    with learner.loaded():
        assert torch.equal(learner_predicts(learner), before)
        roughened(learner)
        wanted = learner_predicts(learner)
        learned = learner.learned()
    assert (wanted - before).std() > 0.02 * before.std()
    save_file(learned, tmp_path / "lora.safetensors", None)
    for state in (learned, load_file(tmp_path / "lora.safetensors")):
        loaded = with_lora(base, state)
        torch.testing.assert_close(predicted(loaded), wanted, atol=2e-4 * float(wanted.abs().max()), rtol=0)
        unused = with_lora(base, state, 0.0)
        assert torch.equal(predicted(unused), before)
    assert all(value.dtype in (torch.float16, torch.float32) and value.device.type == "cpu" for value in learned.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_learned_name_is_known_to_the_stock_loader(model: Any, method: Method, caplog: pytest.LogCaptureFixture) -> None:
    learner = Learner(model, method, 2)
    with learner.loaded():
        learned = learner.learned()
    loaded = with_lora(model, learned)
    assert "NOT LOADED" not in caplog.text.upper()
    assert "lora key not loaded" not in caplog.text
    weights = [name for name, value in model.model.state_dict().items() if method == "full" or value.ndim > 1]
    assert {str(key) for key in loaded.patches} == {name for name in weights if name.startswith("diffusion_model.")} - (
        {name for name in weights if name.endswith(".bias")} if method == "lora" else set()
    )


def in_the_loss(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loss, "of", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    trained(learner)


def interrupted(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(progress: loop.Progress) -> None:
        raise comfy.model_management.InterruptProcessingException

    trained(learner, 2, on_step=stop)


def with_a_preview(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def show(progress: loop.Progress) -> None:
        pictures = examples()
        paint(learner, conditioning(), conditioning(1), pictures.latents[:1], pictures.values(slice(0, 1)))
        learner.load()

    trained(learner, 1, on_step=show)


def loaded_twice(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = learner.learned()
    model_copy.unload(learner.patcher)
    with learner.loaded():
        again = learner.learned()
    assert all(torch.equal(learned[name], again[name]) for name in learned)


@pytest.mark.parametrize(
    ("method", "happens"),
    [("lora", in_the_loss), ("full", in_the_loss), ("full", interrupted), ("lora", with_a_preview), ("full", with_a_preview),
     ("full", loaded_twice)],
)  # fmt: skip
def test_the_model_stays_as_it_was(
    method: Method, happens: Callable[[Learner, pytest.MonkeyPatch], None], sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and all that hangs on it to the bit, and the picture it paints before, meanwhile and after."""
    base = with_another_lora(random_model())
    before = fingerprint(base)
    picture = sample(base, size=(8, 8), steps=1)
    learner = Learner(base, method, 2, checkpointing=False)
    try:
        with learner.loaded():
            trained(learner, 1)
            assert torch.equal(sample(base.clone(), size=(8, 8), steps=1), picture)
            learner.load()
            happens(learner, monkeypatch)
    except (RuntimeError, comfy.model_management.InterruptProcessingException):
        pass
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert not any(entry is not None and entry.is_clone(learner.patcher) for entry in loaded)
    assert torch.equal(sample(base, size=(8, 8), steps=1), picture)
    assert unchanged(base, before)
    assert learner.network.current_patcher is None
    own = {value.data_ptr() for value in base.model.parameters()}
    assert not own & {value.data_ptr() for value in learner.network.parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_a_preview_changes_nothing_of_the_outcome(model: Any, method: Method) -> None:
    """To the bit, though ComfyUI unloads the learner for it and draws from the global random numbers; on top of a LoRA."""
    results = []
    pictures = []
    base = with_another_lora(model)
    for shows in (False, True):
        learner = Learner(base, method, 2, checkpointing=False)

        def show(progress: loop.Progress, shows: bool = shows, learner: Learner = learner) -> None:
            if shows:
                some = examples()
                pictures.append(
                    paint(
                        learner,
                        conditioning(),
                        conditioning(1),
                        some.latents[:1],
                        some.values(slice(0, 1)),
                        patches=some.patches(slice(0, 1)),
                    )
                )
                model_copy.unload(learner.patcher)  # as a VAE on a small GPU does
                learner.load()

        with learner.loaded():
            trained(learner, 2, on_step=show)
            results.append(learner.learned())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert len(pictures) == 2
    assert all(bool(torch.isfinite(picture).all()) for picture in pictures)
    assert not torch.equal(pictures[0], pictures[1])


@pytest.mark.parametrize("method", METHODS)
def test_computing_blocks_twice_gives_the_same_gradients(model: Any, method: Method) -> None:
    found = []
    for checkpointing in (False, True):
        learner = Learner(model, method, 4, checkpointing=checkpointing)
        with learner.loaded():
            roughened(learner)
            loss = Loss(learner, examples(), conditioning(), Options(size=64, batch=2))(0, loop.random_numbers(0, 0))
            loss.backward()
            found.append({name: value.grad for name, value in learner.parameters.items()})
    largest = max(float(value.abs().max()) for value in found[0].values())
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-6 * largest, rtol=1e-6)


def test_blocks_computed_twice_keep_less(model: Any) -> None:
    """Of what the forward pass keeps for the gradient, most is gone."""
    kept = []
    for checkpointing in (False, True):
        learner = Learner(model, "lora", 4, checkpointing=checkpointing)
        found = {}
        with learner.loaded():
            own = {value.untyped_storage().data_ptr() for value in (*learner.network.parameters(), *learner.parameters.values())}

            def pack(tensor: Tensor, found: dict[int, Tensor] = found, own: set[int] = own) -> Tensor:
                if tensor.untyped_storage().data_ptr() not in own:
                    found[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                Loss(learner, examples(side=16), conditioning(), Options(size=128))(0, loop.random_numbers(0, 0))
            kept.append(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))
    assert kept[1] < 0.3 * kept[0]
