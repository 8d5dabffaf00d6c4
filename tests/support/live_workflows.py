"""Bundled workflows, changed and run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from demo.server import Prompt, Server


def titled(prompt: Prompt, title: str) -> str:
    """The node of that title."""
    (found,) = (name for name, entry in prompt.items() if entry.get("_meta", {}).get("title") == title)
    return found


def with_inputs(prompt: Prompt, title: str, **inputs: Any) -> Prompt:
    """A copy in which a node has other inputs."""
    copy: Prompt = json.loads(json.dumps(prompt))
    copy[titled(copy, title)]["inputs"] |= inputs
    return copy


def pictures(server: Server, prompt: Prompt) -> dict[str, np.ndarray]:
    """What the nodes save or preview, by their titles, or names where they have none."""
    outputs = server.run(prompt).outputs
    return {
        prompt[name].get("_meta", {}).get("title", name): np.asarray(Image.open(server.file_of(output["images"][0])).convert("RGB"))
        for name, output in outputs.items()
        if "images" in output
    }
