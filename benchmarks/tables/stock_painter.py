"""tiny-edit as ComfyUI's stock nodes load it and its own sampler paints with it, for the tables of what transformers do under the nodes.

Painted pictures stay in demo/work/tiny-edit under keys of their settings and of the weights, which know nothing of the code: delete that
folder after a change to what paints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo import tiny_model
from demo.tiny_edit import AUTOENCODER, TEXT, TRANSFORMER
from demo.tiny_edit.latents import CHANNELS
from demo.tiny_edit.painter import CFG, STEPS
from demo.trainer import device_of, learns_in_bfloat16

from ..cache import Kept, pictures_in, sha

FILES = tiny_model.ROOT / "demo"
"""Where the files of tiny-edit are that everyone gets."""
WORK = tiny_model.ROOT / "demo" / "work" / "tiny-edit"
FORMAT = 3


def weights(folder: Path = FILES) -> str:
    """Tells tiny-edit's files in a folder from any others: what a table that was measured with them keeps beside its figures."""
    return sha(b"".join((folder / name).read_bytes() for name in (TRANSFORMER, TEXT, AUTOENCODER)))


def precision() -> torch.dtype:
    """Gives what the model computes in: bfloat16, as ComfyUI lets it on a GPU, where that is fast; float32 on other processors."""
    return torch.bfloat16 if learns_in_bfloat16(device_of()) else torch.float32


@dataclass(frozen=True)
class Painting:
    """The pixels of a side and the steps of sampling: what the sizes of all tables of this painter have."""

    size: int = 256
    steps: int = STEPS

    @property
    def settings(self) -> str:
        """Says how the pictures were painted."""
        kind = str(precision()).removeprefix("torch.")
        return f"{self.steps} steps of Euler, CFG {CFG}, {self.size} pixels, in {kind}, the same noise for all ways of a case"


class StockPainter:
    """Holds model, text encoder and autoencoder out of a folder's files."""

    def __init__(self, folder: Path = FILES) -> None:
        import comfy.sd
        import comfy.utils

        from demo import registration

        registration.register()
        registration.tiny_edit.register()
        transformer, text, autoencoder = parts = [folder / name for name in (TRANSFORMER, TEXT, AUTOENCODER)]
        self.model = comfy.sd.load_diffusion_model(str(transformer))
        self.model.set_model_compute_dtype(precision())
        self.clip = comfy.sd.load_clip([str(text)], clip_type=comfy.sd.CLIPType.FLUX2)
        self.vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(autoencoder)))
        WORK.mkdir(parents=True, exist_ok=True)
        self.kept = Kept(
            WORK, {"format": FORMAT, "weights": [sha(file.read_bytes()) for file in parts], "cfg": CFG, "in": str(precision())}
        )

    def once(self, size: int, paint: Callable[[], Tensor], **settings: Any) -> Tensor:
        """Gives the picture [3, size, size] that `paint` gives; with the same settings it is painted once and read after that."""
        file = self.kept.file("painted", size=size, **settings).with_suffix(".png")
        return pictures_in(file, size, lambda: paint().movedim(0, -1)[None])[0].movedim(-1, 0)

    def words(self, text: str) -> list[Any]:
        """Encodes a text as CLIP Text Encode does."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def showing(self, conditioning: list[Any], pictures: Sequence[Tensor]) -> list[Any]:
        """Adds pictures [1, S, S, 3] as references, as Reference Latent does."""
        import node_helpers

        latents = [self.vae.encode(picture) for picture in pictures]
        return node_helpers.conditioning_set_values(conditioning, {"reference_latents": latents}, append=True)

    @torch.no_grad()
    def sample(self, model: Any, positive: list[Any], negative: list[Any], size: int, steps: int, seed: int) -> Tensor:
        """Paints a picture [3, size, size] in 0..1 as KSampler does (euler, simple)."""
        import comfy.sample

        noise = torch.randn(1, CHANNELS, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
        painted = comfy.sample.sample(
            model, noise, steps, CFG, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=seed, disable_pbar=True
        )  # fmt: skip
        return self.vae.decode(painted)[0].movedim(-1, 0).clamp(0, 1).cpu()
