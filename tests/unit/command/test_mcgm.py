"""`train.py mcgm`: a picture with masks beside it, and the files that Load Poseable Subjects takes."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from maskprompt.models import files
from maskprompt.nodes.train_mcgm import TrainMCGM
from maskprompt.training.command import comfyui, mcgm, program
from maskprompt.training.engine.options import names
from maskprompt.training.mcgm.loss import Loss
from maskprompt.training.mcgm.options import Options
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import train
from demo import setup, tiny_model

from ...support.command import checkpoints, read_once

__all__ = ["checkpoints", "read_once"]  # fixtures
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("read_once")]
ROOT = Path(train.__file__).parent
FILES = ("embeddings/fox-ball", "embeddings/fox-star", "loras/fox", "mcgm/fox")
Command = Callable[..., list[str]]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red and a blue subject on noise, each with its mask."""
    pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    for number, (rows, columns, colour) in enumerate((((8, 48), (4, 28), (0.9, 0.1, 0.1)), ((24, 56), (40, 60), (0.1, 0.2, 0.9))), 1):
        mask = torch.zeros(64, 64)
        mask[slice(*rows), slice(*columns)] = 1
        pixels[mask > 0] = torch.tensor(colour)
        Image.fromarray((mask * 255).byte().numpy()).save(tmp_path / f"scene.mask{'' if number == 1 else '-2'}.png")
    Image.fromarray((pixels * 255).byte().numpy()).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def command(picture: Path, tmp_path: Path) -> Command:
    """`command(models="models", steps=3, ...)` is a command line of two steps in each phase."""

    def line(models: str = "models", **changes: Any) -> list[str]:
        options: dict[str, Any] = {
            "comfyui": setup.comfyui_path(), "register": ROOT / "demo" / "registration", "checkpoint": tiny_model.CHECKPOINT,
            "picture": picture, "words": "ball, star", "steps": 2, "weight_steps": 2, "size": 64, "rank": 2, "rate": 1e-3, "seed": 4,
            "variations": 4,
            "out": tmp_path / models / "loras" / "fox.safetensors",
        } | changes  # fmt: skip
        given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
        return ["mcgm", *(str(part) for name, value in given.items() for part in ([name] if value is True else [name, value]))]

    return line


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that has to fail; what it says."""

    def fail(line: list[str]) -> str:
        assert train.main(line) == 1
        return capsys.readouterr().err

    return fail


def alike(one: Path, other: Path) -> bool:
    """The same files of the same tensors, to the bit."""
    for name in FILES:
        first, second = (load_file(root / f"{name}.safetensors") for root in (one, other))
        if first.keys() != second.keys() or not all(torch.equal(value, second[key]) for key, value in first.items()):
            return False
    return True


def there(root: Path) -> list[str]:
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*") if path.is_file())


def test_it_learns_what_the_node_learns(
    command: Command, tmp_path: Path, picture: Path, folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bit, with previews."""
    for kind in ("embeddings", "loras"):
        files.register_folder(kind)
    assert train.main(command("own", preview=tmp_path / "seen", preview_every=2)) == 0
    assert "Prompt: a photo of embedding:fox-ball and embedding:fox-star" in capsys.readouterr().out
    assert there(tmp_path / "own") == sorted(FILES)
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["step-000002.png", "step-000004.png"]
    with safe_open(tmp_path / "own" / "mcgm" / "fox.safetensors", "pt") as opened:
        assert "tiny-sd-inpaint.safetensors" in str(opened.metadata())

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    model, clip, vae = comfyui.load_checkpoint(str(tiny_model.CHECKPOINT))
    image, masks = mcgm.marked(picture)
    node: Any = TrainMCGM.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        node.execute(
            model, clip, vae, image, masks, "ball, star", "fox", steps=2, weight_steps=2, method="lora", learning_rate=1e-3, rank=2,
            batch_size=1, size=64, seed=4, preview_every=0, variations=4,
        )  # fmt: skip
    assert alike(tmp_path / "own", folders / "models")


def test_stopped_in_the_second_phase_and_given_again_it_ends_the_same(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: Callable[..., str]
) -> None:
    assert train.main(command("whole")) == 0
    told: list[int] = []
    plain = Loss.__call__

    def call(self: Loss, step: int, generator: torch.Generator) -> torch.Tensor:
        told.append(step)
        if len(told) == 3:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, step, generator)

    monkeypatch.setattr(Loss, "__call__", call)
    assert train.main(command("broken")) == 143
    said = capsys.readouterr().err
    states = sorted((tmp_path / "broken" / "loras").iterdir())
    assert [re.sub("[0-9a-f]{12}", "HASH", path.name) for path in states] == ["fox.state-1.pt", "fox.state-2-HASH.pt"]
    assert all(str(path) in said for path in states)
    assert [torch.load(path, weights_only=True)["step"] for path in states] == [2, 1]
    assert "is of another training" in failure(command("broken", attention_weight=0.5))
    assert "has 2 steps done already, more than --steps 1" in failure(command("broken", steps=1))
    kept = torch.load(states[1], weights_only=True)
    torch.save({**kept, "step": 3}, states[1])
    assert "has 3 steps done already, more than --weight-steps 2" in failure(command("broken"))
    torch.save(kept, states[1])
    assert told == [0, 1, 0]
    assert train.main(command("broken")) == 0
    assert told == [0, 1, 0, 1]
    assert alike(tmp_path / "whole", tmp_path / "broken")
    assert there(tmp_path / "broken") == sorted(FILES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": "nowhere.png"}, "there is no picture nowhere.png"),
        ({"words": "ball"}, r"1 word \(ball\) but 2 masks"),
        ({"words": " , "}, "words is empty"),
        ({"out": "fox.safetensors"}, "must lie in a folder loras"),
        ({"out": "loras/my fox.safetensors"}, "'my fox-ball' cannot be a handle's name"),
        ({"size": 512}, "picture 1 is 64 x 64 pixels, too small for crops of 512"),
    ],
)
def test_what_cannot_be_trained_is_said(
    command: Command, tmp_path: Path, failure: Callable[..., str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(message, failure(command(**changes)))


def test_no_file_is_overwritten_unless_asked(command: Command, tmp_path: Path, failure: Callable[..., str]) -> None:
    handle = tmp_path / "models" / "embeddings" / "fox-star.safetensors"
    handle.parent.mkdir(parents=True)
    handle.write_bytes(b"another")
    assert f"{handle} exists: choose another --name" in failure(command())
    assert handle.read_bytes() == b"another"


@pytest.mark.parametrize("what", ["embeddings", "mcgm"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_learned(
    command: Command, tmp_path: Path, failure: Callable[..., str], what: str
) -> None:
    (tmp_path / "own" / "loras").mkdir(parents=True)
    (tmp_path / "own" / what).touch()
    assert re.search(rf"nothing can be written into \S+{what}: ", failure(command("own")))
    assert there(tmp_path / "own") == [what]


def test_a_picture_without_a_mask(command: Command, picture: Path, failure: Callable[..., str]) -> None:
    for mask in picture.parent.glob("*.mask*.png"):
        mask.unlink()
    assert "scene.png has no mask: save one for each subject beside it, as scene.mask.png" in failure(command())


def test_an_alpha_channel_is_the_only_subjects_mask(picture: Path) -> None:
    image = Image.open(picture)
    with Image.open(picture.parent / "scene.mask-2.png") as mask:
        image.putalpha(mask.convert("L"))
    image.save(picture.parent / "alone.png")
    pixels, masks = mcgm.marked(picture.parent / "alone.png")
    assert (pixels.shape, masks.shape) == ((1, 64, 64, 3), (1, 64, 64))
    assert int(masks.sum()) == 32 * 20


def test_defaults_are_the_trainings_own() -> None:
    given = program.parser().parse_args(["mcgm", "--checkpoint", "a", "--picture", "b", "--words", "fox"])
    usual = Options(("fox",))
    assert {name: getattr(given, name) for name in names(Options)} == {name: getattr(usual, name) for name in names(Options)}
    assert (given.mask_tokens, given.preset) == ("bound", "widgets")


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        program.parser().parse_args(["mcgm", "--help"])
    assert left.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for said in ("0.0001 for lora, 2e-06 for full", "NAME.mask-2.png", "(400)", "(16)", "Break-A-Scene", "mask encoder"):
        assert said in told


def test_a_name_beside_out_must_be_its_own(command: Command, failure: Callable[[list[str]], str]) -> None:
    """It named nothing before, and nobody was told."""
    assert "--out names the files fox and --name cat: give one of the two" in failure(command(name="cat"))
    assert mcgm.title_of(program.parser().parse_args(command(name="owl"))) == "owl"
    assert mcgm.title_of(program.parser().parse_args(command())) == "scene"
    with pytest.raises(ValueError, match="a/b"):
        mcgm.title_of(program.parser().parse_args(command(name="a/b")))
