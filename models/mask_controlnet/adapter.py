"""Mask-ControlNet's adapter (section 3.1): the object's image beside the reference, six channels, made into a hint of three."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = 6
HINT = 3
SHARE = 0.5
"""Of each of the two in an untrained hint: the object stands in full over its surroundings at half their brightness."""


class MaskConcat(nn.Module):
    """The adapter layer: a 3 x 3 convolution from [B, 6, H, W] to [B, 3, H, W], all in 0..1.

    The paper says where the layer stands but not what it is. Untrained it shows the object over its darkened reference: of a reference
    with several objects that already tells which one is meant, and any ControlNet for pictures can read it. Weights are by name
    "layer.weight" and "layer.bias".
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(CHANNELS, HINT, 3, padding=1, padding_mode="replicate")
        with torch.no_grad():
            self.layer.weight.zero_()
            if self.layer.bias is not None:
                self.layer.bias.zero_()
            for channel in range(HINT):
                self.layer.weight[channel, [channel, channel + HINT], 1, 1] = SHARE

    def forward(self, reference: Tensor, mask: Tensor) -> Tensor:
        """The hint of references [B, 3, H, W] with masks [B, 1, H, W] of their objects."""
        return self.layer(concatenated(reference, mask)).clamp(0, 1)


def concatenated(reference: Tensor, mask: Tensor) -> Tensor:
    """The object's image (black outside of the mask), then the reference: [B, 6, H, W]."""
    return torch.cat([reference * mask, reference], 1)
