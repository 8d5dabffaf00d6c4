"""Templates in a ComfyUI whose input folder is empty before its start: the pack brings what they load, and they run as they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from demo import run, stand_ins
from demo.server import Server

QUICK = (
    "01 Cut out an object",
    "02 Paint an object into a box",
    "06 Two texts, each in its region",
    "16 Keep an object, paint its surroundings",
)
"""Those that paint within seconds; the demo paints all of them."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    staged = run.stage(tmp_path_factory.mktemp("fresh"))
    assert list(staged.input.glob("*")) == []
    with staged as server:
        yield server


def test_every_picture_of_every_template_is_there(fresh: Server) -> None:
    wanted = {name for prompt in run.workflows().values() for name in run.photographs(prompt)}
    assert len(wanted) >= 10
    end = time.monotonic() + 60
    while missing := sorted(name for name in wanted if not (fresh.input / name).is_file()):
        assert time.monotonic() < end, missing
        time.sleep(0.2)
    for name in wanted:
        with Image.open(fresh.input / name) as picture:
            assert min(picture.size) >= 256


@pytest.mark.parametrize("name", QUICK)
def test_it_runs_as_it_was_opened(fresh: Server, name: str) -> None:
    prompt = stand_ins.changed(run.workflow(name))
    for entry in prompt.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"]["steps"] = 4
    outputs = fresh.run(prompt).outputs
    saved = [Path(fresh.file_of(image)) for output in outputs.values() for image in output.get("images", []) if image["type"] == "output"]
    assert saved
    for file in saved:
        with Image.open(file) as picture:
            low, high = picture.convert("L").getextrema()
            assert low < high
