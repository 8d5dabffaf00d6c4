"""`train.py`: a command line around the training loops; and references from a folder."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.training.command import comfyui, program
from maskprompt.training.command.processes import Processes, UnreadyError
from maskprompt.training.command.work import Work
from maskprompt.training.data import folder
from maskprompt.training.dreamcom import examples as dreamcom
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import loop
from maskprompt.training.engine.job import Job
from maskprompt.training.engine.learner import Learner
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the tiny model."""
    comfyui.register(str(ROOT / "demo" / "registration"))
    return comfyui.load_checkpoint(str(tiny_model.CHECKPOINT))


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


def signal_at(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """This process gets a signal while it computes the loss of a step."""
    plain = Loss.__call__

    def call(self: Loss, at: int, generator: torch.Generator) -> torch.Tensor:
        if at == step:
            signal.raise_signal(number)
        return plain(self, at, generator)

    patch.setattr(Loss, "__call__", call)


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


random_numbers = loop.random_numbers


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
        torch.save([mean_gradient_steps(place / "pictures", 2, processes) for processes in ((0, 1), (0,), (1,))], place / "by-hand.pt")
    return [stopped, train.main(line)]


CHILD = """
import sys
from pathlib import Path
import tests.unit  # ComfyUI has a folder of that name too
from demo.pack import load_pack
load_pack()
from tests.unit.command.test_dreamcom import child
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


def mean_gradient_steps(pictures: Path, steps: int, processes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The weights after AdamW on the mean gradient of these processes' losses, clipped to a norm of 1."""
    model, clip, vae = comfyui.load_checkpoint(str(tiny_model.CHECKPOINT))
    options = Options(noun="star", steps=3, rate=1e-3, rank=4, size=64)
    examples = dreamcom.encode(folder.load(pictures), vae, options)
    with torch.no_grad():
        text = clip.encode_from_tokens_scheduled(clip.tokenize(options.prompt))
    learner = Learner(model, "lora", options.rank, options.seed)
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


def test_defaults_are_the_trainings_own(pictures: Path) -> None:
    given = program.parser().parse_args(["dreamcom", "--checkpoint", "a", "--pictures", "b", "--noun", "object"])
    usual = Options()
    assert {field.name: getattr(given, field.name) for field in fields(usual)} == {
        field.name: getattr(usual, field.name) for field in fields(usual)
    }


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        program.parser().parse_args(["dreamcom", "--help"])
    assert left.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for said in ("0.0001 for lora, 5e-06 for full", "white where the subject is", "(400)", "(16)", "in pixels"):
        assert said in told


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "100"),
        ("--size", "56"),
        ("--steps", "0"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--seed", "-1"),
        ("--batch", "two"),
        ("--method", "half"),
        ("--rate", "inf"),
        ("--average", "1"),
        ("--box-margin", "1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(option: str, value: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.main([*command(), option, value])
    assert left.value.code == 2
    assert option in capsys.readouterr().err


def test_a_folder_that_is_no_use(command: Command, failure: Callable[[list[str]], str], pictures: Path, tmp_path: Path) -> None:
    assert re.search("no folder .*nowhere", failure(command(pictures=tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture", "utf-8")
    assert "no picture in" in failure(command(pictures=tmp_path / "empty"))
    (pictures / "0.mask.png").rename(pictures / "kept.png")
    assert re.search(r"0\.png has no mask.*0\.mask\.png", failure(command()))
    Image.new("L", (64, 64)).save(pictures / "0.mask.png")
    assert re.search(r"mask of 0\.png marks nothing.*0\.mask\.png", failure(command()))
    Image.new("L", (32, 64), 255).save(pictures / "0.mask.png")
    assert re.search(r"0\.png is 64 x 64 pixels but its mask 0\.mask\.png 32 x 64", failure(command()))
    (pictures / "0.mask.png").write_bytes(b"no picture at all")
    assert re.search(r"0\.mask\.png cannot be read", failure(command()))
    whole = (pictures / "1.png").read_bytes()
    (pictures / "0.mask.png").unlink()
    (pictures / "0.png").write_bytes(whole[: len(whole) // 2])
    assert re.search(r"0\.png cannot be read", failure(command()))


def test_a_checkpoint_that_is_no_use(command: Command, failure: Callable[[list[str]], str], tmp_path: Path) -> None:
    assert re.search("no checkpoint nothing.safetensors.*checkpoints", failure(command(checkpoint="nothing.safetensors")))
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    assert re.search(r"cannot load the checkpoint .*other\.safetensors.*--register", failure(command(checkpoint=file)), re.S)
    file.write_bytes(tiny_model.CHECKPOINT.read_bytes()[:100_000])
    assert re.search(r"cannot load the checkpoint .*other\.safetensors.*damaged", failure(command(checkpoint=file)), re.S)
    state = load_file(tiny_model.CHECKPOINT)
    save_file({name: value for name, value in state.items() if not name.startswith("first_stage_model.")}, file)
    assert "holds no VAE" in failure(command(checkpoint=file))
    save_file({name: value for name, value in state.items() if not name.startswith("cond_stage_model.")}, file)
    assert "holds no text encoder" in failure(command(checkpoint=file))
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**state, first: state[first][:, :4].contiguous()}, file)
    assert re.search("9 channels; this one takes 4", failure(command(checkpoint=file)))


def test_places_that_are_no_use(command: Command, failure: Callable[[list[str]], str], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_text("precious", "utf-8")
    assert re.search(r"there\.safetensors exists.*--overwrite", failure(command("there.safetensors")))
    assert (tmp_path / "there.safetensors").read_text("utf-8") == "precious"
    assert "must end in .safetensors" in failure(command("lora.pt"))
    assert "nothing can be written into" in failure(command("there.safetensors/lora.safetensors"))
    assert re.search("no ComfyUI in .*--comfyui", failure(command(comfyui=tmp_path)))
    assert re.search("--register .*nothing cannot be imported", failure(command(register=tmp_path / "nothing")))
    assert "noun is empty" in failure(command(noun=" "))


def test_a_state_that_cannot_be_read_goes_only_where_it_is_told_to(
    command: Command, failure: Callable[[list[str]], str], tmp_path: Path
) -> None:
    state = tmp_path / "lora.state.pt"
    state.write_bytes(b"half of a state")
    assert re.search("cannot be read.*--state.*--overwrite", failure(command()))
    assert state.read_bytes() == b"half of a state"
    (tmp_path / "lora.safetensors").write_text("an old result", "utf-8")
    assert train.main(command(overwrite=True, steps=1)) == 0
    assert not state.exists()
    assert len(load_file(tmp_path / "lora.safetensors")) > 100


def test_a_full_disk_loses_nothing(
    command: Command, failure: Callable[[list[str]], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_files = importlib.import_module("safetensors.torch")
    full = ["models"]

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        if Path(path).parent.name in full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch_files, "save_file", save)
    line = command("models/lora.safetensors", state=tmp_path / "states" / "a.pt", save_every=1, steps=2)
    work = Work(program.parser().parse_args(line), Processes(cpu=True), tmp_path / "models" / "lora.safetensors")
    with pytest.raises(ValueError, match="No space left") as raised:
        work.save({"a.alpha": torch.ones(3)}, {"rank": 4})
    saved = next((tmp_path / "states").glob("lora-*.safetensors"))
    assert f"saved as {saved} instead" in str(raised.value)
    assert torch.equal(load_file(saved)["a.alpha"], torch.ones(3))
    full += ["states", Path(tempfile.gettempdir()).name]
    said = failure(line)
    assert "No space left" in said
    assert "instead" not in said
    assert f"{tmp_path / 'states' / 'a.pt'}; the same command goes on from there" in said
    assert not list((tmp_path / "models").iterdir())


def test_only_the_first_process_writes(command: Command, tmp_path: Path) -> None:
    processes = Processes(cpu=True)
    processes.number = 1
    line = command("new/lora.safetensors", preview=tmp_path / "seen")
    Work(program.parser().parse_args(line), processes, tmp_path / "new" / "lora.safetensors").save({"a": torch.ones(3)}, {})
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "seen").exists()


def test_comfyui_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = setup.comfyui_path().absolute()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert comfyui.find_comfyui(str(there)) == there
    monkeypatch.setenv("COMFYUI_PATH", str(there))
    assert comfyui.find_comfyui(None) == there
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setattr(comfyui, "ROOT", there / "custom_nodes" / "pack")
    assert comfyui.find_comfyui(None) == there


def test_a_folders_pictures_stand_upright_in_the_order_of_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reference is Pillow's rotation by hand, and masks drawn as rectangles."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    upright = Image.fromarray(pixels)
    turned = upright.rotate(90, expand=True)
    tag = Image.Exif()
    tag[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(tmp_path / "b.PNG", exif=tag)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:50] = 255
    Image.fromarray(mask).save(tmp_path / "b.mask.png")
    cut = np.zeros((30, 24), np.uint8)
    cut[5:15, 2:22] = 255
    see_through = Image.new("RGB", (24, 30), (200, 100, 0))
    see_through.putalpha(Image.fromarray(cut))
    see_through.save(tmp_path / "a.png")
    deep = np.zeros((20, 20), np.uint16)
    deep[4:9] = 65535
    deep[12:] = 9000  # dark, but above 8 bits' white
    upright.convert("L").resize((20, 20)).save(tmp_path / "c.jpg")
    Image.fromarray(deep).save(tmp_path / "c.mask.png")
    Image.fromarray(mask).save(tmp_path / "gone.mask.png")
    (tmp_path / ".b.png").write_bytes(b"a Mac's leavings")
    first, second, third = folder.load(tmp_path)
    assert torch.equal(first.image[10, 10] * 255, torch.tensor([200.0, 100.0, 0.0]))
    assert first.box == {"x": 2, "y": 5, "width": 20, "height": 10}
    assert torch.equal((second.image * 255).round().byte(), torch.from_numpy(pixels))
    assert second.box == {"x": 30, "y": 10, "width": 20, "height": 10}
    assert third.box == {"x": 0, "y": 4, "width": 20, "height": 5}
    assert third.image.shape == (20, 20, 3)
    assert "gone.mask.png" in caplog.text


def test_a_mask_hides_what_is_transparent_in_it(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    mask = Image.new("RGB", (32, 32), (255, 255, 255))
    alpha = np.zeros((32, 32), np.uint8)
    alpha[8:16, 4:24] = 255
    mask.putalpha(Image.fromarray(alpha))
    mask.save(tmp_path / "a.mask.png")
    assert folder.load(tmp_path)[0].box == {"x": 4, "y": 8, "width": 20, "height": 8}


def test_the_fingerprint_is_of_pictures_not_of_names(pictures: Path) -> None:
    before = folder.load(pictures)
    options = replace(Options(), noun="star")
    (pictures / "0.png").rename(pictures / "00.png")
    (pictures / "0.mask.png").rename(pictures / "00.mask.png")
    assert options.fingerprint(folder.load(pictures)) == options.fingerprint(before)
