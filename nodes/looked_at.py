"""What Attention Map looks at and draws on: the latent, its noise level, the picture behind the maps."""

from __future__ import annotations

from typing import Any

import torch

from ..images import heat_map


def latent_of(model: Any, latent: dict[str, Any] | None, image: torch.Tensor | None, vae: Any) -> dict[str, Any]:
    """The LATENT to look at, with as many channels as the model has, and with frames if it has these. ValueError if there is none."""
    import comfy.sample

    if latent is None:
        if image is None or vae is None:
            raise ValueError("there is no picture to look at: wire `latent`, or `image` together with `vae`.")
        smallest = int(vae.spacial_compression_encode())
        if min(image.shape[-3:-1]) < smallest:
            raise ValueError(
                f"the picture is {image.shape[-2]}x{image.shape[-3]} pixels, and the VAE takes no side under {smallest}. Wire a larger one."
            )
        latent = {"samples": vae.encode(image[..., :3])}
    # Later ComfyUIs make an empty latent fit the model's own factor too.
    ratios = {name: latent[name] for name in ("downscale_ratio_spacial", "downscale_ratio_temporal") if latent.get(name) is not None}
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)
    wanted = model.get_model_object("latent_format")
    if samples.ndim != wanted.latent_dimensions + 2:
        raise ValueError(
            f"the latent has {samples.ndim - 2} dimensions beside batch and channels {list(samples.shape)}, and this model takes "
            f"{wanted.latent_dimensions} (a picture has 2, a video 3). Wire a latent of this model."
        )
    if samples.shape[1] != wanted.latent_channels:
        raise ValueError(
            f"the latent belongs to another model: it has {samples.shape[1]} channels, this model's have {wanted.latent_channels}. Wire a "
            "latent of this model, or `image` with the model's own VAE."
        )
    return {**latent, "samples": samples}


def noise_level(model: Any, at_percent: float, sigma: float) -> float:
    """The sigma to look at, within what the model knows."""
    sampling = model.get_model_object("model_sampling")
    wanted = sigma if sigma > 0 else float(sampling.percent_to_sigma(at_percent))
    return min(max(wanted, float(sampling.sigma_min)), float(sampling.sigma_max))


def background(heat: torch.Tensor, latent: dict[str, Any] | None, image: torch.Tensor | None, vae: Any) -> torch.Tensor:
    """What the maps [images, words, H, W] are drawn on, [N, H, W, 3]: the image, else the latent's picture, else grey."""
    import comfy.utils

    height, width = heat.shape[-2:]
    if image is None and latent is not None and vae is not None:
        image = vae.decode(latent["samples"])
    if image is None:
        return torch.full((1, height, width, 3), 0.3)
    if image.ndim == 5:  # a video: [B, frames, H, W, 3]
        image = image.flatten(0, 1)
    # As the VAE crops it.
    return comfy.utils.common_upscale(image[..., :3].movedim(-1, 1), width, height, "bilinear", "center").movedim(1, -1).float().cpu()


def draw(heat: torch.Tensor, names: list[str], pictures: torch.Tensor, spread: bool = False) -> torch.Tensor:
    """Overlays [words · images, H, W, 3] of maps [images, words, H, W], all pictures of the first word first.

    Maps take the pictures in turn; with `spread` those at their place in time, for a video has more frames than its latent.
    """
    which = torch.linspace(0, len(pictures) - 1, len(heat)).round().long() if spread else torch.arange(len(heat)) % len(pictures)
    # Pillow's own font has the letters of English alone: words of other ones are told apart by their number.
    labels = [name if name.isascii() else f"{number}: {name}" for number, name in enumerate(names, 1)]
    return torch.stack(
        [
            heat_map.overlay(pictures[int(which[number])], heat[number, word], label)
            for word, label in enumerate(labels)
            for number in range(len(heat))
        ]
    )
