"""Hide in Reference against ComfyUI's own CLIP Vision Encode, as ratios of time and memory.

A ViT-L/14 of random weights in the precision that ComfyUI loads it in; both sides in one run on the same machine, taken in turns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..figures import Figure, ratio
from .measure import in_turns, peak


def vit_l() -> Any:
    """A CLIP_VISION of ViT-L/14's shape."""
    import comfy.clip_vision

    config = Path(comfy.clip_vision.__file__).parent / "clip_vision_config_vitl.json"
    model = comfy.clip_vision.ClipVisionModel(json.loads(config.read_text("utf-8")))
    for parameter in model.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def visibility(rounds: int = 7) -> list[Figure]:
    """One picture of 512 px: all work of the node, from the picture to tokens and preview, against the stock encode."""
    from maskprompt.models.clip_vision.patch_visibility import encode

    model = vit_l()
    image = torch.rand(1, 512, 512, 3)
    figures = []

    def stock() -> None:
        with torch.inference_mode():
            model.encode_image(image)

    for share, mode, bar in ((0.5, "hide", 0.75), (0.75, "hide", None), (0.0, "hide", None), (0.5, "paper", None)):
        mask = torch.ones(1, 512, 512)
        mask[:, :, : int(512 * share)] = 0

        def ours(mask: torch.Tensor = mask, mode: str = mode) -> None:
            with torch.inference_mode():
                encode(model, image, mask, 0.5, mode)

        times = in_turns(ours, stock, rounds)
        figures.append(ratio(f"Hide in Reference, {mode}, {share:.0%} of the patches hidden: time", *times, at_most=bar))
        held = [peak(ours) / peak(stock)]
        figures.append(ratio(f"Hide in Reference, {mode}, {share:.0%} of the patches hidden: peak memory", held, [1.0]))
    return figures
