"""The picture a node got, for the picture that the artist marks in it: kept in ComfyUI's temp folder when no Load Image names it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import torch

KEY = "maskprompt_picture"
"""Where web/pointing looks for it in what a node hands to the frontend."""
LOADERS = ("LoadImage", "LoadImageOutput")
"""Nodes whose widget names the picture."""


def received(image: torch.Tensor | None, hidden: Any) -> dict[str, Any]:
    """Save the first picture of [B, H, W, C] and name it for the frontend; nothing for a run over the API, or after Load Image."""
    if image is None or hidden is None or not hidden.extra_pnginfo or _is_a_file(hidden):
        return {}
    import folder_paths

    from .progress import picture

    folder = Path(folder_paths.get_temp_directory())
    name = f"maskprompt_{secrets.token_hex(8)}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture(image[..., :3].expand(-1, -1, -1, 3)).save(folder / name, compress_level=1)
    except OSError:  # a full or write-protected disk costs the artist this picture, not the run
        return {KEY: []}
    return {KEY: [{"filename": name, "subfolder": "", "type": "temp"}]}


def _is_a_file(hidden: Any) -> bool:
    """Whether the picture comes straight from a Load Image, also as the artist sees the graph, so that the frontend knows its file.

    Not so through a subgraph, or through nodes that stand in the page alone (Get and Set): there the frontend may not find it.
    """
    prompt = hidden.prompt or {}
    own = str(hidden.unique_id)
    link = prompt.get(own, {}).get("inputs", {}).get("image")
    loader = prompt.get(link[0], {}) if isinstance(link, list) and link else {}
    if loader.get("class_type") not in LOADERS or not isinstance(loader.get("inputs", {}).get("image"), str):
        return False
    graph = hidden.extra_pnginfo.get("workflow") if isinstance(hidden.extra_pnginfo, dict) else None  # services put a text there
    links = graph.get("links") if isinstance(graph, dict) else None
    return isinstance(links, list) and any(isinstance(wire, list) and [str(wire[1]), str(wire[3])] == [str(link[0]), own] for wire in links)
