"""`train.py meca`: a folder of pictures with captions to a file that Load Image Prompt Adapter takes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.models.ip_adapter import file as meca_file
from maskprompt.training.command import program
from maskprompt.training.engine import loop
from maskprompt.training.engine.job import Job
from maskprompt.training.meca.job import Meca
from maskprompt.training.meca.options import Options
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train
from demo import setup, tiny_model, vision

from ...support.command import checkpoints, read_once
from ...support.meca_samples import draw

__all__ = ["checkpoints", "read_once"]  # fixtures
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("read_once")]

ROOT = Path(train.__file__).parent


def arguments(place: Path, out: Path, **changes: Any) -> list[str]:
    """A command line that trains for three steps; a change of None leaves an option out."""
    options: dict[str, Any] = {
        "comfyui": setup.comfyui_path(), "register": ROOT / "demo" / "registration", "checkpoint": tiny_model.CHECKPOINT,
        "clip_vision": vision.FILE, "pictures": place, "steps": 3, "size": 64, "batch": 2, "rate": 1e-3, "tokens": 4, "out": out,
    } | changes  # fmt: skip
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    return ["meca", *(str(part) for name, value in given.items() for part in ([name] if value is True else [name, value]))]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    place = draw(tmp_path / "pictures")
    return lambda out="meca.safetensors", **changes: arguments(place, tmp_path / out, **changes)


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that has to fail; what it says."""

    def fail(line: list[str]) -> str:
        assert train.main(line) == 1
        return capsys.readouterr().err

    return fail


def signal_at(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """This process gets a signal while it computes the loss of a step."""
    plain = Meca.loss

    def call(self: Meca, at: int, generator: torch.Generator) -> torch.Tensor:
        if at == step:
            signal.raise_signal(number)
        return plain(self, at, generator)

    patch.setattr(Meca, "loss", call)


def test_interrupted_and_given_again_the_command_ends_as_if_nothing_had_been(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[[list[str]], str]
) -> None:
    """With previews; across the border of two chunks. The file is one that Load Image Prompt Adapter takes, and says what it is."""
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)
    monkeypatch.setattr("maskprompt.training.meca.options.CHUNK", 4)
    assert train.main(command("new/whole.safetensors", preview=tmp_path / "seen", preview_every=2)) == 0
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"step-000002.png", "step-000003.png"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["whole.safetensors"]
    broken = command("broken.safetensors")
    state = tmp_path / "broken.state.pt"
    with monkeypatch.context() as patch:
        signal_at(1, signal.SIGTERM, patch)
        assert train.main(broken) == 128 + signal.SIGTERM
    assert torch.load(state, weights_only=True)["step"] == 2
    assert re.search("of another training.*--state.*--overwrite", failure([*broken, "--seed", "1"]))
    (tmp_path / "pictures" / "1.txt").write_text("another caption", "utf-8")
    assert "of another training" in failure(broken)
    draw(tmp_path / "pictures")
    assert train.main(broken) == 0
    whole = load_file(tmp_path / "new" / "whole.safetensors")
    resumed = load_file(tmp_path / "broken.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not state.exists()

    loaded = meca_adapter.load(str(tmp_path / "broken.safetensors"))
    assert loaded.about == meca_file.About("region", meca_file.ZEROS, 3, tiny_model.CHECKPOINT.name)
    assert (loaded.features, loaded.context) == (vision.WIDTH, 128)
    with safe_open(tmp_path / "broken.safetensors", "pt") as opened:
        about = opened.metadata()
    told = {"steps": "3", "batch": "2", "rate": "0.001", "masked": "0.5", "processes": "1", "clip_vision": vision.FILE.name, "tokens": "4"}
    assert {name: about.get(name) for name in told} == told


def child(line: list[str], place: Path, number: int) -> int:
    """One of two processes; leaves its weights in `place`, and the numbers of its samples."""
    from maskprompt.training.command.work import Work
    from maskprompt.training.meca.examples import Source

    run = Work.train
    made = Source.__call__

    def watched(self: Work, training: Job[Any], *rest: Any) -> tuple[loop.Progress, Any]:
        done, learned = run(self, training, *rest)
        torch.save({name: value.detach() for name, value in training.parameters(0).items()}, place / f"{number}.pt")
        return done, learned

    def noted(self: Any, chunk: int) -> Any:
        found = made(self, chunk)
        torch.save(found.latents, place / f"samples-{number}.pt")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "train", watched)
        patch.setattr(Source, "__call__", noted)
        return train.main(line)


CHILD = """
import json, sys
from pathlib import Path
import tests.unit  # ComfyUI has a folder of that name too
from demo.pack import load_pack
load_pack()
from tests.unit.command.test_meca import child
sys.exit(child(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
"""


def test_two_processes_learn_the_same_from_different_samples(command: Callable[..., list[str]], tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(command(steps=2)), str(tmp_path), str(number)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **world, "RANK": str(number), "LOCAL_RANK": str(number), "OMP_NUM_THREADS": "1"},
        )
        for number in range(2)
    ]  # fmt: skip
    said = [one.communicate(timeout=500) for one in started]
    assert [one.returncode for one in started] == [0, 0], said
    assert "Saved" in said[0][0]
    assert "Saved" not in said[1][0]
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    samples = [torch.load(tmp_path / f"samples-{number}.pt", weights_only=True) for number in range(2)]
    assert samples[0].shape == samples[1].shape
    assert not torch.equal(*samples)
    with safe_open(tmp_path / "meca.safetensors", "pt") as opened:
        assert opened.metadata()["processes"] == "2"


def test_defaults_are_the_trainings_own() -> None:
    given = program.parser().parse_args(["meca", "--checkpoint", "a", "--pictures", "b/my cats", "--clip-vision", "c"])
    usual = Options()
    assert {field.name: getattr(given, field.name) for field in fields(usual)} == {
        field.name: getattr(usual, field.name) for field in fields(usual)
    }
    assert (given.folder, given.title(given)) == ("ipadapter", "meca-my_cats")


def test_every_option_is_taken() -> None:
    line = (
        "--random-crop --flip --text-only 0.1 --masked 1 --blank 0 --text-dropout 0.2 --threshold 0.3 --mode query --weight-decay 0 "
        "--average 0.5 --no-checkpointing --seed 4"
    )
    given = program.parser().parse_args(["meca", "--checkpoint", "a", "--pictures", "b", "--clip-vision", "c", *line.split()])
    assert Options(**{field.name: getattr(given, field.name) for field in fields(Options)}) == Options(
        random_crop=True, flip=True, text_only=0.1, masked=1.0, blank=0.0, text_dropout=0.2, threshold=0.3, mode="query",
        weight_decay=0.0, average=0.5, checkpointing=False, seed=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"), [("--masked", "1.5"), ("--text-only", "-1"), ("--mode", "half"), ("--tokens", "0"), ("--size", "63")]
)
def test_numbers_out_of_range_are_refused(
    option: str, value: str, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        train.main([*command(), option, value])
    assert left.value.code == 2
    assert option in capsys.readouterr().err


def test_what_is_no_use_is_said(command: Callable[..., list[str]], failure: Callable[[list[str]], str], tmp_path: Path) -> None:
    assert re.search("no folder .*nowhere: put the pictures to learn from", failure(command(pictures=tmp_path / "nowhere")))
    assert re.search("no CLIP vision model nothing.*clip_vision", failure(command(clip_vision="nothing.safetensors")))
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    assert "is no CLIP vision model" in failure(command(clip_vision=file))
    file.write_bytes(vision.FILE.read_bytes()[:5000])
    assert "cannot load the CLIP vision model" in failure(command(clip_vision=file))
    (tmp_path / "pictures" / "2.txt").unlink()
    assert re.search(r"2\.png has no caption", failure(command()))
