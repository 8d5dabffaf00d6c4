"""Text encoders of random weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn


class Words(nn.Module):
    """As much of a text encoder as tells its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(4, width)

    def get_input_embeddings(self) -> nn.Module:
        return self.table


def clip_of(**widths: int) -> Any:
    """A CLIP of text encoders of these widths, by their letters."""
    encoders = nn.Module()
    for letter, width in widths.items():
        encoder = nn.Module()
        encoder.transformer = Words(width)
        encoders.add_module(f"clip_{letter}", encoder)
    return SimpleNamespace(cond_stage_model=encoders)
