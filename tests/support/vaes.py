"""VAEs of other kinds."""

from __future__ import annotations

import torch


class Flux:
    def get_model_object(self, name: str) -> torch.nn.Module:
        unet = torch.nn.Linear(2, 2)
        unet.in_channels = 9  # pyright: ignore[reportArgumentType]
        return unet
