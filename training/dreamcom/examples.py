"""What DreamCom learns from: crops of the references, encoded before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.chain import Patch
from ...attention.grid import RegionMask
from ...attention.masked_attention import MaskedCrossAttention
from ..data.pictures import finite
from ..data.references import Reference
from .augment import Augmentation
from .options import Options

AT_ONCE = 8
CROPS_EACH = 40
"""Crops are encoded before training, so that the VAE need not stay loaded: this many of each reference at most."""


@dataclass(frozen=True)
class Examples:
    """Encoded crops: `latents` and `masked` [N, 4, h, w] as the VAE gives them, `boxes` bool [N, S, S], `valid` [N, 1, h, w]."""

    latents: Tensor
    masked: Tensor
    boxes: Tensor
    valid: Tensor

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a batch of latents."""
        channels, height, width = self.latents.shape[1:]
        return batch, channels, height, width

    def values(self, chosen: Tensor | slice) -> dict[str, Tensor]:
        """What InpaintModelConditioning sets on a prompt, for some of the crops."""
        return {"concat_latent_image": self.masked[chosen], "concat_mask": self.boxes[chosen][:, None].float()}

    def patches(self, chosen: Tensor | slice) -> tuple[Patch, ...]:
        """Masked cross-attention (section 4.2) for some of the crops."""
        return (MaskedCrossAttention(RegionMask(self.boxes[chosen].float())),)


def encode(
    pictures: Sequence[Reference],
    vae: Any,
    options: Options,
    augmentation: Augmentation | None = None,
    on_crop: Callable[[int, int], None] | None = None,
) -> Examples:
    """Random crops of the references and what an inpainting model is shown of them, through the VAE.

    `on_crop` is told how many are done, and of how many; what it raises interrupts. ValueError where the VAE gives no numbers.
    """
    rng = np.random.default_rng(options.seed)
    take = augmentation or Augmentation(margin=options.box_margin)
    count = max(len(pictures), min(CROPS_EACH * len(pictures), options.steps * options.batch))
    latents = []
    masked = []
    boxes = []
    valid = []
    # Not in inference mode, in which ComfyUI runs nodes: what is made there cannot take part in a gradient.
    with torch.inference_mode(False), torch.no_grad():
        for first in range(0, count, AT_ONCE):
            crops = [take(pictures[number % len(pictures)], options.size, rng) for number in range(first, min(first + AT_ONCE, count))]
            images = torch.stack([crop.image for crop in crops])
            box = torch.stack([crop.box for crop in crops])
            latents.append(finite(vae.encode(images).float().cpu()))
            masked.append(finite(vae.encode((images - 0.5) * (1 - box[..., None]) + 0.5).float().cpu()))
            boxes.append(box > 0.5)
            valid.append(F.interpolate(torch.stack([crop.valid for crop in crops])[:, None], size=latents[-1].shape[-2:], mode="area"))
            if on_crop is not None:
                on_crop(first + len(crops), count)
        return Examples(*(torch.cat(parts) for parts in (latents, masked, boxes, valid)))
