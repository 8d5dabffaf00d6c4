"""MECA adapters: IP-Adapter files and our own, under ComfyUI's memory management.

An adapter's weights are on a GPU only while it works out the keys and values of an image prompt, before the sampling: a few MB that the
UNet's layers then attend to. So an IP-Adapter for SDXL takes no 700 MB beside the UNet, and its last layers are never waited for.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import sd_families
from ..clip_vision.patch_visibility import own_tokens
from . import file as meca_file
from . import network as meca_network
from .file import About
from .network import POOLED, MecaNetwork

KEPT = 4
_POOLED_NAMES = {768: "ViT-L", 1024: "ViT-H", 1280: "ViT-bigG"}
_PATCH_NAMES = {1024: "ViT-L", 1280: "ViT-H", 1664: "ViT-bigG"}

Pairs = dict[int, tuple[Tensor, Tensor]]


class LoadedAdapter:
    """An adapter whose weights ComfyUI's memory management loads and offloads. It remembers the last image prompts' keys, on the CPU."""

    def __init__(self, network: MecaNetwork, about: About, name: str) -> None:
        import comfy.model_management as management
        from comfy.model_patcher import ModelPatcher

        self.about = about
        self.name = name
        self.widths = network.widths
        projection = network.image_proj
        self.source = projection.source
        self.features = projection.features
        self.context = projection.context
        offload = management.unet_offload_device()
        self.patcher = ModelPatcher(network.eval().requires_grad_(False), management.get_torch_device(), offload)
        self._kept: OrderedDict[bytes, Pairs] = OrderedDict()
        self._blank: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()

    def pairs(self, output: Any, clip_vision: Any = None) -> Pairs:
        """Each layer's K and V [N + 1, T, width], float32 on the CPU, by number: of the N pictures in a CLIP_VISION_OUTPUT, then of none.

        "None" is what the adapter was trained with where there is no image: zeros, or the encoding of zero pixel values by
        `clip_vision`. ValueError in words if the vision model is of another size, or is needed and missing.
        """
        pictures = [*self._features(output), self._unconditional(clip_vision)]
        key = _fingerprint(pictures)
        if key not in self._kept:
            self._kept[key] = self._computed(pictures)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _computed(self, pictures: Sequence[Tensor]) -> Pairs:
        import comfy.model_management as management

        management.load_models_gpu([self.patcher], memory_required=256 * 1024**2)
        # Plain tensors, not inference tensors, so that they may be used in training too.
        with torch.inference_mode(False), torch.no_grad():
            device = self.patcher.load_device
            network = self.patcher.model
            tokens = torch.cat([network.image_proj(one[None].to(device, torch.float32)) for one in pictures])
            found = {number: (k.cpu(), v.cpu()) for number, (k, v) in network(tokens).items()}
        if not all(bool(part.isfinite().all()) for pair in found.values() for part in pair):
            raise RuntimeError(f"'{self.name}' gives no usable numbers for this image: the file or the image's encoding is damaged.")
        return found

    def _features(self, output: Any) -> list[Tensor]:
        """What the projection takes of each picture: [features], or [M, features]."""
        found = getattr(output, self.source, None)
        if not isinstance(found, Tensor):
            raise ValueError("clip_vision_output: wire a CLIP_VISION_OUTPUT, from CLIP Vision Encode or Hide in Reference.")
        self._check_width(found.shape[-1], "clip_vision_output")
        return list(found.reshape(len(found), -1)) if self.source == POOLED else own_tokens(output, self.source)

    def _unconditional(self, clip_vision: Any) -> Tensor:
        if self.about.unconditional == meca_file.ZEROS:
            return torch.zeros(self.features) if self.source == POOLED else torch.zeros(1, self.features)
        if clip_vision is None:
            raise ValueError(
                f"'{self.name}' needs the CLIP vision model too: for the negative prompt's half it was trained with the encoding of an "
                "empty picture. Wire the same Load CLIP Vision that encodes your image to clip_vision."
            )
        if clip_vision not in self._blank:
            self._blank[clip_vision] = zero_pixels(clip_vision)
        blank = self._blank[clip_vision]
        self._check_width(blank.shape[-1], "clip_vision")
        return blank

    def _check_width(self, given: int, name: str) -> None:
        names = _POOLED_NAMES if self.source == POOLED else _PATCH_NAMES
        if given != self.features:
            wanted, found = (f"{width} ({names[width]})" if width in names else str(width) for width in (self.features, given))
            raise ValueError(
                f"{name}: '{self.name}' is made for a CLIP vision model of width {wanted}; this one's is {found}. "
                "Load the CLIP vision file that belongs to the adapter, and encode the image with it."
            )


def load(path: str) -> LoadedAdapter:
    """An IP-Adapter (base or plus) or MECA file as an adapter. ValueError in plain words for anything else."""
    return from_weights(*meca_file.read(path), os.path.basename(path))


def from_weights(weights: Mapping[str, Tensor], about: About, name: str) -> LoadedAdapter:
    """An adapter of weights by name, which it takes as they are."""
    import comfy.ops

    network = meca_network.like(weights, about.heads, comfy.ops.manual_cast)
    network.load_state_dict(weights, assign=True)
    return LoadedAdapter(network, about, name)


def zero_pixels(clip_vision: Any) -> Tensor:
    """The encoding [M, width], on the CPU, of a picture whose pixels are zero after normalisation: the last layer but one.

    `encode_image` rounds to whole grey levels, so no picture gives exactly this; hence the model itself is asked.
    """
    import comfy.model_management as management

    management.load_models_gpu([clip_vision.patcher])
    pixels = torch.zeros(1, 3, clip_vision.image_size, clip_vision.image_size, device=clip_vision.load_device)
    with torch.no_grad():
        return clip_vision.model(pixel_values=pixels, intermediate_output=-2)[1][0].float().cpu()


def _fingerprint(pictures: Sequence[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for one in pictures:
        pixels = one.detach().cpu().contiguous()
        digest.update(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
        digest.update(pixels.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def check_fit(adapter: LoadedAdapter, widths: Mapping[int, int], context: int) -> None:
    """ValueError with the numbers if the adapter is not for a model of these layer widths and this text width."""
    if adapter.context != context or adapter.widths.keys() != widths.keys():
        raise ValueError(
            f"'{adapter.name}' is made for a model with {in_words(adapter.widths, adapter.context)}; this model has "
            f"{in_words(widths, context)}. Take the adapter for your model, or the model for your adapter."
        )
    for number, width in widths.items():
        if adapter.widths[number] != width:
            raise ValueError(
                f"'{adapter.name}' is made for another model: its layer {number} has the width {adapter.widths[number]}, this model's "
                f"{width}. Take the adapter for your model, or the model for your adapter."
            )


def in_words(widths: Mapping[int, int], context: int) -> str:
    """Says what an adapter fits: "16 attention layers and text of width 768 (SD 1.5)"."""
    return sd_families.attention(len(widths), context)
