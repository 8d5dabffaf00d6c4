"""The README's complete example, run as it stands there."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from demo import photos, run, stand_ins
from demo.server import Server


def test_the_headless_example_paints(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word by word, on a copy of its graph that takes a tenth of the steps."""
    text = (Path(run.ROOT) / "README.md").read_text("utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "02 Paint an object into a box" in code)
    assert 'SERVER = "http://127.0.0.1:8188"' in example
    graph = run.workflow("02 Paint an object into a box")
    for number, node in graph.items():
        if node["class_type"] == "CheckpointLoaderSimple":
            server.add_model("checkpoints", stand_ins.TINY_MODEL, node["inputs"]["ckpt_name"])
            assert f'graph["{number}"]["inputs"]["ckpt_name"]' in example
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    copy = tmp_path / "workflows" / "api" / "02 Paint an object into a box.json"
    copy.parent.mkdir(parents=True)
    copy.write_text(json.dumps(graph), "utf-8")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photos.load("chelsea")).resize((640, 480)).save(server.input / "my-photograph.png")
    exec(example.replace("http://127.0.0.1:8188", server.url), {"__name__": "example"})
    status, *links = capsys.readouterr().out.split()
    assert status == "success"
    assert links
    for link in links:
        with urllib.request.urlopen(link) as answer:
            assert Image.open(answer).size[0] > 64
