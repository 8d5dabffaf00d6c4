"""What a training tells: the time left, the disk it takes, what is doubtful, and what an interrupt leaves."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from maskprompt.nodes import progress
from maskprompt.training.engine import checkpoint, loop

Lines = list[str]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What was sent through ComfyUI's server to node 7."""
    found: Lines = []
    server: Any = types.ModuleType("server")

    def send(text: str, node: str) -> None:
        assert node == "7"
        found.append(text)

    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(send_progress_text=send, client_id=None, send_sync=print))
    monkeypatch.setitem(sys.modules, "server", server)
    return found


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 minute"),
        (89, "1 minute"),
        (91, "2 minutes"),
        (3599, "1 hour"),
        (3700, "1 hour 2 minutes"),
        (10740, "2 hours 59 minutes"),
    ],
)
def test_times_are_told_in_words(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_the_time_left_follows_the_steps_of_this_run() -> None:
    """From step 18 on, as after an interrupt: 10 seconds a step, 300 steps to go."""
    times = iter([1000.0, 1010.0, 1100.0, 3990.0])
    clock = progress.Clock(320, lambda: next(times))
    assert clock.left(19) == ""
    assert clock.left(20) == ", about 50 minutes left"
    assert clock.left(29) == ", about 48 minutes left"
    assert clock.left(318) == ""


def test_room_on_the_disk_is_told() -> None:
    assert checkpoint.room(2_400_000, 10**12) == "While it trains, its state takes up to 2 MB of disk; 1000.0 GB are free."
    assert "up to 3.4 GB of disk." in checkpoint.room(3_440_000_000, None)
    assert "but 1.0 GB are free: an interrupt may lose what was learned" in checkpoint.room(2 * 10**9, 10**9)


class Job:
    """A training whose step 18 is interrupted."""

    method = "job"
    doubts = ("The mask of picture 2 touches all four borders of it.",)
    disk = 5_000_000
    painted = staticmethod(lambda: torch.zeros(1, 8, 8, 3))

    def __init__(self, path: Path, kept: int) -> None:
        self.states = (checkpoint.StateFile(path, "this"),)
        torch.save({"step": kept, "fingerprint": "this"}, path)

    def state_files(self, folder: Any) -> tuple[checkpoint.StateFile, ...]:
        return self.states


WHOLE = "Stopped at step 18 of 60."
UNWRITTEN = f"{WHOLE} Its state was not written, as the log says: the next Run"


@pytest.mark.parametrize(
    ("resume", "reached", "kept", "words"),
    [
        (True, 18, 18, f"{WHOLE} Nothing is lost: Run goes on from there."),
        (False, 18, 18, f"{WHOLE} With resume off the next Run begins again; on, it goes on from there."),
        (True, 18, 12, f"{UNWRITTEN} goes on from step 12."),
        (True, 18, 0, f"{UNWRITTEN} begins again."),
        (False, 18, 12, f"{UNWRITTEN} begins again."),
        (True, 0, 18, f"{WHOLE} Nothing is lost: Run goes on from there."),
        (True, 0, 0, "Stopped before the first step."),
        (False, 0, 18, "Stopped before the first step."),
        (True, 0, 61, "Stopped before the first step."),
    ],
)
def test_an_interrupt_says_what_is_kept(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resume: bool, reached: int, kept: int, words: str
) -> None:
    def run(job: Job, states: Any, on_step: Any) -> None:
        for step in range(1, reached + 1):
            on_step(loop.Progress(step, [1.0] * step))
        raise InterruptProcessingException

    monkeypatch.setattr("maskprompt.training.engine.job.run", run)
    monkeypatch.setattr("maskprompt.training.engine.checkpoint.discard", lambda states: None)
    with pytest.raises(InterruptProcessingException):
        progress.train(Job(tmp_path / "job.pt", kept), progress.TrainingProgress("7", 60), 0, resume)  # pyright: ignore[reportArgumentType]
    said, *notes = lines[-1].split("\n")
    assert said == words
    assert notes[0] == Job.doubts[0]
    assert notes[1].startswith("While it trains, its state takes up to 5 MB of disk")
    assert all(Job.doubts[0] in line for line in lines)
