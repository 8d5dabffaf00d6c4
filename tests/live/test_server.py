"""The pack in a real ComfyUI server: registered whole, documented whole, started quickly, and never the server's end."""

from __future__ import annotations

import compileall
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from maskprompt.nodes import NODES
from PIL import Image

from demo import setup
from demo.server import NOT_THE_PACK, ROOT, Prompt, Server, WorkflowError

SCHEMAS = [node.GET_SCHEMA() for node in NODES]
IDS = sorted(schema.node_id for schema in SCHEMAS)
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
START_LIMIT = 0.15

START = """
import asyncio, json, sys, time
sys.path.insert(0, sys.argv[1])
import comfy.options
comfy.options.enable_args_parsing(False)
from comfy.cli_args import args
args.cpu = True
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
before = set(sys.modules)
began = time.process_time()  # of its own work: other tests run beside it
loaded = asyncio.run(nodes.load_custom_node(sys.argv[2], set(nodes.NODE_CLASS_MAPPINGS)))
seconds = time.process_time() - began
new = sorted({name.split(".")[0] for name in set(sys.modules) - before})
ids = sorted(name for name in nodes.NODE_CLASS_MAPPINGS if "MaskPrompt" in name)
print(json.dumps({"loaded": loaded, "seconds": seconds, "new": new, "ids": ids}))
"""


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, dict[str, Any]]:
    everything = server.object_info()
    return {name: node for name, node in everything.items() if node["python_module"] == "custom_nodes.ComfyUI-MaskPrompt"}


def test_every_node_is_registered(info: dict[str, dict[str, Any]]) -> None:
    assert sorted(info) == IDS
    assert all(name.startswith("MaskPrompt") for name in info)


@pytest.mark.parametrize("node_id", IDS)
def test_a_node_explains_itself(info: dict[str, dict[str, Any]], node_id: str) -> None:
    node = info[node_id]
    assert node["display_name"]
    assert node["display_name"] != node_id
    assert node["category"].split("/")[0] == "MaskPrompt"
    assert len(node["description"]) > 20
    assert node["search_aliases"]
    untold = [
        name
        for group in ("required", "optional")
        for name, spec in node["input"].get(group, {}).items()
        if len(spec) < 2 or not spec[1].get("tooltip")
    ]
    assert untold == [], f"inputs of {node_id} without a tooltip"
    assert all(node["output_tooltips"] or [not node["output"]]), f"outputs of {node_id} without a tooltip: {node['output_tooltips']}"


@pytest.mark.parametrize("node_id", IDS)
def test_a_help_page_is_served(server: Server, info: dict[str, dict[str, Any]], node_id: str) -> None:
    page = server.get(f"/extensions/ComfyUI-MaskPrompt/docs/{node_id}.md").decode()
    assert page == (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
    assert page.startswith(f"# {info[node_id]['display_name']}\n")
    shown = [spec[1].get("display_name") or name for name, spec in info[node_id]["input"].get("required", {}).items()]
    assert [name for name in shown if name.lower() not in page.lower()] == [], f"inputs that the help page of {node_id} leaves out"


def test_no_help_page_is_left_over() -> None:
    assert sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md")) == IDS


def test_templates_are_offered(server: Server) -> None:
    assert len(TEMPLATES) >= 2
    assert sorted(server.get_json("/api/workflow_templates")["ComfyUI-MaskPrompt"]) == TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_served_with_its_thumbnail(server: Server, name: str) -> None:
    address = f"/api/workflow_templates/ComfyUI-MaskPrompt/{urllib.parse.quote(name)}"
    assert server.get_json(f"{address}.json") == json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    with Image.open(io.BytesIO(server.get(f"{address}.jpg"))) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert min(thumbnail.size) >= 256


@pytest.fixture(scope="module")
def everything(server: Server) -> dict[str, dict[str, Any]]:
    return server.object_info()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_workflow_gives_each_node_what_it_takes(everything: dict[str, dict[str, Any]], name: str) -> None:
    """By the server's own account: nodes that there are, all required inputs and no others, choices that it offers, links of one type."""
    prompt: Prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    for number, entry in prompt.items():
        node = everything[entry["class_type"]]
        required, optional = (node["input"].get(group) or {} for group in ("required", "optional"))
        known = {**required, **optional}
        grown = {field.split(".")[0] for field in entry["inputs"]}  # inputs that grow are named inputs.input0, inputs.input1, ...
        assert required.keys() <= grown <= known.keys(), number
        for field, value in entry["inputs"].items():
            kind, *more = known[field.split(".")[0]]
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt:
                given = everything[prompt[value[0]]["class_type"]]["output"][value[1]]
                anything = given == "*" or "MATCHTYPE" in given or "." in field  # what it is depends on what is wired to it
                assert anything or kind in ("*", given) or given in str(kind).split(","), (number, field)
            elif not re.search("_name[12]?$", field) and field not in ("image", "device"):  # files, which have other names here
                offered = kind if isinstance(kind, list) else more[0].get("options") if kind == "COMBO" else None
                assert offered is None or value in offered, (number, field)


@pytest.mark.thorough
def test_the_start_is_quick_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "My MaskPrompt v1.0 (copy)"
    shutil.copytree(ROOT, folder, ignore=NOT_THE_PACK)
    command = [sys.executable, "-c", START, str(setup.comfyui_path()), str(folder)]
    # As for users, whose Python keeps what it has compiled; one of the runs has to be quick enough.
    compileall.compile_dir(folder, quiet=1)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = []
    for _ in range(8):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**environment, "PYTHONPATH": ""}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        if runs[-1]["seconds"] <= START_LIMIT:
            break
    assert all(run["loaded"] and run["ids"] == IDS for run in runs)
    assert not {"segment_anything", "timm", "diffusers", "skimage", "sklearn", "demo"} & set(runs[0]["new"])
    assert min(run["seconds"] for run in runs) <= START_LIMIT


def tiny_picture(colour: int = 255) -> dict[str, Any]:
    return {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": colour}}


def still_serves(server: Server) -> bool:
    prompt: Prompt = {"1": tiny_picture(), "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    with Image.open(server.file_of(server.run(prompt).outputs["2"]["images"][0])) as image:
        return image.size == (64, 48)


def test_a_workflow_that_is_refused_says_why(server: Server) -> None:
    prompt: Prompt = {"1": tiny_picture(), "2": {"class_type": "PreviewImage", "inputs": {}}}
    with pytest.raises(WorkflowError, match=r"node 2 \(PreviewImage\): .*images"):
        server.run(prompt)
    assert still_serves(server)


def test_an_unknown_node_is_refused(server: Server) -> None:
    with pytest.raises(WorkflowError, match="MaskPromptNoSuchNode"):
        server.run({"1": {"class_type": "MaskPromptNoSuchNode", "inputs": {}}})
    assert still_serves(server)
