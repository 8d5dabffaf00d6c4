"""Several processes that learn as one."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.training.command import comfyui
from maskprompt.training.command.processes import Processes, UnreadyError
from maskprompt.training.command.work import Work
from maskprompt.training.data import folder
from maskprompt.training.dreamcom import examples as dreamcom
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine.job import Job
from maskprompt.training.engine.learner import Learner
from safetensors import safe_open

import train
from demo import tiny_model

from ...support.command import ROOT, Command, command, failure, pictures, random_numbers, signal_at

pytestmark = pytest.mark.thorough

__all__ = ["command", "failure", "pictures"]  # fixtures


def child(place: Path, number: int) -> list[int]:
    """One of two processes; the second is asked to end while it computes its second step. Then both give the same command again.

    Leaves its weights in `place`, the first process also those of `mean_gradient_steps`. The exit statuses.
    """
    line = json.loads((place / "line.json").read_text("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        run = Work.train

        def watched(self: Work, job: Job[Any], states: Any) -> Any:
            try:
                return run(self, job, states)
            finally:
                torch.save({name: value.detach() for name, value in job.parameters(0).items()}, place / f"{number}.pt")

        patch.setattr(Work, "train", watched)
        if number == 1:
            signal_at(1, signal.SIGTERM, patch)
        stopped = train.main(line)
    if number == 0:
        shutil.copy(place / "lora.state.pt", place / "kept.pt")
        torch.save(mean_gradient_steps(place / "pictures", 2, (0, 1), (0,), (1,)), place / "by-hand.pt")
    return [stopped, train.main(line)]


CHILD = """
import sys
from pathlib import Path
import tests.unit  # ComfyUI has a folder of that name too
from demo.pack import load_pack
load_pack()
from tests.unit.command.test_processes import child
print(child(Path(sys.argv[1]), int(sys.argv[2])))
"""


def test_two_processes_learn_as_one_with_the_mean_of_their_gradients(command: Command, tmp_path: Path) -> None:
    """Also: they stop together when one is asked to end, go on together, and only the first of them speaks and writes."""
    (tmp_path / "line.json").write_text(json.dumps(command()), "utf-8")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(number)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **world, "RANK": str(number), "LOCAL_RANK": str(number), "OMP_NUM_THREADS": "1"},
        )
        for number in range(2)
    ]  # fmt: skip
    said = [one.communicate(timeout=500) for one in started]
    assert all("[143, 0]" in out for out, _ in said), said
    for word, where in (("The training's state is kept", 1), ("loss", 1), ("Saved", 0), ("a photo of sks star", 0)):
        assert word in said[0][where]
        assert word not in said[1][where]
    one, two, kept = (torch.load(tmp_path / name, weights_only=True) for name in ("0.pt", "1.pt", "kept.pt"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert kept["step"] == 2
    assert all(torch.equal(value, kept["parameters"][name]) for name, value in one.items())
    # The mean over all weights: Adam's first steps go by signs, which rounding decides where a gradient is next to nothing.
    by_hand, first, second = (apart(one, other) for other in torch.load(tmp_path / "by-hand.pt", weights_only=True))
    assert by_hand < 0.01 * min(first, second)
    with safe_open(tmp_path / "lora.safetensors", "pt") as opened:
        assert {name: opened.metadata()[name] for name in ("steps", "processes")} == {"steps": "3", "processes": "2"}
    assert not (tmp_path / "lora.state.pt").exists()


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The mean distance of all weights."""
    return float(torch.cat([(value - two[name]).abs().flatten() for name, value in one.items()]).mean())


def mean_gradient_steps(pictures: Path, steps: int, *together: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    """The weights after AdamW on the mean gradient of the losses of processes that learn together, clipped to a norm of 1."""
    model, clip, vae = comfyui.load_checkpoint(str(tiny_model.CHECKPOINT))
    options = Options(noun="star", steps=3, rate=1e-3, rank=4, size=64)
    examples = dreamcom.encode(folder.load(pictures), vae, options)
    with torch.no_grad():
        text = clip.encode_from_tokens_scheduled(clip.tokenize(options.prompt))
    return [_steps(Learner(model, "lora", options.rank, options.seed), examples, text, options, steps, own) for own in together]


def _steps(learner: Learner, examples: Any, text: Any, options: Options, steps: int, processes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    with learner.loaded():
        loss = Loss(learner, examples, text, options)
        values = list(learner.parameters.values())
        optimizer = torch.optim.AdamW(values, 1e-3, weight_decay=1e-2)
        for step in range(steps):
            found = []
            for process in processes:
                optimizer.zero_grad()
                loss(step, random_numbers(options.seed, step, process)).backward()
                found.append([torch.zeros_like(value) if value.grad is None else value.grad.clone() for value in values])
            mean = [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]
            norm = float(sum(part.pow(2).sum() for part in mean)) ** 0.5
            for value, part in zip(values, mean, strict=True):
                value.grad = part / max(1.0, norm)
            optimizer.step()
        return {name: value.detach().clone() for name, value in learner.parameters.items()}


class Tripled(Processes):
    """Stands for other processes: every message comes back three times as large."""

    def __init__(self) -> None:
        super().__init__(cpu=True)
        self.messages: list[int] = []

    def _reduced(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "mean"
        self.messages.append(tensor.numel())
        return tensor * 3


@pytest.mark.parametrize(("bucket", "messages"), [(100, [14, 4]), (8, [8, 6, 4]), (1, [2, 6, 6, 4])])
def test_gradients_travel_in_few_messages_and_come_back_in_place(bucket: int, messages: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.command.processes.BUCKET", bucket)
    shapes = [(2,), (2, 3), (6, 1)]
    halves = [(2, 2)]
    given = [torch.randn(shape) for shape in shapes] + [torch.randn(shape).bfloat16() for shape in halves]
    gradients = [given[0].clone(), given[3].clone(), given[1].t().clone().t(), given[2].clone()]  # one is not contiguous
    processes = Tripled()
    processes.share(gradients)
    assert processes.messages == messages
    for number, gradient in zip((0, 3, 1, 2), gradients, strict=True):
        assert torch.equal(gradient, given[number] * 3)


def test_processes_train_only_when_all_can(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = importlib.import_module("accelerate.utils")
    for answers, said in (
        ([("a", ""), ("", "no mask"), ("", "no mask"), ("", "no GPU")], "^no mask\nno GPU$"),
        ([("4 weights from step 0", ""), ("4 weights from step 7", "")], "from step 0; 4 weights from step 7.*state file"),
        ([("a", ""), ("a", "")], None),
    ):
        processes = Processes(cpu=True)
        processes.state = object()
        monkeypatch.setattr(utils, "gather_object", lambda _, answers=answers: answers)
        if said is None:
            processes.ready("a")
        else:
            with pytest.raises(UnreadyError, match=said):
                processes.ready("a")
        monkeypatch.setattr(utils, "gather_object", lambda _: pytest.fail("asked again"))
        processes.ready("", "too late to be told to the others")


def test_many_processes_without_accelerate(command: Command, failure: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert "pip install accelerate" in failure(command())
