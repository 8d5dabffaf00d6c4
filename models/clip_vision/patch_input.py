"""What Hide in Reference is given, checked and brought to the vision model's square."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...images.masks import of_one_shape, to_mask
from . import patch_grid

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel

log = logging.getLogger(__name__)

LOST = 0.05
_KINDS = {"clip_vision_model": True, "siglip_vision_model": False}
_OTHERS = {"siglip2_vision_model": "SigLIP 2 model", "dinov2": "DINOv2 model", "dinov3": "DINOv3 model"}


@dataclass(frozen=True)
class Encoder:
    """An encoder's picture size and patch size in pixels, and whether a class token goes before the patches' tokens."""

    size: int
    patch: int
    has_class: bool


def describe(clip_vision: Any) -> Encoder:
    """The geometry of a CLIP_VISION, read from the model. ValueError in the artist's words if its patches cannot be hidden."""
    kind = getattr(clip_vision, "model_type", None)
    embeddings: Any = getattr(getattr(getattr(clip_vision, "model", None), "vision_model", None), "embeddings", None)
    if kind not in _KINDS or not isinstance(getattr(embeddings, "patch_embedding", None), torch.nn.Conv2d):
        given = "nothing" if clip_vision is None else f"a {_OTHERS.get(str(kind), 'model of another kind')}"
        raise ValueError(
            f"clip_vision: {given} was given, but Hide in Reference needs a CLIP vision model (ViT-L/14, ViT-H/14, ViT-bigG/14) or a "
            "SigLIP one of a fixed size: these see a picture as a fixed grid of patches. Wire Load CLIP Vision with such a file."
        )
    size = int(clip_vision.image_size)
    patch = int(embeddings.patch_embedding.kernel_size[0])
    has_class = _KINDS[kind]
    places = int(embeddings.position_embedding.num_embeddings)
    if places != (size // patch) ** 2 + has_class:
        raise ValueError(
            f"clip_vision: the model is for pictures of {size} pixels in patches of {patch}, but has {places} positions for them. The file "
            "is of another model; take the CLIP vision file that belongs to your adapter."
        )
    return Encoder(size, patch, has_class)


def masks_for(image: Tensor, mask: Any) -> Tensor:
    """The mask or masks as bool on the CPU, one for each picture to encode, in their own size. ValueError in words if they do not fit."""
    inside = to_mask(mask).cpu() >= 0.5
    count, height, width = image.shape[:3]
    if len(inside) != count and 1 not in (len(inside), count):
        raise ValueError(
            f"mask: there are {len(inside)} masks for {count} images. Give one mask for all images, one for each, or several masks for a "
            "single image."
        )
    rows, columns = inside.shape[1:]
    if not of_one_shape((rows, columns), (height, width)) and bool(inside.any()):
        raise ValueError(
            f"mask: the mask is {columns}x{rows} but the image is {width}x{height}: their shapes differ, so the mask would land in the "
            "wrong place. Make the mask from this image, or scale both alike."
        )
    return inside.expand(max(count, len(inside)), -1, -1)


def tell(inside: Tensor, patches: Tensor, where: patch_grid.Place, encoder: Encoder, may_be_empty: bool) -> None:
    """Warns of masks that are cut off, and of pictures with no visible patch; with `may_be_empty` false these are a ValueError."""
    lost = patch_grid.left_out(inside, where, encoder.size, encoder.patch)
    for index, (one, seen, part) in enumerate(zip(inside, patches.flatten(1).any(1).tolist(), lost.tolist(), strict=True)):
        which = f"picture {index + 1} of {len(inside)}"
        if seen:
            continue
        if not bool(one.any()):
            why = "its mask is empty (nothing is 0.5 or more)"
        elif part > 0.5:
            why = "its mask lies beside the centre crop: choose fit letterbox"
        else:
            why = "no patch has enough of its mask: raise threshold, or crop the picture and the mask around the object"
        if not may_be_empty:
            raise ValueError(f"mask: nothing of {which} is visible, and a SigLIP model has no class token to encode instead: {why}.")
        log.warning("Hide in Reference: nothing of %s is visible: %s", which, why)
    cut = float(lost.max())
    if cut > LOST:
        log.warning("Hide in Reference: the crop cuts off %.0f %% of a mask; fit letterbox keeps the whole picture", cut * 100)


def pixels_of(clip_vision: ClipVisionModel, image: Tensor, where: patch_grid.Place, fit: str) -> Tensor:
    """The pictures as the model takes them, float32 [B, 3, S, S] on its device, by ComfyUI's own preprocessing; bars are zeros."""
    from comfy.clip_model import clip_preprocess

    size: int = clip_vision.image_size
    picture = image.to(clip_vision.load_device)[..., :3].expand(-1, -1, -1, 3)
    bars = (where.left, size - where.width - where.left, where.top, size - where.height - where.top)
    if fit == patch_grid.LETTERBOX and picture.shape[1:3] != (size, size):
        picture = F.interpolate(picture.movedim(-1, 1), size=(where.height, where.width), mode="bicubic", antialias=True)
        picture = F.pad(picture, bars).movedim(1, -1)
    pixels = clip_preprocess(picture, size=size, mean=clip_vision.image_mean, std=clip_vision.image_std).float()
    return pixels * F.pad(pixels.new_ones(where.height, where.width), bars) if fit == patch_grid.LETTERBOX else pixels
