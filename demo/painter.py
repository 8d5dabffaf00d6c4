"""The tiny model painting, in process, with the very functions that ComfyUI's stock nodes call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import tiny_model

tiny_model.comfyui_on_path()

SAMPLER = "euler"
SCHEDULER = "normal"
STEPS = 20
CFG = 4.0


def _loaded(parts: Any) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of what the loader gives."""
    return parts[0], parts[1], parts[2]


class Painter:
    """Loads the checkpoint as Load Checkpoint does. Pictures are [B, H, W, 3] in 0..1, masks [B, H, W]."""

    def __init__(self, checkpoint: Path = tiny_model.CHECKPOINT) -> None:
        import comfy.sd

        from . import registration

        registration.register()
        self.model, self.clip, self.vae = _loaded(comfy.sd.load_checkpoint_guess_config(str(checkpoint)))

    def text(self, captions: list[str]) -> Tensor:
        """Conditioning of several captions as one batch [B, 77, 128]."""
        return torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(caption)) for caption in captions])

    @torch.no_grad()
    def paint(self, captions: list[str], seed: int, size: int = 128, steps: int = STEPS, cfg: float = CFG, model: Any = None) -> Tensor:
        """Whole pictures, one for each caption: Empty Latent Image, KSampler, VAE Decode."""
        latent = torch.zeros(len(captions), 4, size // 8, size // 8)
        return self._sample(model or self.model, captions, latent, seed, steps, cfg, {})

    @torch.no_grad()
    def inpaint(
        self, pictures: Tensor, masks: Tensor, captions: list[str], seed: int, steps: int = STEPS, cfg: float = CFG, model: Any = None
    ) -> Tensor:
        """Pictures with their masks painted anew: InpaintModelConditioning, KSampler, VAE Decode. No pasting back."""
        hidden = (pictures - 0.5) * (1 - masks.round()[..., None]) + 0.5
        latent = self.vae.encode(pictures)
        values = {"concat_latent_image": self.vae.encode(hidden), "concat_mask": masks[:, None]}
        return self._sample(model or self.model, captions, latent, seed, steps, cfg, values, masks[:, None])

    def _sample(
        self,
        model: Any,
        captions: list[str],
        latent: Tensor,
        seed: int,
        steps: int,
        cfg: float,
        values: dict[str, Any],
        mask: Tensor | None = None,
    ) -> Tensor:
        import comfy.sample

        noise = comfy.sample.prepare_noise(latent, seed)
        positive, negative = ([[self.text(texts), dict(values)]] for texts in (captions, [""] * len(captions)))
        done = comfy.sample.sample(
            model, noise, steps, cfg, SAMPLER, SCHEDULER, positive, negative, latent, noise_mask=mask, seed=seed, disable_pbar=True
        )  # fmt: skip
        return self.vae.decode(done).clamp(0, 1)
