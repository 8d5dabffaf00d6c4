"""train.py, run in this process and in others."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.training.command import comfyui
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.engine import loop
from PIL import Image

import train
from demo import scenes, setup, tiny_model

ROOT = Path(train.__file__).parent
Command = Callable[..., list[str]]


def draw_pictures(place: Path) -> Path:
    """Two pictures of a striped star, the first with a mask beside it, the second cut out by its alpha channel."""
    place.mkdir()
    for number in range(2):
        thing = scenes.Thing("star", scenes.Paint("red", "white", "stripes"), 0.5, 0.5, 0.5)
        drawn = scenes.render(scenes.Scene((thing,), scenes.GROUNDS[number], number), 64)
        image = Image.fromarray(drawn.image)
        mask = Image.fromarray((drawn.masks[0] * 255).astype(np.uint8))
        if number:
            image.putalpha(mask)
        else:
            mask.save(place / "0.mask.png")
        image.save(place / f"{number}.png")
    return place


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures")


def arguments(folder_of: Path, out: Path, **changes: Any) -> list[str]:
    """A command line that trains for three steps; a change of None leaves an option out."""
    options: dict[str, Any] = {
        "comfyui": setup.comfyui_path(), "register": ROOT / "demo" / "registration", "checkpoint": tiny_model.CHECKPOINT,
        "pictures": folder_of, "noun": "star", "steps": 3, "size": 64, "rank": 4, "rate": 1e-3, "out": out,
    } | changes  # fmt: skip
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    return ["dreamcom", *(str(part) for name, value in given.items() for part in ([name] if value is True else [name, value]))]


@pytest.fixture
def command(pictures: Path, tmp_path: Path) -> Command:
    return lambda out="lora.safetensors", **changes: arguments(pictures, tmp_path / out, **changes)


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that has to fail; what it says."""

    def fail(line: list[str]) -> str:
        assert train.main(line) == 1
        return capsys.readouterr().err

    return fail


@pytest.fixture(scope="module")
def checkpoints() -> Callable[[str], tuple[Any, Any, Any]]:
    return functools.cache(comfyui.load_checkpoint)


@pytest.fixture
def read_once(checkpoints: Callable[[str], tuple[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is read once for several commands of a file."""
    monkeypatch.setattr(comfyui, "load_checkpoint", checkpoints)


def signal_at(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """This process gets a signal while it computes the loss of a step."""
    plain = Loss.__call__

    def call(self: Loss, at: int, generator: torch.Generator) -> torch.Tensor:
        if at == step:
            signal.raise_signal(number)
        return plain(self, at, generator)

    patch.setattr(Loss, "__call__", call)


random_numbers = loop.random_numbers
