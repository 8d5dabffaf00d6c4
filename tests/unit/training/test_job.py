"""What a training leaves: states that give a finished training's result at once, and that are no harm when they are broken."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from maskprompt.nodes import progress as node_progress
from maskprompt.training.dreamcom import loss as dreamcom
from maskprompt.training.dreamcom.job import DreamCom, ready
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import checkpoint
from maskprompt.training.engine.learner import Learner
from torch import Tensor

from demo.painter import Painter

from ...support.dreamcom import kept_states, run_node
from ...support.learners import conditioning, unet_of


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """For its text encoder and VAE."""
    return Painter()


@pytest.fixture(scope="module")
def model() -> Any:
    """Nine channels, random weights."""
    return unet_of(32, small=True)


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def job_of(model: Any, fingerprint: str, **options: Any) -> DreamCom:
    return ready(Learner(model, "lora", 1), [conditioning(), conditioning()], Options(**{"noun": "ball", **options}), fingerprint)


def test_each_training_has_a_state_of_its_own_in_the_output_folder(model: Any, output: Path) -> None:
    one, two, other, again = (job_of(model, name) for name in ("one", "two", "one", "one"))
    monkey: Any = other
    monkey.method = "other"
    files = [found.state_files(node_progress.state_folder())[0].path for found in (one, two, other)]
    assert len(set(files)) == 3
    assert {file.parent for file in files} == {output / "maskprompt" / "training"}
    assert again.state_files(node_progress.state_folder())[0].path == files[0]


def test_a_discarded_state_is_taken_away_and_no_other(model: Any, output: Path) -> None:
    own, other = (job_of(model, name).state_files(output) for name in ("own", "other"))
    for state in (*own, *other):
        state.path.write_bytes(b"kept")
    checkpoint.discard(own)
    assert not own[0].path.exists()
    assert other[0].path.is_file()


def test_a_finished_training_gives_its_result_at_once(model: Any, tiny: Painter, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node after it that fails, or a kill before its saving, must not cost the training. More steps go on from there."""
    train = partial(run_node, tiny, model=model, learning_rate=1e-3, seed=4, average=0.9)
    _, wanted, losses, _, _ = train(steps=3)
    (kept,) = kept_states(output)
    computed: list[int] = []
    loss = dreamcom.Loss.__call__

    def counted(self: dreamcom.Loss, step: int, generator: torch.Generator) -> Tensor:
        computed.append(step)
        return loss(self, step, generator)

    with monkeypatch.context() as patch:
        patch.setattr(dreamcom.Loss, "__call__", counted)
        patch.setattr(tiny.vae, "encode", lambda images: pytest.fail("no crop is needed"))
        _, found, again, steps, _ = train(steps=3)
    assert (computed, steps, again) == ([], 3, losses)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    monkeypatch.setattr(dreamcom.Loss, "__call__", counted)
    train(steps=4)
    assert computed == [3]
    assert kept_states(output) == [kept]
    _, found, _, steps, _ = train(steps=3)  # fewer than are done: another training, which the longer one does not hinder
    assert steps == 3
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    train(steps=3, resume=False)
    assert computed == [3, 0, 1, 2, 0, 1, 2]


def test_old_finished_states_go_when_they_take_much_room_and_interrupted_ones_never(
    model: Any, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = job_of(model, "own").state_files(output)
    sizes = {}
    for age, (name, finished) in enumerate([("own", True), ("last", True), ("stopped", False), ("old", True), ("oldest", True)]):
        path = job_of(model, name).state_files(output)[0].path
        torch.save({"fingerprint": name, "finished": finished, "step": 1, "more": torch.zeros(1000)}, path)
        os.utime(path, (1e9 - age, 1e9 - age))
        sizes[name] = path
    broken = output / "dreamcom-broken.pt"
    broken.write_bytes(b"no state")
    monkeypatch.setattr(checkpoint, "ROOM", 1.5 * sizes["last"].stat().st_size)
    checkpoint.prune(own, "dreamcom")
    assert {name for name, path in sizes.items() if path.exists()} == {"own", "last", "stopped"}
    assert broken.exists()


def of_another_optimizer(kept: dict[str, Any]) -> None:
    kept["optimizer"] = {number: {"step": one["step"], "momentum_buffer": one["exp_avg"]} for number, one in kept["optimizer"].items()}


def with_other_shapes(kept: dict[str, Any]) -> None:
    kept["optimizer"][0]["exp_avg"] = torch.zeros(3)


def with_no_numbers(kept: dict[str, Any]) -> None:
    kept["optimizer"][0]["exp_avg_sq"].fill_(torch.nan)


def without_it(kept: dict[str, Any]) -> None:
    kept["optimizer"] = {}


def with_broken_weights(kept: dict[str, Any]) -> None:
    next(iter(kept["parameters"].values())).fill_(torch.inf)


@pytest.mark.parametrize("spoil", [of_another_optimizer, with_other_shapes, with_no_numbers, without_it, with_broken_weights])
def test_a_state_of_this_training_with_a_broken_optimizer_is_a_fresh_start(
    model: Any, tiny: Painter, output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spoil: Callable[..., None]
) -> None:
    """It failed in the first step with an error of PyTorch's, and again in every Run."""
    train = partial(run_node, tiny, model=model, learning_rate=1e-3, steps=3)
    _, wanted, _, _, _ = train()
    (kept,) = kept_states(output)
    for finished in (True, False):
        content = torch.load(kept)
        spoil(content)
        torch.save({**content, "step": 3 if finished else 2}, kept)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            _, lora, _, steps, _ = train()
        assert steps == 3
        assert "cannot be used: it" in caplog.text
        assert all(torch.equal(lora[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize("name", ["learning_rate", "average", "box_margin"])
def test_a_setting_that_is_no_number_is_refused(model: Any, tiny: Painter, name: str, value: float) -> None:
    """JSON knows NaN, and ComfyUI's own limits let it pass."""
    with pytest.raises(ValueError, match=rf"Train a Subject: {name} is {value}. A number from 0 to"):
        run_node(tiny, model=model, **{name: value})
