"""`train.py`: a command line around the training loops; and references from a folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.training.command import comfyui
from maskprompt.training.engine import loop
from safetensors import safe_open
from safetensors.torch import load_file

import train
from demo import setup, tiny_model

from ...support.command import ROOT, Command, checkpoints, command, failure, pictures, random_numbers, read_once, signal_at

__all__ = ["checkpoints", "command", "failure", "pictures", "read_once"]  # fixtures
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("read_once")]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the tiny model."""
    comfyui.register(str(ROOT / "demo" / "registration"))
    return comfyui.load_checkpoint(str(tiny_model.CHECKPOINT))


def test_the_program_trains_a_lora_that_the_stock_loader_takes(
    command: Command, tmp_path: Path, tiny: tuple[Any, Any, Any], sample: Callable[..., torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """As a user starts it: from any folder, with ComfyUI's place in the environment, into a folder that is not there yet."""
    import comfy.sd
    import comfy.utils

    line = command("new/place/lora.safetensors", comfyui=None, preview=tmp_path / "seen", batch=2)
    environment = {**os.environ, "COMFYUI_PATH": str(setup.comfyui_path())}
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a photo of sks star" in done.stdout
    assert re.search(r"3/3.*loss 0\.\d+, rate 0\.001", done.stderr)
    file = tmp_path / "new" / "place" / "lora.safetensors"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"step-000003.png"}
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    wanted = {
        "format": "maskprompt-dreamcom-1", "method": "lora", "base": "tiny-sd-inpaint.safetensors", "token": "sks", "noun": "star",
        "steps": "3", "rate": "0.001", "rank": "4", "seed": "0", "prompt": "a photo of sks star", "batch": "2",
    }  # fmt: skip
    assert {name: about.get(name) for name in wanted} == wanted
    model, clip, _ = tiny
    lora: Any = comfy.utils.load_torch_file(str(file), safe_load=True)
    loaded: Any = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    tuned = loaded[0]
    assert "not loaded" not in caplog.text
    assert len(tuned.patches) == sum(name.endswith(".alpha") for name in lora) > 100
    before = sample(model)
    after = sample(tuned)
    assert bool(torch.isfinite(after).all())
    assert float((before - after).abs().max()) > 1e-3


def test_ctrl_c_keeps_the_state_and_the_same_command_ends_as_if_there_had_been_none(
    command: Command,
    failure: Callable[[list[str]], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And another command does not throw it away."""
    assert train.main(command("whole.safetensors", average=0.9)) == 0
    broken = command("broken.safetensors", average=0.9)
    state = tmp_path / "broken.state.pt"
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    try:
        with monkeypatch.context() as patch:
            signal_at(1, signal.SIGINT, patch)
            assert train.main(broken) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert str(state) in capsys.readouterr().err
    assert torch.load(state, weights_only=True)["step"] == 2
    assert not (tmp_path / "broken.safetensors").exists()
    kept = state.read_bytes()
    assert re.search("of another training.*--state.*--overwrite", failure([*broken, "--seed", "1"]))
    assert re.search("has 2 steps done already, more than --steps 1", failure([*broken, "--steps", "1"]))
    assert state.read_bytes() == kept
    with monkeypatch.context() as patch:
        patch.setattr(loop, "random_numbers", lambda seed, step, process=0: _only_from(2, seed, step))
        assert train.main(broken) == 0
    whole = load_file(tmp_path / "whole.safetensors")
    resumed = load_file(tmp_path / "broken.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not state.exists()


def _only_from(first: int, seed: int, step: int) -> torch.Generator:
    assert step >= first, "a step was trained twice"
    return random_numbers(seed, step)


def test_all_weights_leave_as_a_difference_and_a_signal_in_the_last_step_does_not_lose_them(
    command: Command, tmp_path: Path, tiny: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.sd
    import comfy.utils

    signal_at(0, signal.SIGTERM, monkeypatch)
    assert train.main(command(method="full", steps=1, rate=1e-4, no_checkpointing=True, no_masked_attention=True)) == 0
    model, clip, _ = tiny
    file: Any = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
    tuned: Any = comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)[0]
    assert len(tuned.patches) == len(model.model.diffusion_model.state_dict())
