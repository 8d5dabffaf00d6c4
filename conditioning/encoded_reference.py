"""A reference picture made ready for an edit model: encoded without what is hidden, with the tokens of it that may be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.masks import to_mask
from . import references


@dataclass(frozen=True)
class EncodedReference:
    """A latent [B, C, (1,) h, w], its tokens that may be seen, bool [M, rows, columns], and what is shown of it, [M, H, W, 3]."""

    latent: Tensor
    tokens: Tensor
    preview: Tensor


def encode(
    image: Tensor | None,
    vae: Any,
    latent: dict[str, Any] | None,
    show: Tensor | None,
    invert: bool,
    megapixels: float,
    margin: int,
    patch: int,
    latent_pixels: int,
    channels: int,
    whole: bool = False,
) -> EncodedReference:
    """A reference from a picture [B, H, W, C] and a VAE, or from a latent; of it what the mask `show` lets see.

    `patch` is how many latent pixels a token is wide, `latent_pixels` how many pixels of a picture one of them is, `channels` how many
    channels the model's latents have; with `whole` a picture is cut to whole tokens. ValueError in the artist's words for what does not
    fit together.
    """
    if image is None and latent is not None:
        found = _of_latent(latent["samples"], show, invert, margin, patch, latent_pixels)
    elif image is None or latent is not None:
        given = "neither" if image is None else "both"
        raise ValueError(
            f"Reference Region: {given} of image and latent is wired. Wire the reference picture to image (and the VAE to vae)."
        )
    elif vae is None:
        raise ValueError("Reference Region: no VAE was given, and the picture must be encoded. Wire the model's VAE (Load VAE) to vae.")
    else:
        found = _of_picture(image[..., :3].cpu(), vae, show, invert, megapixels * 1024 * 1024, margin, patch, whole)
    hidden = ~found.tokens.flatten(1).any(1)
    if bool(hidden.any()):
        which = "" if len(hidden) == 1 else f" number {int(hidden.nonzero()[0]) + 1} of {len(hidden)}"
        raise ValueError(
            f"Reference Region: the whole reference{which} is hidden: `show` leaves not even half of one token ({patch * latent_pixels} "
            "pixels) to be seen. Its white is what is seen (switch `invert` on if it is the other way round), and a large margin hides "
            "more. The mask of a Load Image without transparency is empty: mark the subject, or unwire show."
        )
    if whole and any(side % patch for side in found.latent.shape[-2:]):
        raise ValueError(
            f"Reference Region: the latent is {found.latent.shape[-1]}x{found.latent.shape[-2]}, but this model takes only multiples of "
            f"{patch}. Wire the picture to image and the VAE to vae in its place."
        )
    if found.latent.shape[1] != channels:
        what = "VAE belongs" if latent is None else "latent belongs"
        raise ValueError(
            f"Reference Region: the {what} to another model: its latents have {found.latent.shape[1]} channels, this model's have "
            f"{channels}. Wire the VAE of the model."
        )
    return found


def _of_picture(
    image: Tensor, vae: Any, show: Tensor | None, invert: bool, pixels: float, margin: int, patch: int, whole: bool
) -> EncodedReference:
    downscale = int(vae.spacial_compression_encode())
    visible = _visible(show, invert, len(image), (image.shape[1], image.shape[2]))
    count = max(len(image), len(visible))
    picture = image.float().expand(count, -1, -1, -1)
    visible = visible.expand(count, -1, -1)
    if not bool(visible.all()) and bool(visible.flatten(1).any(1).all()):
        picture = references.without_hidden(picture, visible)
    picture, visible = references.at_most(picture, visible, pixels, downscale * patch)
    if whole:
        picture = references.cut_to(picture, downscale * patch)
        visible = references.cut_to(visible[..., None], downscale * patch)[..., 0]
    tokens = references.visible_tokens(visible, downscale, patch, margin)
    preview = references.shown(picture, tokens, downscale, patch)
    if not bool(tokens.flatten(1).any(1).all()):  # refused by the caller, and not worth encoding
        return EncodedReference(torch.zeros(1, 0), tokens, preview)
    # One by one: a VAE of a video model takes a batch for a video.
    latent = torch.cat([vae.encode(one[None]) for one in picture])
    return EncodedReference(latent, tokens, preview)


def _of_latent(samples: Tensor, show: Tensor | None, invert: bool, margin: int, patch: int, latent_pixels: int) -> EncodedReference:
    height, width = (side * latent_pixels for side in samples.shape[-2:])
    visible = _visible(show, invert, len(samples), (height, width))
    if visible.shape[1:] != (height, width):
        visible = F.interpolate(visible[:, None].float(), size=(height, width), mode="area")[:, 0] >= 0.5
    tokens = references.visible_tokens(visible, latent_pixels, patch, margin)
    preview = references.shown(torch.ones(len(tokens), height, width, 3), tokens, latent_pixels, patch)
    return EncodedReference(samples.expand(max(len(samples), len(tokens)), *samples.shape[1:]), tokens, preview)


def _visible(show: Tensor | None, invert: bool, count: int, size: tuple[int, int]) -> Tensor:
    """What may be seen of `count` pictures of a size, bool [M, H, W] on the CPU: a mask of another size is brought to it."""
    if show is None:
        return torch.ones(1, *size, dtype=torch.bool)
    masks = to_mask(show).cpu()
    rows, columns = masks.shape[1:]
    if len(masks) != count and 1 not in (len(masks), count):
        raise ValueError(f"Reference Region: show has {len(masks)} masks for {count} references. Give it one, or one for each.")
    if not bool((masks >= 0.5).any()):  # Load Image's mask of a picture without transparency has a size of its own
        masks = torch.zeros(len(masks), *size)
        rows, columns = size
    slack = max(16.0, size[0] / rows, size[1] / columns)
    if abs(rows * size[1] / columns - size[0]) > slack and abs(columns * size[0] / rows - size[1]) > slack:
        raise ValueError(
            f"Reference Region: show is {columns}x{rows} but the reference is {size[1]}x{size[0]}: their shapes differ, so the mask would "
            "land in the wrong place. Make the mask from the reference picture, or scale both alike."
        )
    if (rows, columns) != size:
        masks = F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)[:, 0]
    return (masks < 0.5) if invert else (masks >= 0.5)
