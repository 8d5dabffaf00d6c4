"""Train Poseable Subjects as a node that is run, and what it leaves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from maskprompt.models import files
from maskprompt.models.mcgm.file import LoadedEncoder
from maskprompt.nodes.train_mcgm import TrainMCGM
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from demo.painter import Painter

from .dreamcom import kept_states as states
from .learners import unet_of, with_another_lora

SIDE = 64
NAMES = ("embeddings/fox-ball", "embeddings/fox-star", "loras/fox", "mcgm/fox")
Stored = dict[str, tuple[dict[str, Tensor], dict[str, str]]]
"""Tensors and metadata of each file in the models folder, by its name there."""


class Ran(NamedTuple):
    """The node's outputs."""

    model: Any
    clip: Any
    encoder: LoadedEncoder | None
    words: str
    lora: dict[str, Tensor]
    loss: dict[str, list[float]]


Node = Callable[..., Ran]
Wanted = Callable[..., tuple[list[float], Stored]]


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """For its text encoder and VAE."""
    return Painter()


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights, and a LoRA on top."""
    return with_another_lora(unet_of(32, small=True))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def node(tiny: Painter, model: Any, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """`node(steps=..., ...)` runs Train Poseable Subjects as ComfyUI's executor does, in inference mode; on a ball and a star."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))
    for kind in ("embeddings", "loras"):
        files.register_folder(kind)
    monkeypatch.setattr(tiny.clip.tokenizer.clip_l, "embedding_directory", folder_paths.get_folder_paths("embeddings"))

    def run(**inputs: Any) -> Ran:
        given = {
            "model": model, "clip": tiny.clip, "vae": tiny.vae, "image": picture(), "masks": marks(), "words": "ball, star", "name": "fox",
            "steps": 2, "weight_steps": 2, "method": "lora", "learning_rate": 1e-3, "rank": 2, "batch_size": 1, "size": SIDE, "seed": 0,
            "preview_every": 0, "gradient_checkpointing": False, "variations": 4,
        } | inputs  # fmt: skip
        prepared: Any = TrainMCGM.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})  # pyright: ignore[reportArgumentType]
        with torch.inference_mode():
            return Ran(*prepared.execute(**given).args)

    yield run
    gc.collect()


@pytest.fixture(scope="module")
def done() -> dict[str, tuple[list[float], Stored]]:
    return {}


@pytest.fixture
def wanted(node: Node, folders: Path, done: dict[str, tuple[list[float], Stored]]) -> Wanted:
    """`wanted(steps=..., ...)`: the losses and the files of a training without a break, trained once in a file of tests."""

    def without_a_break(**inputs: Any) -> tuple[list[float], Stored]:
        asked = repr(sorted(inputs.items()))
        if asked not in done:
            losses = node(**inputs).loss["loss"]
            done[asked] = (losses, taken(folders))
        return done[asked]

    return without_a_break


def marks(height: int = SIDE, width: int = SIDE) -> Tensor:
    """A tall subject on the left and a small one on the right."""
    found = torch.zeros(2, height, width)
    found[0, height // 8 : height * 3 // 4, width // 16 : width * 7 // 16] = 1
    found[1, height * 3 // 8 : height * 7 // 8, width * 5 // 8 : width * 15 // 16] = 1
    return found


def picture(height: int = SIDE, width: int = SIDE) -> Tensor:
    """Noise with a red and a blue subject."""
    found = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))
    for mask, colour in zip(marks(height, width), ((0.9, 0.1, 0.1), (0.1, 0.2, 0.9)), strict=True):
        found = torch.where(mask[None, ..., None] > 0, torch.tensor(colour), found)
    return found


def stored(root: Path) -> Stored:
    found: Stored = {}
    for path in (root / "models").rglob("*"):
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                name = path.relative_to(root / "models").as_posix().removesuffix(".safetensors")
                found[name] = load_file(path), file.metadata() or {}
    return found


def taken(root: Path) -> Stored:
    """What is stored, and no longer is."""
    found = stored(root)
    for path in [path for path in (root / "models").rglob("*.safetensors")]:
        path.unlink()
    return found


def alike(one: Stored, other: Stored) -> bool:
    """The same files with the same tensors, to the bit, and the same metadata."""
    return one.keys() == other.keys() and all(
        one[name][1] == other[name][1]
        and one[name][0].keys() == other[name][0].keys()
        and all(torch.equal(value, other[name][0][key]) for key, value in one[name][0].items())
        for name in one
    )


@torch.inference_mode()
def said(clip: Any, text: str) -> Any:
    """What a stock text node makes of it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def steps_kept(output: Path) -> dict[str, int]:
    """How far the kept states are, by their phase; of one training."""
    assert len(states(output)) <= 2
    return {path.stem.split("-")[2]: torch.load(path, weights_only=True)["step"] for path in states(output)}


def line() -> Tensor:
    """The second subject is two pixels wide in 256."""
    found = marks(256, 256)
    found[1] = 0
    found[1, 20:22] = 1
    return found


def disk_full_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Lets the disk be full at one of the files, counted from 0: two handles, the LoRA, the mask encoder."""
    write = files.write_weights
    count = iter(range(9))

    def full(path: Any, *given: Any) -> None:
        if next(count) == number:
            Path(path).write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device")
        write(path, *given)

    patch.setattr(files, "write_weights", full)
