"""Train Poseable Subjects while it runs: bar, lines, previews, interrupts, and what a failure leaves."""

from __future__ import annotations

import logging
import shutil
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from maskprompt.models.mcgm.file import FOLDER
from maskprompt.nodes.mcgm import EncodeMasks
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm import loss as mcgm
from torch import Tensor

from demo.painter import Painter

from ...support.dreamcom import kept_states as states
from ...support.mask_encoders import blobs
from ...support.mcgm import painted
from ...support.train_mcgm import (
    NAMES,
    Node,
    Wanted,
    alike,
    disk_full_at,
    done,
    marks,
    model,
    node,
    output,
    picture,
    quick_previews,
    said,
    steps_kept,
    stored,
    taken,
    tiny,
    wanted,
)
from ...support.training_nodes import cancelled_at

pytestmark = pytest.mark.thorough

__all__ = ["done", "model", "node", "output", "quick_previews", "tiny", "wanted"]  # fixtures


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of either phase that are worked out from now on."""
    found: list[int] = []
    loss = mcgm.Loss.__call__

    def noted(self: mcgm.Loss, step: int, generator: torch.Generator) -> Tensor:
        found.append(step)
        return loss(self, step, generator)

    monkeypatch.setattr(mcgm.Loss, "__call__", noted)
    return found


Told = list[tuple[int, Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the bar was told: how far it is, and a preview or none."""
    found: Told = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: found.append((value, preview))
    )
    return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was sent through ComfyUI's server: the first line of the text, node."""
    found: list[tuple[str, str]] = []
    server: Any = types.ModuleType("server")

    def send(text: str, node: str) -> None:
        found.append((text.split("\n")[0], node))

    server.PromptServer = SimpleNamespace(instance=SimpleNamespace(send_progress_text=send))
    monkeypatch.setitem(sys.modules, "server", server)
    return found


def test_bar_lines_and_previews(node: Node, told: Told, lines: list[tuple[str, str]]) -> None:
    """One bar for both phases, after a part for the pictures; a preview shows the subjects side by side."""
    ran = node(steps=3, weight_steps=2, preview_every=2, image=picture(64, 128), masks=marks(64, 128))
    means = [sum(ran.loss["loss"][: step + 1]) / (step + 1) for step in range(5)]
    assert [value for value, _ in told] == [0, 1, 2, 3, 4, 5, 6]
    assert lines == [
        ("Encoding crops: 2 of 4", "7"), ("Encoding crops: 4 of 4", "7"),
        *((f"Step {step} of 5, loss {mean:.4f}", "7") for step, mean in enumerate(means, 1)),
    ]  # fmt: skip
    assert [value for value, preview in told if preview is not None] == [3, 5]
    for _, preview in told:
        if preview is not None:
            kind, image, largest = preview
            assert (kind, image.size, largest) == ("JPEG", (2 * 96, 64), 512)
    assert told[3][1][1].tobytes() != told[5][1][1].tobytes()


def test_prior_preservation_is_told_of(
    node: Node, wanted: Wanted, lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    """Its pictures are painted before the first step; and they matter."""
    monkeypatch.setattr("maskprompt.training.mcgm.prior.STEPS", 1)
    monkeypatch.setattr("maskprompt.training.mcgm.prior.AT_ONCE", 10)
    node(steps=1, weight_steps=1, prior_weight=1.0)
    assert [line for line, _ in lines if "ordinary" in line] == [f"Painting ordinary pictures: {count} of 20" for count in (10, 20)]
    assert lines.index(("Painting ordinary pictures: 20 of 20", "7")) < next(i for i, (line, _) in enumerate(lines) if "Step 1" in line)
    assert not alike(taken(folders), wanted(steps=1, weight_steps=1)[1])


def test_a_preview_that_fails_is_no_reason_to_stop(
    tiny: Painter, node: Node, wanted: Wanted, folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, files = wanted()

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("no memory for the VAE")

    monkeypatch.setattr(tiny.vae, "decode", fail)
    with caplog.at_level(logging.WARNING):
        node(preview_every=1)
    assert "The preview failed (OutOfMemoryError: no memory for the VAE); training goes on." in caplog.text
    assert alike(stored(folders), files)


@pytest.mark.parametrize(
    ("method", "value", "kept", "left"),
    [("lora", 1, {}, [0, 1, 2, 0, 1, 2]), ("lora", 2, {"1": 1}, [1, 2, 0, 1, 2]), ("lora", 4, {"1": 3}, [0, 1, 2]),
     ("lora", 6, {"1": 3, "2": 2}, [2]), ("full", 6, {"1": 3, "2": 2}, [2])],
    ids=["while pictures are encoded", "in the first phase", "at the first's end", "in the second", "in the second, all weights"],
)  # fmt: skip
def test_interrupted_and_run_again_it_ends_as_if_nothing_had_been(
    node: Node, wanted: Wanted, tiny: Painter, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, method: Method, value: int,
    kept: dict[str, int], left: list[int],
) -> None:  # fmt: skip
    """To the bit; what was done is not done again, and nothing is saved before the end. Meanwhile the model painted something."""
    given = {"method": method, "steps": 3, "weight_steps": 3, "seed": 4}
    losses, files = wanted(**given)
    with monkeypatch.context() as patch:
        cancelled_at(value, patch)
        with pytest.raises(InterruptProcessingException):
            node(**given)
    assert steps_kept(output) == kept
    assert stored(folders) == {}
    tiny.paint(["a red ball"], 0, size=64, steps=1)
    computed = counted(monkeypatch)
    again = node(**given, preview_every=2)
    assert computed == left
    assert again.loss["loss"] == pytest.approx(losses, rel=1e-6)
    assert alike(stored(folders), files)
    assert states(output) == []


def test_a_state_is_of_one_training_alone(node: Node, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed begins by itself and leaves it; more steps, another name, other previews go on; fewer than are done are refused."""
    with monkeypatch.context() as patch:
        cancelled_at(5, patch)
        with pytest.raises(InterruptProcessingException):
            node(steps=2, weight_steps=3)
    assert steps_kept(output) == {"1": 2, "2": 2}
    computed = counted(monkeypatch)
    node(seed=1)
    assert computed == [0, 1, 0, 1]
    assert steps_kept(output) == {"1": 2, "2": 2}
    taken(folders)
    with pytest.raises(ValueError, match="this training has done 2 steps already, and 1 were asked for"):
        node(steps=2, weight_steps=1)
    assert steps_kept(output) == {"1": 2, "2": 2}
    computed.clear()
    node(steps=2, weight_steps=4, name="owl", preview_every=3)
    assert computed == [2, 3]
    assert sorted(stored(folders)) == sorted(name.replace("fox", "owl") for name in NAMES)
    assert states(output) == []


def test_what_the_second_phase_alone_knows_of_leaves_the_first_as_it_is(
    node: Node, wanted: Wanted, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted there, and run with another rank: the first phase is not repeated, and the interrupted second one goes on later."""
    files = [wanted(rank=rank)[1] for rank in (2, 3)]
    with monkeypatch.context() as patch:
        cancelled_at(1 + 3, patch)
        with pytest.raises(InterruptProcessingException):
            node()
    computed = counted(monkeypatch)
    with caplog.at_level(logging.WARNING):
        node(rank=3)
        assert computed == [0, 1]
        assert alike(taken(folders), files[1])
        assert steps_kept(output) == {"1": 2, "2": 1}
        computed.clear()
        node()
    assert computed == [1]
    assert alike(stored(folders), files[0])
    assert states(output) == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "longer", "left"),
    [(1 + 1, {"steps": 4}, [1, 2, 3, 0, 1]), (1 + 2, {"steps": 4}, [2, 3, 0, 1]), (1 + 3, {"weight_steps": 4}, [1, 2, 3])],
    ids=["in the first phase", "at the first's end", "in the second"],
)
def test_interrupted_and_made_longer_it_learns_from_the_same_pictures(
    node: Node, wanted: Wanted, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, value: int, longer: dict[str, int],
    left: list[int],
) -> None:  # fmt: skip
    """It ends, to the bit, as one that was so long from the beginning."""
    _, files = wanted(variations=12, **longer)
    with monkeypatch.context() as patch:
        cancelled_at(value, patch)
        with pytest.raises(InterruptProcessingException):
            node(variations=12)
    computed = counted(monkeypatch)
    node(variations=12, **longer)
    assert computed == left
    assert alike(stored(folders), files)
    assert states(output) == []


def test_resume_off_begins_again(node: Node, wanted: Wanted, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files = wanted()
    with monkeypatch.context() as patch:
        cancelled_at(1 + 3, patch)
        with pytest.raises(InterruptProcessingException):
            node()
    assert steps_kept(output) == {"1": 2, "2": 1}
    for path in states(output):
        spoiled = torch.load(path, weights_only=True)
        spoiled["parameters"] = {name: value + 1 for name, value in spoiled["parameters"].items()}
        torch.save(spoiled, path)
    computed = counted(monkeypatch)
    node(resume=False)
    assert computed == [0, 1, 0, 1]
    assert alike(stored(folders), files)
    assert states(output) == []


def test_fewer_steps_begin_again_while_the_longer_training_waits(
    node: Node, wanted: Wanted, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt in the second phase keeps the first's state; `resume` off must not be refused for it, now or ever."""
    _, files = wanted(steps=1)
    with monkeypatch.context() as patch:
        cancelled_at(1 + 3, patch)
        with pytest.raises(InterruptProcessingException):
            node()
    with pytest.raises(ValueError, match=r"has done 2 steps already, and 1 were asked for\. Set steps to 2"):
        node(steps=1)
    node(steps=1, resume=False)
    assert alike(stored(folders), files)


@pytest.mark.parametrize("what", ["embeddings", "loras", "mcgm"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_learned(
    node: Node, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Here a file stands in the folder's place."""
    shutil.rmtree(folders / "models" / what, ignore_errors=True)
    (folders / "models" / what).write_text("in the way", "utf-8")
    computed = counted(monkeypatch)
    with pytest.raises(ValueError, match=rf"nothing can be written into \S+{what}: "):
        node()
    assert computed == []
    assert states(output) == []
    assert (folders / "models" / what).read_text("utf-8") == "in the way"


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_save_that_fails_loses_nothing(
    node: Node, wanted: Wanted, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk is full. The next run only saves."""
    _, trained = wanted()
    with monkeypatch.context() as patch:
        disk_full_at(number, patch)
        with pytest.raises(
            ValueError, match=r"(?s)could not be saved as 'fox': .*Free some space and press Run: the training's state is kept"
        ):
            node()
    assert stored(folders) == {}
    assert steps_kept(output) == {"1": 2, "2": 2}
    computed = counted(monkeypatch)
    ran = node()
    assert computed == []
    assert len(ran.loss["loss"]) == 4
    assert alike(stored(folders), trained)
    assert states(output) == []


def test_a_save_that_fails_without_resume_says_how_to_keep_the_training(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run would begin anew."""
    disk_full_at(0, monkeypatch)
    with pytest.raises(ValueError, match="Free some space, switch resume on and press Run"):
        node(resume=False)


def test_without_mask_tokens_there_is_no_encoder_and_no_file_of_one(node: Node, folders: Path) -> None:
    """Break-A-Scene. Handles and LoRA are there; Pose by Masks says where none comes from."""
    ran = node(mask_tokens="off")
    assert ran.encoder is None
    assert sorted(stored(folders)) == sorted(NAMES[:3])
    assert not any((folders / "models" / FOLDER).glob("*"))
    positive = said(ran.clip, ran.words)
    negative = said(ran.clip, "")
    assert bool(torch.isfinite(painted(ran.model, (positive, negative))).all())
    with pytest.raises(ValueError, match="no mask encoder was given: Train Poseable Subjects makes none where its mask_tokens is off"):
        EncodeMasks.execute(positive, negative, None, masks=blobs(1, 64, 64))
    assert EncodeMasks.execute(positive, negative, None).args == (positive, negative)
