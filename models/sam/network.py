"""Segment Anything's networks (arXiv:2304.02643), built from the names and shapes of a file's weights. No ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import nn

from ..weights import SHOWN, differences
from . import tiny_vit

PATCH = 16
_VIT_NAMES = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}
_ELSEWHERE = (
    ("image_encoder.trunk.", "It is a SAM 2 file, which this loader does not read."),
    ("vision_encoder.", "It has the layout of the transformers library. Take Meta's original file, for example sam_vit_b_01ec64.pth."),
    ("detector.", "It looks like a SAM 3 file: load it with ComfyUI's own nodes, its masks fit everywhere here."),
)


@dataclass(frozen=True)
class SamNetwork:
    """Both halves of a SAM. image_size: the side of the padded square in pixels; working_floats: numbers held at once while encoding."""

    name: str
    encoder: nn.Module
    decoder: SamDecoder
    image_size: int
    working_floats: int


class SamDecoder(nn.Module):
    """Prompt encoder and mask decoder for pictures padded to a square of `image_size` pixels, g = image_size / 16."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        modeling = segment_anything()
        grid = image_size // PATCH
        self.prompt_encoder = modeling.PromptEncoder(
            embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size), mask_in_chans=16
        )
        self.mask_decoder = modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        )

    def forward(
        self,
        embedding: torch.Tensor,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        box: torch.Tensor | None,
        logits: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [3, 4g, 4g] (positive = inside) and scores [3] of SAM's three masks.

        embedding [1, 256, g, g]; points as coordinates [1, N, 2] and labels [1, N] (1 positive, 0 negative); box [1, 4] as
        x0, y0, x1, y1; logits [1, 1, 4g, 4g] of an earlier answer. Coordinates are pixels of the padded square. All float32.
        """
        sparse, dense = self.prompt_encoder(points=points, boxes=box, masks=logits)
        answers, scores = self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)
        return answers[0], scores[0]


def build(weights: Mapping[str, torch.Tensor]) -> SamNetwork:
    """The network that holds `weights` (under SAM's or MobileSAM's own names); its kind is read from their names and shapes.

    ValueError if the weights are not those of a SAM, RuntimeError if a package is missing.
    """
    encoder_weights, decoder_weights = _split(weights)
    if "patch_embed.seq.0.c.weight" in encoder_weights:
        encoder = tiny_vit.TinyVitEncoder()
        encoder_weights = tiny_vit.rename(encoder_weights)
        name = "MobileSAM"
        size = tiny_vit.IMAGE_SIZE
        working = 200_000_000
    elif "pos_embed" in encoder_weights and "blocks.0.attn.rel_pos_h" in encoder_weights:
        _, grid, _, width = encoder_weights["pos_embed"].shape
        encoder, heads = _vit(encoder_weights)
        # Global attention of this code builds the whole matrix, and holds it three times.
        name = _VIT_NAMES.get(width, "ViT of another size")
        size = grid * PATCH
        working = 3 * heads * grid**4
    else:
        raise ValueError(_what_else(weights))
    with torch.device("meta"):
        decoder = SamDecoder(size)
    _fill(encoder, encoder_weights)
    _fill(decoder, decoder_weights)
    return SamNetwork(name, encoder, decoder, size, working)


def segment_anything() -> ModuleType:
    """The `modeling` module of the segment-anything package; RuntimeError saying what to install if it is missing."""
    try:
        from segment_anything import modeling
    except ImportError as error:
        raise RuntimeError(
            f"SAM needs the Python package segment-anything ({error}). "
            "Run `pip install segment-anything` in ComfyUI's Python and restart ComfyUI."
        ) from error
    return modeling


def _split(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    encoder = {name.removeprefix("image_encoder."): tensor for name, tensor in weights.items() if name.startswith("image_encoder.")}
    return encoder, {name: tensor for name, tensor in weights.items() if not name.startswith("image_encoder.")}


def _vit(weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    """SAM's ViT in the size that the weights have, and its heads. On the meta device, for speed: no number is made twice."""
    _, grid, _, width = weights["pos_embed"].shape
    depth = sum(name.startswith("blocks.") and name.endswith(".attn.rel_pos_h") for name in weights)
    spans = [(weights[f"blocks.{i}.attn.rel_pos_h"].shape[0] + 1) // 2 for i in range(depth)]
    heads = width // weights["blocks.0.attn.rel_pos_h"].shape[1]
    with torch.device("meta"):
        encoder = segment_anything().ImageEncoderViT(
            img_size=grid * PATCH,
            patch_size=PATCH,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=min(spans),
            global_attn_indexes=tuple(i for i in range(depth) if spans[i] == grid),
        )
    return encoder, heads


def _fill(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    expected = network.state_dict()
    found = differences(weights, {name: value.shape for name, value in expected.items()})
    missing = [name for name in found.missing if not name.endswith("num_batches_tracked")]
    if missing or found.misshapen:
        names = ", ".join((*missing, *found.misshapen)[:SHOWN])
        raise ValueError(
            f"{len(missing)} weights are missing and {len(found.misshapen)} have another shape than SAM's (the first: {names})."
        )
    network.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False, assign=True)


def _what_else(weights: Mapping[str, torch.Tensor]) -> str:
    for part, advice in _ELSEWHERE:
        if any(part in name for name in weights):
            return advice
    sample = ", ".join(list(weights)[:3])
    return f"It holds another network (weights such as {sample}). SAM ViT-B, ViT-L, ViT-H and MobileSAM can be loaded."
