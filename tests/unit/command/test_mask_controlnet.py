"""`train.py mask-controlnet`: a folder of pictures, annotated on the way, to a file that Load Mask-ControlNet takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models.mask_controlnet import control as models
from maskprompt.training.command import comfyui, program
from maskprompt.training.command import mask_controlnet as COMMAND
from maskprompt.training.command.work import Work
from maskprompt.training.data import object_folder
from maskprompt.training.engine import loop
from maskprompt.training.engine.job import Job
from maskprompt.training.mask_controlnet import loss as mask_controlnet
from maskprompt.training.mask_controlnet.options import Options
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import train
from demo import setup, tiny_model

from ...support.blip import tiny_blip
from ...support.objects import Sam, Writer, box, draw

pytestmark = pytest.mark.thorough

ROOT = Path(train.__file__).parent
Command = Callable[..., list[str]]


def arguments(place: Path, out: Path, **changes: Any) -> list[str]:
    """A command line that trains for three steps; a change of None leaves an option out."""
    options: dict[str, Any] = {
        "comfyui": setup.comfyui_path(), "register": ROOT / "demo" / "registration", "checkpoint": tiny_model.CHECKPOINT,
        "pictures": place, "steps": 3, "size": 64, "batch": 1, "rate": 1e-3, "out": out,
    } | changes  # fmt: skip
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    return ["mask-controlnet", *(str(part) for name, value in given.items() for part in ([name] if value is True else [name, value]))]


def annotate(place: Path) -> Path:
    """Masks and captions as by hand: one object in "a", two in "b"."""
    for name, masks in (("a", 1), ("b", 2)):
        (place / f"{name}.txt").write_text(f"picture {name}", "utf-8")
        for number in range(1, masks + 1):
            mask = Image.fromarray(box(8, 8 * number, 24, 24).byte().mul(255).numpy())
            mask.save(place / f"{name}.mask{'' if number == 1 else f'-{number}'}.png")
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return annotate(draw(tmp_path / "pictures", "ab"))


@pytest.fixture
def command(place: Path, tmp_path: Path) -> Command:
    return lambda out="control.safetensors", **changes: arguments(place, tmp_path / out, **changes)


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that has to fail; what it says."""

    def fail(line: list[str]) -> str:
        assert train.main(line) == 1
        return capsys.readouterr().err

    return fail


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, Any]:
    comfyui.register(str(ROOT / "demo" / "registration"))
    return comfyui.load_checkpoint(str(tiny_model.CHECKPOINT))


@pytest.fixture
def loaded(tiny: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is read once for several commands."""
    monkeypatch.setattr(Work, "checkpoint", lambda _: tiny)


class Blip:
    """Stands for a loaded BLIP; `captions` is what is asked about it."""

    def __init__(self) -> None:
        self.write = Writer()

    @staticmethod
    def captions(model: Blip, images: Sequence[Tensor]) -> list[str]:
        return model.write(images)


def stand_ins(patch: pytest.MonkeyPatch) -> tuple[Sam, Blip]:
    """In the place of SAM and BLIP."""
    sam = Sam()
    blip = Blip()
    patch.setattr(COMMAND, "load_sam", lambda name: sam)
    patch.setattr(COMMAND, "load_blip", lambda name: blip)
    patch.setattr(COMMAND, "captions", Blip.captions)
    return sam, blip


def signal_at(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """This process gets a signal while it computes the loss of a step."""
    plain = mask_controlnet.Loss.__call__

    def call(self: mask_controlnet.Loss, at: int, generator: torch.Generator) -> Tensor:
        if at == step:
            signal.raise_signal(number)
        return plain(self, at, generator)

    patch.setattr(mask_controlnet.Loss, "__call__", call)


def same(one: Path, two: Path) -> bool:
    weights = load_file(one)
    others = load_file(two)
    return weights.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in weights.items())


def test_interrupted_or_killed_and_given_again_the_command_ends_as_if_nothing_had_been(
    command: Command, tmp_path: Path, place: Path, loaded: None, monkeypatch: pytest.MonkeyPatch, failure: Callable[[list[str]], str]
) -> None:
    """With previews; across the border of two readings. The file is one that Load Mask-ControlNet takes, and says what it is."""
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)
    monkeypatch.setattr("maskprompt.training.mask_controlnet.job.AHEAD", 2)
    write = loop.StateFile.write

    def kept(self: loop.StateFile, learning: Any, finished: bool) -> None:
        write(self, learning, finished)
        if learning.step == 2:
            shutil.copy(self.path, tmp_path / "killed.state.pt")

    with monkeypatch.context() as patch:
        patch.setattr(loop.StateFile, "write", kept)
        assert train.main(command("new/whole.safetensors", preview=tmp_path / "seen", preview_every=2, save_every=1, average=0.9)) == 0
    whole = tmp_path / "new" / "whole.safetensors"
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"step-000002.png", "step-000003.png"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == [whole.name]

    broken = command("broken.safetensors", average=0.9)
    state = tmp_path / "broken.state.pt"
    with monkeypatch.context() as patch:
        signal_at(1, signal.SIGTERM, patch)
        assert train.main(broken) == 128 + signal.SIGTERM
    assert torch.load(state, weights_only=True)["step"] == 2
    assert re.search("of another training.*--state.*--overwrite", failure([*broken, "--seed", "1"]))
    (place / "b.mask-2.png").rename(tmp_path / "kept.png")
    assert "of another training" in failure(broken)
    (tmp_path / "kept.png").rename(place / "b.mask-2.png")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "random_numbers", lambda seed, step, process=0: _only_from(2, seed, step, process))
        assert train.main(broken) == 0
        assert train.main(command("killed.safetensors", average=0.9)) == 0
    assert same(whole, tmp_path / "broken.safetensors")
    assert same(whole, tmp_path / "killed.safetensors")
    assert not state.exists()

    control, adapter = models.load(str(whole))
    assert control.about.masked
    assert adapter.masked
    assert any(bool(value.any()) for name, value in control.network.named_parameters() if name.startswith("zero_convs."))
    with safe_open(whole, "pt") as opened:
        about = opened.metadata()
    told = {
        "format": "maskprompt-mask-controlnet", "masked": "true", "steps": "3", "batch": "1", "accumulate": "1", "rate": "0.001",
        "size": "64", "text_dropout": "0.1", "seed": "0", "average": "0.9", "weight_decay": "0.01", "processes": "1", "pictures": "2",
        "trained_on": tiny_model.CHECKPOINT.name,
    }  # fmt: skip
    assert {name: about.get(name) for name in told} == told


random_numbers = loop.random_numbers


def _only_from(first: int, seed: int, step: int, process: int) -> torch.Generator:
    # Texts are read for the steps ahead, which begin before the step at which the training goes on.
    return random_numbers(seed, step, process) if step >= first else pytest.fail("a step was trained twice")


def test_the_program_annotates_and_trains_as_a_user_starts_it(tmp_path: Path, place: Path) -> None:
    """From any folder, with ComfyUI's place in the environment; ComfyUI is not on the path when the program reads its options."""
    line = arguments(place, tmp_path / "new" / "control.safetensors", comfyui=None, steps=1, no_mask_prompt=True, no_checkpointing=True)
    environment = {**os.environ, "COMFYUI_PATH": str(setup.comfyui_path())}
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1/1.*loss \d\.\d+, rate 0\.001", done.stderr)
    control, adapter = models.load(str(tmp_path / "new" / "control.safetensors"))
    assert not control.about.masked
    assert not adapter.masked


def child(lines: Sequence[list[str]], place: Path) -> list[int]:
    """One of several processes, which gives these commands one after the other; leaves its losses, its weights, its exit statuses and how
    often it asked SAM and BLIP in `place`. The exit statuses."""
    run = Work.train
    number = os.environ.get("RANK", "alone")

    def watched(self: Work, training: Job[Any], *rest: Any) -> tuple[loop.Progress, Any]:
        done, learned = run(self, training, *rest)
        weights = {name: value.detach() for name, value in training.parameters(0).items()}
        torch.save({"losses": done.losses, "weights": weights}, place / f"{number}.pt")
        return done, learned

    with pytest.MonkeyPatch.context() as patch:
        sam, blip = stand_ins(patch)
        patch.setattr(Work, "train", watched)
        found = [train.main(line) for line in lines]
        (place / f"told-{number}.json").write_text(json.dumps([found, len(sam.asked), blip.write.groups]), "utf-8")
        return found


CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tests.unit  # ComfyUI has a folder of that name too
from demo.pack import load_pack
load_pack()
from tests.unit.command.test_mask_controlnet import child
child(json.loads(sys.argv[2]), Path(sys.argv[3]))
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_processes_learn_as_one_that_accumulates(tmp_path: Path, loaded: None) -> None:
    """Under `accelerate launch`, on the CPU. The first process annotates; the other waits, and is given what it made. What goes wrong
    meanwhile is told to the one that waits."""
    place = draw(tmp_path / "pictures", "abx")
    (tmp_path / "child.py").write_text(CHILD, "utf-8")
    line = arguments(place, tmp_path / "two.safetensors", sam="any", cpu=True)
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, "--main_process_port", str(free_port()),
         str(tmp_path / "child.py"), str(ROOT), json.dumps([line, [*line, "--blip", "any"]]), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("3 pictures (a.png, b.png, x.png): there is no caption") == 1
    assert done.stdout.count("Saved") == 1
    assert "No object was found in 1 picture (x.png)" in done.stderr
    assert json.loads((tmp_path / "told-0.json").read_text("utf-8")) == [[1, 0], 3 * 64, [2]]
    assert json.loads((tmp_path / "told-1.json").read_text("utf-8")) == [[1, 0], 0, []]
    assert sorted(path.name for path in (place / object_folder.CACHE).glob("*.txt")) == ["a.txt", "b.txt"]

    assert child([arguments(place, tmp_path / "one.safetensors", accumulate=2)], tmp_path) == [0]
    assert json.loads((tmp_path / "told-alone.json").read_text("utf-8")) == [[0], 0, []]
    first, second, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0", "1", "alone"))
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert len(alone["losses"]) == 3
    far = max(float((value - alone["weights"][name]).abs().max()) for name, value in first["weights"].items())
    print(f"losses: two processes {first['losses']}, one {alone['losses']}; weights differ by {far:.1e} at most")
    assert child([arguments(place, tmp_path / "half.safetensors", steps=1)], tmp_path) == [0]
    half = torch.load(tmp_path / "alone.pt", weights_only=True)
    assert abs(half["losses"][0] - alone["losses"][0]) > 1e-3, "the second part of a step is like the first"
    with safe_open(tmp_path / "two.safetensors", "pt") as opened:
        assert opened.metadata()["processes"] == "2"


def test_an_interrupt_while_pictures_are_annotated(
    command: Command, place: Path, loaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for file in place.glob("*.mask*.png"):
        file.unlink()
    sam, blip = stand_ins(monkeypatch)
    cache = tmp_path / "kept here"
    ask = Sam.ask

    def interrupted(self: Sam, *given: Any) -> Any:
        if len(self.asked) == 10:
            signal.raise_signal(signal.SIGTERM)
        return ask(self, *given)

    line = command(sam="any", cache=cache, steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(Sam, "ask", interrupted)
        assert train.main(line) == 128 + signal.SIGTERM
    assert sorted(path.name for path in cache.iterdir()) == ["a.mask.png", "pictures.json"]
    assert f"are kept in {cache}; the same command goes on" in caplog.text
    assert train.main(line) == 0
    assert len(sam.asked) == 2 * 64
    assert blip.write.groups == [], "the captions are there"
    assert not (place / object_folder.CACHE).exists()


def test_defaults_are_the_trainings_own() -> None:
    given = program.parser().parse_args(["mask-controlnet", "--checkpoint", "a", "--pictures", "b/my cats"])
    usual = Options()
    assert {field.name: getattr(given, field.name) for field in fields(usual)} == {
        field.name: getattr(usual, field.name) for field in fields(usual)
    }
    assert (given.folder, given.title(given)) == ("controlnet", "mask-controlnet-my_cats")
    assert (given.sam, given.blip, given.cache, given.skip_broken) == (None, None, None, False)


def test_every_option_is_taken() -> None:
    line = (
        "--accumulate 4 --rate 2e-5 --weight-decay 0 --text-dropout 0.5 --no-mask-prompt --average 0.5 --no-checkpointing --seed 4 "
        "--steps 7 --batch 2 --size 128"
    )
    given = program.parser().parse_args(["mask-controlnet", "--checkpoint", "a", "--pictures", "b", *line.split()])
    assert Options(**{field.name: getattr(given, field.name) for field in fields(Options)}) == Options(
        steps=7, rate=2e-5, weight_decay=0.0, batch=2, accumulate=4, size=128, masked=False, text_dropout=0.5, seed=4, average=0.5,
        checkpointing=False,
    )  # fmt: skip


@pytest.mark.parametrize(("option", "value"), [("--text-dropout", "1.5"), ("--accumulate", "0"), ("--rate", "-1"), ("--size", "63")])
def test_numbers_out_of_range_are_refused(option: str, value: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.main([*command(), option, value])
    assert left.value.code == 2
    assert option in capsys.readouterr().err


def test_broken_pictures_are_refused_up_front_or_left_out(
    command: Command, failure: Callable[[list[str]], str], place: Path, loaded: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "cd":
        shutil.copy(place / "a.png", place / f"{name}.png")
        shutil.copy(place / "a.mask.png", place / f"{name}.mask.png")
        (place / f"{name}.txt").write_text("a", "utf-8")
        (place / f"{name}.png").write_bytes((place / "a.png").read_bytes()[:80])
    said = failure(command())
    assert re.search(r"2 of 4 pictures cannot be used\..*--skip-broken\.\n +c\.png cannot be read.*\n +d\.png cannot be read", said)
    assert train.main(command(skip_broken=True, steps=1)) == 0
    assert "2 of 4 pictures cannot be used and are left out" in caplog.text
    with safe_open(tmp_path / "control.safetensors", "pt") as opened:
        assert opened.metadata()["pictures"] == "2"


def test_what_is_no_use_is_said(
    command: Command, failure: Callable[[list[str]], str], place: Path, loaded: None, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = folders
    assert re.search("no folder .*nowhere: put the pictures to learn from", failure(command(pictures=tmp_path / "nowhere")))
    assert re.search(r"a\.png is 64 x 48 pixels, too small for crops of 512", failure(command(size=512)))
    (place / "b.txt").unlink()
    assert re.search(r"1 picture \(b\.png\): there is no caption.*--blip", failure(command()))
    assert re.search(r"There is no BLIP folder 'nothing'.*models/blip", failure(command(blip="nothing")))
    (tmp_path / "blip").mkdir()
    assert re.search(r"holds no BLIP model: there is no config\.json", failure(command(blip=tmp_path / "blip")))
    (tmp_path / "blip" / "config.json").write_text('{"model_type": "blip"}', "utf-8")
    assert re.search(r"BLIP folder .*blip is not complete: it lacks model\.safetensors", failure(command(blip=tmp_path / "blip")))
    (place / "b.txt").write_text("b", "utf-8")
    for file in place.glob("*.mask*.png"):
        file.unlink()
    assert re.search(r"2 pictures \(a\.png, b\.png\): no mask.*--sam", failure(command()))
    assert re.search(r"There is no file 'nothing' in .*sams.*mobile_sam", failure(command(sam="nothing")))
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "is not a SAM model" in failure(command(sam=tmp_path / "other.safetensors"))
    stand_ins(monkeypatch)
    Image.new("RGB", (64, 48)).save(place / "a.png")
    Image.new("RGB", (64, 48)).save(place / "b.png")
    assert re.search("in none of the 2 pictures .* an object was found", failure(command(sam="any")))
    assert not (tmp_path / "control.safetensors").exists()


def test_a_blip_is_loaded_from_any_folder(tmp_path: Path, folders: Path) -> None:
    model = comfyui.load_blip(str(tiny_blip(tmp_path / "my blip")))
    assert model.name == "my blip"
    assert len(COMMAND.captions(model, [torch.rand(40, 50, 3), torch.rand(20, 30, 3)])) == 2


@pytest.mark.usefixtures("loaded")
def test_the_command_trains_on_pairs(command: Command, place: Path, tmp_path: Path, failure: Callable[[list[str]], str]) -> None:
    assert re.search(r"2 pictures \(a\.png, b\.png\): there is no reference", failure(command(pairs="given", steps=1)))
    assert train.main(command("grounds.safetensors", pairs="grounds", steps=1)) == 0
    for name in "ab":
        Image.open(place / f"{name}.png").rotate(180).save(place / f"{name}.reference.png")
    assert train.main(command("given.safetensors", pairs="given", steps=1)) == 0
    assert train.main(command("none.safetensors", steps=1)) == 0
    for pairs in ("grounds", "given", "none"):
        with safe_open(tmp_path / f"{pairs}.safetensors", "pt") as file:
            assert (file.metadata()["pairs"], file.metadata()["pictures"]) == (pairs, "2")
