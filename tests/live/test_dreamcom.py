"""Train a Subject in a real server: what it shows, what it leaves behind, and what an interrupt or a full disk costs."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from demo import run
from demo.server import Prompt, Server, WorkflowError

from ..support.graphs import CHECKPOINT, PICTURES, Interrupt, node, painting, training
from ..support.live_training import Shown, latent, states, unfinished

pytestmark = pytest.mark.thorough

__all__ = ["states"]  # fixtures

TRAIN = "MaskPromptTrainDreamCom"
TRAINED = {"learning_rate": 0.01, "steps": 6}
"""Learns quickly, and badly, so that a few steps can be seen."""


@pytest.fixture(scope="module", autouse=True)
def pictures(server: Server) -> None:
    run.add_photographs(server, PICTURES)


def lora_files(server: Server) -> set[Path]:
    return set((server.output / "loras").glob("*.safetensors"))


def base(extra: str = "") -> Prompt:
    """The untrained model's painting; `extra` blanks in the text change nothing but that ComfyUI does not take the last run's."""
    return {"clip": CHECKPOINT, "model": CHECKPOINT, **painting(["model", 0], "a photo of sks heart" + extra)}


def test_it_tells_and_shows_how_far_it_is(server: Server) -> None:
    shown = Shown()
    server.run(training(steps=6, preview_every=2), on_bytes=shown)
    assert shown.steps == [1, 2, 3, 4, 5, 6]
    first = [line.split("\n")[0] for line in shown.lines]
    assert first.index("Encoding crops: 6 of 6") < next(i for i, line in enumerate(first) if line.startswith("Step 1 of 6"))
    assert len(shown.previews) == 2
    for preview in shown.previews:
        with Image.open(io.BytesIO(preview)) as picture:
            assert picture.format == "JPEG"
            assert picture.width == picture.height


def test_the_saved_lora_paints_the_same_in_a_new_server(server: Server, tmp_path: Path) -> None:
    before = lora_files(server)
    plain = latent(server, server.run(base()))
    graph = {**training(seed=11, **TRAINED), **painting(["train", 0])}
    trained = latent(server, server.run(graph))
    (saved,) = lora_files(server) - before
    assert (trained - plain).abs().max() > 0.1
    with run.stage(tmp_path) as other:
        other.add_model("loras", saved, "mine.safetensors")
        loader = node("LoraLoaderModelOnly", model=["clip", 0], lora_name="mine.safetensors", strength_model=1.0)
        again = latent(other, other.run({"clip": CHECKPOINT, "lora": loader, **painting(["lora", 0])}))
        assert "lora key not loaded" not in other.log_tail(1000)
    assert (trained - again).abs().max() < 1e-3


def test_a_training_leaves_the_given_model_as_it_was(server: Server) -> None:
    first = latent(server, server.run(base()))
    graph = {**training(seed=12, **TRAINED), **painting(["train", 0])}
    trained = server.run(graph)
    assert {"train", "sampler"} <= set(trained.executed)
    second = server.run(base(" "))
    assert "sampler" in second.executed
    assert torch.equal(latent(server, second), first)
    assert not torch.equal(latent(server, trained), first)


def test_an_interrupted_training_goes_on_where_it_was(server: Server, states: Path) -> None:
    graph = training(seed=13, steps=30, gradient_checkpointing=False)
    with pytest.raises(WorkflowError, match=rf"interrupted at node train \({TRAIN}\)"):
        server.run(graph, Interrupt(server, TRAIN, 14))
    (state,) = unfinished(states)
    assert state.suffix == ".pt"
    assert latent(server, server.run(base("  "))).isfinite().all()
    shown = Shown()
    server.run(graph, on_bytes=shown)
    (done,) = re.findall(r"goes on from step (\d+)", server.log_tail(60))
    assert 4 < int(done) < 30
    assert shown.steps[0] == int(done) + 1
    assert shown.steps[-1] == 30


def test_resume_off_begins_again(server: Server, states: Path) -> None:
    with pytest.raises(WorkflowError, match="interrupted"):
        server.run(training(seed=14, steps=24, gradient_checkpointing=False), Interrupt(server, TRAIN, 10))
    assert len(unfinished(states)) == 1
    shown = Shown()
    server.run(training(seed=14, steps=24, gradient_checkpointing=False, resume=False), on_bytes=shown)
    assert shown.steps[0] == 1


def test_further_trainings_do_not_grow_memory(server: Server) -> None:
    process = psutil.Process(server.pid)
    server.run(training(seed=20))
    before = process.memory_info().rss
    for seed in (21, 22, 23):
        server.run(training(seed=seed))
    assert process.memory_info().rss <= 1.03 * before


def test_a_state_that_cannot_be_written_costs_nothing_else(server: Server, states: Path) -> None:
    """A file where the folder of states should be stands for a full or read-only disk."""
    states.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(states, ignore_errors=True)
    states.write_text("in the way")
    before = lora_files(server)
    try:
        server.run(training(seed=15))
    finally:
        states.unlink()
    assert "could not be written" in server.log_tail(60)
    assert len(lora_files(server) - before) == 1


def test_a_lora_that_cannot_be_saved_is_not_lost(server: Server) -> None:
    (server.output / "full").write_text("in the way")
    graph = training(seed=16)
    graph["lora"]["inputs"]["prefix"] = "full/disk"
    with pytest.raises(WorkflowError, match=r"node lora \(SaveLoRA\) failed"):
        server.run(graph)
    graph["lora"]["inputs"]["prefix"] = "loras/test"
    before = lora_files(server)
    assert "train" not in server.run(graph).executed
    assert len(lora_files(server) - before) == 1


def test_pictures_of_different_sizes_are_learned_together(server: Server) -> None:
    run.add_photographs(server, ["coffee.png", "chelsea.png"])
    before = lora_files(server)
    server.run(training(seed=17, pictures=("coffee.png", "subject-1.png", "chelsea.png")))
    assert len(lora_files(server) - before) == 1


def test_a_lora_is_found_for_the_workflow_that_loads_it(server: Server) -> None:
    """The demo teaches the subject before it paints it, and the file that it saved then has the name that the workflow loads."""
    everything = run.in_order(run.workflows())
    assert sorted(everything) == sorted(run.workflows())
    assert list(run.in_order(run.workflows(["21"]))) == ["20 Teach your subject", "21 Paint your subject into a box"]
    assert list(everything).index("20 Teach your subject") < list(everything).index("21 Paint your subject into a box")
    ((folder, name),) = (file for file, maker in run.MADE_BY.items() if maker == "20 Teach your subject")
    server.run(training(seed=18))
    run.hand_on(server, "20 Teach your subject")
    newest = max(lora_files(server), key=lambda file: file.stat().st_mtime)
    assert (server.folder / "models" / folder / name).read_bytes() == newest.read_bytes()
    loader = node("LoraLoaderModelOnly", model=["clip", 0], lora_name=name, strength_model=1.0)
    assert "lora" in server.run({"clip": CHECKPOINT, "lora": loader, **painting(["lora", 0])}).executed
