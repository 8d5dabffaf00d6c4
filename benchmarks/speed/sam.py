"""SAM Mask's second prompt on a picture against the first, as a ratio of time."""

from __future__ import annotations

import torch

from ..figures import Figure, ratio
from .measure import seconds


def sam(rounds: int = 5) -> list[Figure]:
    """A second prompt on a picture against the first, MobileSAM."""
    from maskprompt.models.sam.model import load
    from maskprompt.nodes.segment import MaskPromptSAMMask

    from demo import photos, setup

    picture = torch.from_numpy(photos.load("coffee")).float()[None] / 255
    firsts = []
    nexts = []
    for _ in range(rounds):
        loaded = load(str(setup.get_mobile_sam()))
        firsts.append(
            seconds(lambda loaded=loaded: MaskPromptSAMMask.execute(sam=loaded, image=picture, positive_coords='[{"x": 300, "y": 200}]'))
        )
        nexts.append(
            seconds(lambda loaded=loaded: MaskPromptSAMMask.execute(sam=loaded, image=picture, positive_coords='[{"x": 320, "y": 210}]'))
        )
    return [ratio("SAM Mask, a second prompt against the first: time", nexts, firsts, at_most=0.07)]
