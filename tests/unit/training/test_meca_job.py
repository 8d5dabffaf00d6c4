"""MECA's training as a whole: resumed, saved, previewed, and its fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.models.ip_adapter import file as meca_file
from maskprompt.models.ip_adapter.network import MecaNetwork
from maskprompt.training.engine import loop
from maskprompt.training.engine.job import run
from maskprompt.training.engine.learner import Learner
from maskprompt.training.meca.examples import Examples
from maskprompt.training.meca.job import finished, preview, ready
from maskprompt.training.meca.keys import fresh, keys_of, patches_of
from maskprompt.training.meca.loss import Loss
from maskprompt.training.meca.options import Options
from torch import Tensor

from ...support.learners import conditioning, of_random_weights
from ...support.meca_training import FEATURES, OPTIONS, examples, model, moved, noise_of, source
from ...support.unets import SD15

__all__ = ["model"]  # fixtures


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two samples each."""
    monkeypatch.setattr("maskprompt.training.meca.options.CHUNK", 4)


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
