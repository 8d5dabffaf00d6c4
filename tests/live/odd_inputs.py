"""Odd values for every input of every node, in running ComfyUI: each gives a result without NaN, or words, and the server lives.

`python -m tests.live.odd_inputs --count 2000 --seed 0` counts them and prints what went wrong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.error
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo import run, stand_ins
from demo.server import ROOT, Prompt, Server

from ..support.graphs import default
from . import odd_pack

SMALL: dict[str, Any] = {
    "steps": 1, "weight_steps": 1, "size": 64, "batch_size": 1, "rank": 1, "width": 64, "height": 64, "resolution": 64, "noun": "ball",
    "words": "ball", "token": "sks", "text": "a red ball on grass", "preview_every": 0, "prior_pictures": 1, "max_tokens": 6, "beams": 1,
    "variations": 2,
}  # fmt: skip
"""Settings under which a node's valid call is quick."""
SOURCES: dict[str, tuple[str, dict[str, Any], int]] = {
    "MODEL": ("CheckpointLoaderSimple", {"ckpt_name": stand_ins.TINY_MODEL.name}, 0),
    "CLIP": ("CheckpointLoaderSimple", {"ckpt_name": stand_ins.TINY_MODEL.name}, 1),
    "VAE": ("CheckpointLoaderSimple", {"ckpt_name": stand_ins.TINY_MODEL.name}, 2),
    "IMAGE": ("EmptyImage", {"width": 96, "height": 64, "batch_size": 1, "color": 0x4080C0}, 0),
    "MASK": ("MaskPromptBoxMask", {"image": "IMAGE", "x": 16, "y": 16, "width": 32, "height": 32}, 0),
    "CONDITIONING": ("CLIPTextEncode", {"clip": "CLIP", "text": "a red ball on grass"}, 0),
    "LATENT": ("EmptyLatentImage", {"width": 96, "height": 64, "batch_size": 1}, 0),
    "CLIP_VISION": ("CLIPVisionLoader", {"clip_name": stand_ins.TINY_CLIP_VISION.name}, 0),
    "CLIP_VISION_OUTPUT": ("CLIPVisionEncode", {"clip_vision": "CLIP_VISION", "image": "IMAGE", "crop": "center"}, 0),
}
"""What gives a good value of each of core's types; a type's name stands for a link to its own source."""
SLOW = ("Train", "Caption")
"""Nodes that take seconds even for a good call: a tenth of the values is tried on them."""
LONGEST = 120.0
LATE = "took too long"
DEAD = 3
"""After so many values in a row that took too long, the server counts as dead."""


@dataclass(frozen=True)
class Outcome:
    """What came of one odd value: `kind` is "refused" (by ComfyUI's validation), "words", "result", or what is wrong."""

    node: str
    input: str
    value: str
    kind: str
    said: str = ""

    @property
    def good(self) -> bool:
        return self.kind in ("refused", "words", "result")


class Graphs:
    """Valid graphs around each node, from what the server says of the nodes."""

    def __init__(self, info: dict[str, dict[str, Any]]) -> None:
        self.info = info
        self.names = sorted(name for name in info if name.startswith("MaskPrompt"))

    def inputs(self, name: str) -> dict[str, Any]:
        """Every input of a node: its type and options."""
        given = self.info[name]["input"]
        return {**given.get("required", {}), **given.get("optional", {})}

    def around(self, name: str) -> Prompt:
        """The node with good inputs, as "node", and each of its outputs looked at."""
        prompt: Prompt = {}
        prompt["node"] = {"class_type": name, "inputs": self._filled(name, prompt)}
        for place, _ in enumerate(self.info[name]["output"]):
            prompt[f"whole {place}"] = {"class_type": "Whole", "inputs": {"value": ["node", place]}}
        return prompt

    def _filled(self, name: str, prompt: Prompt) -> dict[str, Any]:
        required = self.info[name]["input"].get("required", {})
        found: dict[str, Any] = {}
        for field, declared in self.inputs(name).items():
            kind = declared[0]
            if field not in required and isinstance(kind, str) and kind not in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN"):
                continue
            value = self._value(field, declared, prompt)
            if value is not None:
                found[field] = value
        return found

    def _value(self, field: str, declared: Sequence[Any], prompt: Prompt) -> Any:
        if field in stand_ins.MODEL_FILES:
            return stand_ins.MODEL_FILES[field][1].name
        if field in SMALL:
            return SMALL[field]
        held = default(declared)
        return self._source(declared[0], prompt) if held is None else held

    def _source(self, kind: str, prompt: Prompt) -> list[Any] | None:
        """A link to something that gives this type; it is added to the graph. None where nothing does."""
        if kind in SOURCES:
            name, given, place = SOURCES[kind]
            inputs = {field: self._source(value, prompt) if value in SOURCES else value for field, value in given.items()}
        else:
            found = [one for one in self.names if one.startswith("MaskPromptLoad") and kind in self.info[one]["output"]]
            if not found:
                return None
            name = found[0]
            place = self.info[name]["output"].index(kind)
            inputs = self._filled(name, prompt)
        key = f"{name} {json.dumps(inputs, sort_keys=True)}"
        prompt[key] = {"class_type": name, "inputs": inputs}
        return [key, place]


def plan(graphs: Graphs, count: int, seed: int) -> list[tuple[str, str, str]]:
    """`count` triples of node, input and value's name, spread over all nodes and inputs in turn, values drawn at random."""
    rng = np.random.default_rng(seed)
    places = [(name, field) for name in graphs.names for field in graphs.inputs(name)]
    values = list(odd_pack.VALUES)
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        for name, field in places:
            if any(slow in name for slow in SLOW) and rng.random() > 0.1:
                continue
            found.append((name, field, values[int(rng.integers(len(values)))]))
    return [found[int(index)] for index in rng.permutation(len(found))[:count]]


def attempt(server: Server, graphs: Graphs, name: str, field: str, value: str) -> Outcome:
    """Run a node with one odd value, and say what came of it."""
    prompt = graphs.around(name)
    prompt["odd"] = {"class_type": "OddValue", "inputs": {"name": value}}
    prompt["node"]["inputs"][field] = ["odd", 0]
    try:
        answer = server.post("/prompt", {"prompt": prompt, "client_id": "odd"})
    except urllib.error.HTTPError as error:
        return Outcome(name, field, value, "refused", error.read().decode()[:300])
    if answer["node_errors"]:
        return Outcome(name, field, value, "refused", json.dumps(answer["node_errors"])[:300])
    began = time.monotonic()
    while time.monotonic() - began < LONGEST:
        history = server.get_json(f"/history/{answer['prompt_id']}")
        if history:
            return _judged(history[answer["prompt_id"]], name, field, value)
        time.sleep(0.01)
    server.interrupt()
    return Outcome(name, field, value, LATE)


def _judged(entry: dict[str, Any], name: str, field: str, value: str) -> Outcome:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return _of_error(data, name, field, value)
    looked = [one["whole"][0] for one in entry["outputs"].values() if "whole" in one]
    return Outcome(name, field, value, "result" if all(looked) else "NaN in the result")


def _of_error(data: dict[str, Any], name: str, field: str, value: str) -> Outcome:
    """Words are a ValueError or RuntimeError that the pack itself raised."""
    said = f"{data['exception_type']}: {data['exception_message'].strip()}"
    last = next((line for line in reversed(data["traceback"]) if "File " in line), "")
    ours = "ComfyUI-MaskPrompt" in last or (str(ROOT) in last and ".cache" not in last)
    if data["node_id"] != "node":
        return Outcome(name, field, value, "an error elsewhere", f"{data['node_type']}: {said}")
    if ours and data["exception_type"] in ("ValueError", "RuntimeError"):
        return Outcome(name, field, value, "words", said)
    return Outcome(name, field, value, "a raw error", f"{said}\n{''.join(data['traceback'][-2:])}")


def tried(server: Server, count: int, seed: int) -> list[Outcome]:
    """`count` odd values on a running server; the server must still answer at the end."""
    graphs = Graphs(server.object_info())
    outcomes: list[Outcome] = []
    for name, field, value in plan(graphs, count, seed):
        outcome = attempt(server, graphs, name, field, value)
        outcomes.append(outcome)
        if not outcome.good:
            print(f"{outcome.node}.{outcome.input} <- {outcome.value}: {outcome.kind}\n    {outcome.said}", flush=True)
        if [one.kind for one in outcomes[-DEAD:]] == [LATE] * DEAD:
            print("The server runs no workflow any more. The end of its log:\n" + server.log_tail(), flush=True)
            break
    server.get("/system_stats")
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, run.stage(Path(folder), more={"odd-values": PACK}) as server:
        outcomes = tried(server, options.count, options.seed)
    print(", ".join(f"{kind}: {number}" for kind, number in Counter(outcome.kind for outcome in outcomes).most_common()))
    return int(len(outcomes) < options.count or not all(outcome.good for outcome in outcomes))


PACK = Path(odd_pack.__file__).resolve().parent

if __name__ == "__main__":
    raise SystemExit(main())
