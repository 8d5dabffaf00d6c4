"""The bundled workflows painted by a real server, and the demo's own promises."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import photos, run, stand_ins
from demo.contact_sheet import contact_sheet
from demo.server import Prompt, Server, Step, WorkflowError


@pytest.fixture(scope="module")
def prompt(server: Server) -> Prompt:
    """The bundled workflow that paints an object into a box, with the tiny model, at four steps."""
    found = stand_ins.changed(run.workflow("02 Paint an object into a box"))
    run.add_photographs(server, run.photographs(found))
    for entry in found.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"]["steps"] = 4
    return found


def node_of(prompt: Prompt, name: str) -> str:
    return next(node for node, entry in prompt.items() if entry["class_type"] == name)


def result(server: Server, prompt: Prompt) -> np.ndarray:
    images = server.run(prompt).outputs[max(prompt, key=int)]["images"]
    return np.asarray(Image.open(server.file_of(images[0])))


def test_five_runs_paint_one_picture(server: Server, prompt: Prompt) -> None:
    pictures = []
    for _ in range(5):
        server.post("/free", {"unload_models": True, "free_memory": True})
        pictures.append(result(server, prompt))
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])


def test_nothing_outside_the_box_changes(server: Server, prompt: Prompt) -> None:
    box = prompt[node_of(prompt, "MaskPromptBoxMask")]["inputs"]
    before = photos.load(Path(run.photographs(prompt)[0]).stem)
    after = result(server, prompt)
    inside = np.zeros(before.shape[:2], bool)
    inside[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]] = True
    assert np.array_equal(after[~inside], before[~inside])
    assert np.abs(after[inside].astype(int) - before[inside]).mean() > 5


def test_a_bypassed_node_is_gone(server: Server, prompt: Prompt) -> None:
    node = node_of(prompt, "MaskPromptMaskedAttention")
    model = prompt[node]["inputs"]["model"]
    plain: Prompt = json.loads(json.dumps(prompt))
    plain[node_of(prompt, "KSampler")]["inputs"]["model"] = model
    never = result(server, plain)
    masked = result(server, prompt)
    plain[node_of(prompt, "SaveImage")]["inputs"]["filename_prefix"] = "again"
    server.post("/free", {"free_memory": True})
    assert np.array_equal(result(server, plain), never)
    assert not np.array_equal(masked, never)


def test_a_run_can_be_interrupted(server: Server, prompt: Prompt) -> None:
    endless: Prompt = json.loads(json.dumps(prompt))
    endless[node_of(prompt, "KSampler")]["inputs"]["steps"] = 5000
    begun = threading.Event()

    def on_step(step: Step) -> None:
        if step.name == "KSampler" and step.value >= 1 and not begun.is_set():
            begun.set()
            server.interrupt()

    with pytest.raises(WorkflowError, match=r"interrupted at node \d+ \(KSampler\)"):
        server.run(endless, on_step)
    assert result(server, prompt).size > 0


def test_the_demo_changes_its_table_and_nothing_else() -> None:
    met = set()
    for prompt in run.workflows().values():
        if stand_ins.of_transformer(prompt):
            continue
        for node, entry in stand_ins.changed(prompt).items():
            before = prompt[node]
            assert {**entry, "inputs": None} == {**before, "inputs": None}
            more = stand_ins.of_sampler(prompt) if entry["class_type"] == "KSampler" else {}
            for field, value in entry["inputs"].items():
                key = (entry["class_type"], field)
                assert value == stand_ins.CHANGES.get(key, more.get(field, before["inputs"][field]))
                met.add(key)
    assert stand_ins.CHANGES.keys() <= met


def test_a_stale_table_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"demo/stand_ins\.py"):
        stand_ins.changed({"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"renamed": "a.safetensors"}}})


@pytest.mark.thorough
def test_the_demo_fails_loudly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "api").mkdir()
    broken = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "MaskPromptBoxMask", "inputs": {"image": ["1", 0], "x": 900, "y": 0, "width": 10, "height": 10}},
        "3": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    (tmp_path / "api" / "broken.json").write_text(json.dumps(broken), "utf-8")
    monkeypatch.setattr(run, "WORKFLOWS", tmp_path)
    monkeypatch.setattr(run, "OUTPUT", tmp_path / "output")
    assert run.main([]) == 1
    words = capsys.readouterr().err
    assert "workflow broken: node 2 (MaskPromptBoxMask) failed" in words
    assert "64 x 64" in words
    assert (tmp_path / "output" / "server.log").is_file()


def test_a_contact_sheet_shows_every_picture(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for index, colour in enumerate(colours):
        Image.new("RGB", (60 + 40 * index, 60), colour).save(tmp_path / f"{index}.png")
    rows = [("one", [("a", tmp_path / "0.png")]), ("two", [("b", tmp_path / "1.png"), ("c", tmp_path / "2.png")])]
    page = np.asarray(contact_sheet(rows, height=120)).reshape(-1, 3)
    for index, colour in enumerate(colours):
        assert (page == colour).all(1).sum() == 120 * 2 * (60 + 40 * index)
