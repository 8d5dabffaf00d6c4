"""Pictures of a subject, and Train a Subject as a node that is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_api.latest import io
from maskprompt.nodes.train_dreamcom import TrainDreamCom
from torch import Tensor

from demo.painter import Painter

from .learners import unet_of

SIZE = 64


def box_masks(count: int, side: int = 64) -> Tensor:
    masks = torch.zeros(count, side, side)
    masks[:, side // 4 : side // 2, side // 4 : 3 * side // 4] = 1
    return masks


def reference_pictures(count: int, side: int = 64) -> Tensor:
    """Noise with a red rectangle where the subject is: [N, H, W, 3]."""
    images = torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(0))
    return torch.where(box_masks(count, side)[..., None] > 0, torch.tensor([1.0, 0.0, 0.0]), images)


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """The tiny model of demo/ with a UNet of fewer blocks and random weights."""
    painter = Painter()
    painter.model = unet_of(32, small=True)
    return painter


Ran = tuple[Any, dict[str, Tensor], dict[str, list[float]], int, str]


def run_node(tiny: Painter, **inputs: Any) -> Ran:
    """Runs Train a Subject as ComfyUI's executor does: lists of inputs, in inference mode."""
    given = {
        "model": tiny.model, "clip": tiny.clip, "vae": tiny.vae, "token": "sks", "noun": "ball", "steps": 1, "method": "lora",
        "learning_rate": 0.0, "rank": 4, "batch_size": 1, "size": SIZE, "seed": 0, "preview_every": 0, "gradient_checkpointing": False,
    } | inputs  # fmt: skip
    lists = {name: given.pop(name, default) for name, default in (("images", [reference_pictures(2)]), ("masks", [box_masks(2)]))}
    prepared: Any = TrainDreamCom.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return prepared.execute(**lists, **{name: [value] for name, value in given.items()}).args


def states(folder: Path) -> list[Path]:
    """Of trainings that did not come to their end."""
    return [file for file in kept_states(folder) if not torch.load(file)["finished"]]


def kept_states(folder: Path) -> list[Path]:
    return list((folder / "maskprompt" / "training").glob("*"))


def forget(folder: Path) -> None:
    """Takes away the states, of finished trainings too: the same Run would have their result at once."""
    for file in kept_states(folder):
        file.unlink()


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel is pressed: ComfyUI raises it where the node asks."""
    told: list[int] = []
    checked = comfy.model_management.throw_exception_if_processing_interrupted

    def press(self: Any, value: int, total: int | None = None, preview: Any = None) -> None:
        told.append(value)
        if len(told) == step:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", press)
    assert checked is comfy.model_management.throw_exception_if_processing_interrupted
