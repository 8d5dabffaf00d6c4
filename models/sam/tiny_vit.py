"""MobileSAM's image encoder: timm's TinyViT with the names of MobileSAM's file and SAM's neck behind it (arXiv:2306.14289)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

IMAGE_SIZE = 1024
_RENAMES = (
    (r"\.c\.", ".conv."),
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.(\d+)\.downsample\.", lambda found: f"stages.{int(found[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
)


class TinyVitEncoder(nn.Module):
    """Pictures [B, 3, 1024, 1024], normalised as SAM does, to embeddings [B, 256, 64, 64].

    RuntimeError if timm is not installed.
    """

    backbone: Any

    def __init__(self, embedding_channels: int = 256) -> None:
        super().__init__()
        try:
            import timm
            from segment_anything.modeling.common import LayerNorm2d
        except ImportError as error:
            raise RuntimeError(
                f"MobileSAM needs the Python packages timm and segment-anything ({error}). "
                "Run `pip install timm segment-anything` in ComfyUI's Python and restart ComfyUI."
            ) from error
        self.backbone = timm.create_model("tiny_vit_5m_224", pretrained=False)
        self.backbone.head = nn.Identity()
        # MobileSAM keeps 64 × 64 tokens to the end: its last downsampling only widens the channels.
        strided = self.backbone.get_submodule("stages.3.downsample.conv2.conv")
        strided.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(320, embedding_channels, kernel_size=1, bias=False),
            LayerNorm2d(embedding_channels),
            nn.Conv2d(embedding_channels, embedding_channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(embedding_channels),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.neck(self.backbone.forward_features(pictures))


def rename(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of MobileSAM's image encoder (names without "image_encoder.") under the names of `TinyVitEncoder`.

    The classifier that TinyViT was first trained with is left out.
    """
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith(("head.", "norm_head.")) or name.endswith("attention_bias_idxs"):
            continue
        if name.startswith("neck."):
            renamed[name] = tensor
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[f"backbone.{name}"] = tensor
    return renamed
