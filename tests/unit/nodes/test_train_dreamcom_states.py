"""Train a Subject where something goes wrong in the middle of it, on a small model of random weights; and what it shows meanwhile."""

from __future__ import annotations

import errno
import logging
import sys
import types
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from maskprompt.nodes import progress as node_progress
from maskprompt.training.dreamcom import loss as dreamcom
from maskprompt.training.dreamcom.job import ready
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import job, loop
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.trainable_weights import Method
from torch import Tensor

from demo.painter import Painter

from ...support.dreamcom import forget, run_node, states
from ...support.learners import conditioning, fingerprint, predicted, unchanged, unet_of, with_another_lora
from ...support.training_nodes import Told, cancelled_at, told

pytestmark = pytest.mark.thorough

__all__ = ["told"]  # fixtures

Happens = Callable[[pytest.MonkeyPatch, Painter], None]


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """For its text encoder and VAE."""
    return Painter()


@pytest.fixture(scope="module")
def model() -> Any:
    """Nine channels, random weights, and a LoRA on top."""
    return with_another_lora(unet_of(32, small=True))


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def nothing(monkeypatch: pytest.MonkeyPatch, tiny: Painter) -> None: ...


def cancelled(monkeypatch: pytest.MonkeyPatch, tiny: Painter) -> None:
    cancelled_at(1 + 2, monkeypatch)  # the crops are one of the bar's parts


def out_of_memory(monkeypatch: pytest.MonkeyPatch, tiny: Painter) -> None:
    of = dreamcom.Loss.of
    steps = iter(range(9))

    def loss(self: Any, *given: Any) -> Tensor:
        if next(steps) == 2:
            raise torch.OutOfMemoryError("no memory")
        return of(self, *given)

    monkeypatch.setattr(dreamcom.Loss, "of", loss)


def no_numbers_from_the_vae(monkeypatch: pytest.MonkeyPatch, tiny: Painter) -> None:
    monkeypatch.setattr(tiny.vae, "encode", lambda images: torch.full((len(images), 4, 8, 8), torch.nan))


@pytest.mark.parametrize(
    ("method", "happens", "kept"),
    [("lora", nothing, []), ("full", nothing, []), ("lora", cancelled, [2]), ("full", cancelled, [2]), ("lora", out_of_memory, [2]),
     ("full", out_of_memory, [2]), ("lora", no_numbers_from_the_vae, [])],
)  # fmt: skip
def test_the_given_model_stays_as_it_was_to_the_bit(
    model: Any, tiny: Painter, output: Path, monkeypatch: pytest.MonkeyPatch, method: Method, happens: Happens, kept: list[int]
) -> None:
    """Weights, patches and what it predicts; and no copy of it is left on the device, whatever happened."""
    before = fingerprint(model)
    wanted = predicted(model)
    happens(monkeypatch, tiny)
    if happens is nothing:
        trained, *_ = run_node(tiny, model=model, method=method, steps=3, learning_rate=1e-3)
        assert not torch.equal(predicted(trained), wanted)
    else:
        with pytest.raises((InterruptProcessingException, torch.OutOfMemoryError, ValueError)):
            run_node(tiny, model=model, method=method, steps=3, learning_rate=1e-3)
    assert [torch.load(file)["step"] for file in states(output)] == kept
    loaded = [entry.model.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert all(network is model.model for network in loaded if hasattr(network, "diffusion_model"))
    assert torch.equal(predicted(model), wanted)
    assert unchanged(model, before)


@pytest.mark.parametrize(("method", "average"), [("lora", 0.9), ("full", 0.0)])
def test_cancelled_at_half_and_resumed_reaches_the_same_weights(
    model: Any, tiny: Painter, output: Path, monkeypatch: pytest.MonkeyPatch, method: Method, average: float
) -> None:
    """The float32 weights themselves, to 1e-5, not only what is saved of them in half precision; the first half is not done again."""
    found: list[dict[str, Tensor]] = []
    computed: list[int] = []
    learned = Learner.learned
    loss = dreamcom.Loss.__call__

    def counted(self: dreamcom.Loss, step: int, generator: torch.Generator) -> Tensor:
        computed.append(step)
        return loss(self, step, generator)

    def exact(self: Learner) -> dict[str, Tensor]:
        found.append({name: value.detach().clone() for name, value in self.parameters.items()})
        return learned(self)

    monkeypatch.setattr(Learner, "learned", exact)
    monkeypatch.setattr(dreamcom.Loss, "__call__", counted)
    train = partial(run_node, tiny, model=model, method=method, average=average, steps=6, learning_rate=1e-3, seed=4)
    _, _, losses, _, _ = train()
    forget(output)
    with monkeypatch.context() as patch:
        cancelled_at(1 + 3, patch)
        with pytest.raises(InterruptProcessingException):
            train()
    (kept,) = states(output)
    half = torch.load(kept)
    assert half["step"] == 3
    computed.clear()
    _, _, again, steps, _ = train()
    assert computed == [3, 4, 5]
    assert steps == len(again["loss"]) == 6
    assert again["loss"] == pytest.approx(losses["loss"], abs=1e-5)
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-5, rtol=0)
    assert max(float((half["parameters"][name] - found[0][name]).abs().max()) for name in found[0]) > 1e-3
    assert states(output) == []


def test_a_disk_that_is_full_is_a_warning_and_training_goes_on(
    model: Any, tiny: Painter, output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It breaks off in the middle of the file. An interrupt stays one."""
    monkeypatch.setattr(job.Job, "states", partialmethod(job.Job.states, every=1))
    _, wanted, _, _, _ = run_node(tiny, model=model, steps=3)
    forget(output)

    def full(content: Any, file: Path) -> None:
        file.write_bytes(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with caplog.at_level(logging.WARNING):
        _, lora, losses, _, _ = run_node(tiny, model=model, steps=3)
    assert len(losses["loss"]) == 3
    assert all(torch.equal(lora[name], wanted[name]) for name in wanted)
    assert "No space left on device. Is the disk full?" in caplog.text
    assert states(output) == []
    cancelled_at(1 + 2, monkeypatch)
    with pytest.raises(InterruptProcessingException):
        run_node(tiny, model=model, steps=3)
    assert states(output) == []


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was sent through ComfyUI's server: text, node."""
    found: list[tuple[str, str]] = []
    server: Any = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(send_progress_text=lambda *given: found.append(given)))
    monkeypatch.setitem(sys.modules, "server", server)
    return found


def grey() -> Tensor:
    return torch.full((1, 4, 4, 3), 0.5)


def test_crops_are_a_tenth_of_the_bar_and_it_ends_full(told: Told) -> None:
    shown = node_progress.TrainingProgress(None, 50)
    for done in (8, 16, 20):
        shown.tell("Encoding crops", done, 20)
    after = shown.watcher(0, grey)
    for step in (1, 49, 50):
        after(loop.Progress(step, [1.0] * step))
    assert [value for value, _ in told] == [2, 4, 5, 6, 54, 55]
    assert shown.bar.total == 55
    assert not any(preview for _, preview in told)


@pytest.mark.parametrize(("every", "wanted"), [(3, [3, 6]), (1, [1, 2, 3, 4, 5, 6]), (7, []), (100, [])])
def test_previews_come_every_so_many_steps_and_none_after_the_last(told: Told, every: int, wanted: list[int]) -> None:
    """What was learned in the end is seen in what the model paints."""
    after = node_progress.TrainingProgress(None, 7).watcher(every, grey)
    for step in range(1, 8):
        after(loop.Progress(step, [1.0] * step))
    assert [value - 1 for value, preview in told if preview is not None] == wanted


def test_the_loss_shown_is_the_mean_of_the_last_twenty(told: Told, lines: list[tuple[str, str]]) -> None:
    after = node_progress.TrainingProgress("9", 30).watcher(0, grey)
    after(loop.Progress(25, [100.0] * 5 + [1.0] * 10 + [2.0] * 10))
    assert lines == [("Step 25 of 30, loss 1.5000", "9")]


def test_without_a_server_or_a_node_nothing_is_sent(told: Told, lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    node_progress.TrainingProgress(None, 2).watcher(0, grey)(loop.Progress(1, [1.0]))
    sys.modules["server"].PromptServer.instance = None  # pyright: ignore[reportAttributeAccessIssue]
    node_progress.TrainingProgress("9", 2).watcher(0, grey)(loop.Progress(1, [1.0]))
    monkeypatch.delitem(sys.modules, "server")
    node_progress.TrainingProgress("9", 2).watcher(0, grey)(loop.Progress(1, [1.0]))
    assert lines == []
    assert len(told) == 3


def test_an_interrupt_is_taken_before_anything_is_shown(told: Told) -> None:
    shown = node_progress.TrainingProgress(None, 2)
    for ask in (lambda: shown.tell("Encoding crops", 1, 1), lambda: shown.watcher(1, grey)(loop.Progress(1, [1.0]))):
        comfy.model_management.interrupt_current_processing()
        with pytest.raises(InterruptProcessingException):
            ask()
    assert told == []


def test_an_interrupt_while_a_preview_is_painted_is_no_failed_preview(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    def cancel() -> Tensor:
        raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        node_progress.TrainingProgress(None, 2).watcher(1, cancel)(loop.Progress(1, [1.0]))
    assert "preview failed" not in caplog.text


def test_an_interrupt_is_passed_on_in_older_versions_too(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """There it is an ordinary exception."""

    class OlderError(Exception): ...

    def cancel() -> Tensor:
        raise OlderError

    monkeypatch.setattr(comfy.model_management, "InterruptProcessingException", OlderError)
    with pytest.raises(OlderError):
        node_progress.TrainingProgress(None, 2).watcher(1, cancel)(loop.Progress(1, [1.0]))
    with Learner(model, "frozen").loaded() as learner:
        painting = ready(learner, [conditioning(), conditioning()], Options(noun="ball"))
        monkeypatch.setattr(type(painting), "preview", lambda self: cancel())
        with pytest.raises(OlderError):
            painting.painted()


def test_a_preview_is_the_batchs_first_picture_in_its_own_colours(told: Told) -> None:
    image = torch.zeros(2, 2, 3, 3)
    image[0, 0, 0] = torch.tensor([-1.0, 0.5, 2.0])
    image[0, 1, 2] = torch.tensor([1.0, 0.0, 0.2])
    image[1] = 0.7
    node_progress.TrainingProgress(None, 2).watcher(1, lambda: image)(loop.Progress(1, [1.0]))
    kind, picture, largest = told[0][1]
    assert (kind, picture.size, picture.mode, largest) == ("JPEG", (3, 2), "RGB", 512)
    assert picture.getpixel((0, 0)) == (0, 128, 255)
    assert picture.getpixel((2, 1)) == (255, 0, 51)
