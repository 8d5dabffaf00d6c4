"""Trainings in a running ComfyUI: interrupted, and gone on with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo.server import Prompt, Result, Server, WorkflowError

from .graphs import Interrupt

PREVIEW = 1
TEXT = 3
"""ComfyUI's numbers of its binary messages (`protocol.BinaryEventTypes`)."""


class Shown:
    """What nodes show while they work: lines of text, and previews as JPEG files."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.previews: list[bytes] = []

    def __call__(self, message: bytes) -> None:
        kind = int.from_bytes(message[:4], "big")
        body = message[4:]
        if kind == TEXT:
            self.lines.append(body[4 + int.from_bytes(body[:4], "big") :].decode())
        elif kind == PREVIEW:
            self.previews.append(body[4:])

    @property
    def steps(self) -> list[int]:
        """The numbers of the training steps that were told."""
        return [int(found[1]) for line in self.lines if (found := re.match(r"Step (\d+) of \d+, loss \d", line))]


@pytest.fixture
def states(server: Server) -> Iterator[Path]:
    """The folder of training states; no training of this file leaves one that did not come to its end."""
    folder = server.output / "maskprompt" / "training"
    yield folder
    assert unfinished(folder) == []


def unfinished(folder: Path, method: str = "") -> list[Path]:
    """States of trainings that can go on. Those that came to their end stay, for the same Run."""
    return [file for file in folder.glob(f"{method}*") if not torch.load(file, weights_only=True)["finished"]]


def latent(server: Server, result: Result) -> torch.Tensor:
    (saved,) = result.outputs["latent"]["latents"]
    return load_file(server.file_of(saved))["latent_tensor"]


def interrupt_and_go_on(server: Server, graph: Prompt, train: str, state: str) -> None:
    """Interrupts a training in its midst and runs it again: it goes on from what was kept, and comes to its end."""
    (steps,) = (entry["inputs"]["steps"] for entry in graph.values() if entry["class_type"] == train)
    with pytest.raises(WorkflowError, match=rf"interrupted at node train \({train}\)"):
        server.run(graph, Interrupt(server, train, 10))
    states = server.output / "maskprompt" / "training"
    (kept,) = unfinished(states, f"{state}-")
    assert kept.suffix == ".pt"
    shown = Shown()
    server.run(graph, on_bytes=shown)
    *_, done = re.findall(r"goes on from step (\d+)", server.log_tail(80))
    assert shown.steps[0] == int(done) + 1 > 5
    assert shown.steps[-1] == steps
    assert unfinished(states, f"{state}-") == []
