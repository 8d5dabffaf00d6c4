"""What train.py refuses, and what it leaves when the disk is full."""

from __future__ import annotations

import errno
import importlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from maskprompt.training.command import comfyui, program
from maskprompt.training.command.processes import Processes
from maskprompt.training.command.work import Work
from maskprompt.training.data import folder
from maskprompt.training.dreamcom.options import Options
from PIL import Image
from safetensors.torch import load_file, save_file

import train
from demo import setup, tiny_model

from ...support.command import Command, command, failure, pictures

__all__ = ["command", "failure", "pictures"]  # fixtures


def test_defaults_are_the_trainings_own(pictures: Path) -> None:
    given = program.parser().parse_args(["dreamcom", "--checkpoint", "a", "--pictures", "b", "--noun", "object"])
    usual = Options()
    assert {field.name: getattr(given, field.name) for field in fields(usual)} == {
        field.name: getattr(usual, field.name) for field in fields(usual)
    }


@pytest.mark.parametrize("method", ["dreamcom --noun star", "mcgm --words star", "mask-controlnet"])
def test_a_rate_of_0_is_the_usual_one(method: str) -> None:
    where = "--picture" if method.startswith("mcgm") else "--pictures"
    line = [*method.split(), "--checkpoint", "a", where, "b"]
    assert program.parser().parse_args([*line, "--rate", "0"]).rate is None
    assert program.parser().parse_args([*line, "--rate", "0.5"]).rate == 0.5


def test_models_that_extra_model_paths_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ComfyUI's main.py does; the program starts ComfyUI without it."""
    import folder_paths

    known = {kind: (list(paths), set(endings)) for kind, (paths, endings) in folder_paths.folder_names_and_paths.items()}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    place = tmp_path / "shared" / "checkpoints"
    place.mkdir(parents=True)
    (place / "mine.safetensors").touch()
    (tmp_path / "extra_model_paths.yaml").write_text(f"mine:\n  base_path: {tmp_path / 'shared'}\n  checkpoints: checkpoints\n", "utf-8")
    with pytest.raises(ValueError, match="there is no checkpoint mine"):
        comfyui.checkpoint_file("mine.safetensors")
    comfyui.start_comfyui(tmp_path, cpu=True)
    assert comfyui.checkpoint_file("mine.safetensors") == str(place / "mine.safetensors")


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
        ("--rate", "-1"),
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
    assert re.search("--state .* is a folder: name a file in it", failure(command(state=tmp_path)))
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


def test_letters_that_the_terminal_lacks_are_no_failure(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Output that goes into a file has one of 256 letters on Windows."""
    written = tmp_path / "written.txt"
    with written.open("w", encoding="cp1252") as file:
        monkeypatch.setattr("sys.stdout", file)
        assert train.main(command(noun="\u043a\u043e\u0442")) == 0
    assert r"Prompt: a photo of sks \u043a\u043e\u0442" in written.read_text("cp1252")


def test_the_room_that_a_state_takes_is_said(command: Command, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert train.main(command()) == 0
    assert re.search(r"its state takes up to \d+ MB of disk; .* are free", caplog.text)


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
