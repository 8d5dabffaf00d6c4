"""MCGM's mask encoder: a mask becomes one token that the UNet's cross-attention reads beside the words (the paper's section 3.2).

Cross-attention knows no order: mask tokens that change places paint the same picture. In the paper's network nothing but the mask's
shape tells whose mask it is, so two subjects may take each other's. A `bound` encoder adds to each token what it learned about the
subject that the mask is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mode = Literal["paper", "bound"]
SIDE = 64
"""The paper's network reads every mask as 64 x 64 cells, whatever the picture's size and shape."""


def cells(masks: Tensor) -> Tensor:
    """Masks [N, H, W] in 0..1 of any size as the encoder reads them: [N, 64, 64] of exactly 0 and 1 (1 from 0.5 on).

    Each cell is the pixel at its middle. (PyTorch's plain "nearest" takes the one at its corner, which a flipped mask has elsewhere.)
    """
    small = F.interpolate(masks[:, None].float(), size=(SIDE, SIDE), mode="nearest-exact")[:, 0]
    return (small >= 0.5).to(small.dtype)


class MaskEncoder(nn.Module):
    """Masks to tokens of the text's width. With `subjects` > 0 it is `bound`: a vector for each subject, zero until it is trained."""

    subjects: nn.Parameter | None

    def __init__(self, width: int, subjects: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE, width)
        self.register_parameter("subjects", nn.Parameter(torch.zeros(subjects, width)) if subjects else None)

    @property
    def width(self) -> int:
        """The text's width: 768 for SD 1.5, 1024 for SD 2.1, 2048 for SDXL."""
        return self.linear.out_features

    @property
    def mode(self) -> Mode:
        return "paper" if self.subjects is None else "bound"

    def forward(self, masks: Tensor, owners: Sequence[int | None] | None = None) -> Tensor:
        """Masks [N, H, W] in 0..1 to tokens [N, width], in the weights' precision; zeros for a mask with nothing in its 64 x 64 cells.

        `owners`: for each mask the subject's index (None: no subject of this encoder). Without it the first mask is for the first
        subject, and so on. A `paper` encoder does not look at it. IndexError for a subject that the encoder does not have.
        """
        weight = self.linear.weight
        small = cells(masks).to(weight.device, weight.dtype).flatten(1)
        tokens = self.linear(small)
        if self.subjects is not None:
            nobody = tokens.new_zeros(self.width)
            chosen = range(len(masks)) if owners is None else owners
            found = [nobody if owner is None else self.subjects[owner] for owner in chosen]
            tokens = tokens + torch.stack(found) if found else tokens
        return tokens * small.amax(dim=1, keepdim=True)


def fresh(width: int, subjects: int = 0, seed: int = 0) -> MaskEncoder:
    """An untrained encoder in float32, the same for the same seed; PyTorch's own random numbers stay where they were."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskEncoder(width, subjects)
