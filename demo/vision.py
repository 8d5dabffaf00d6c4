"""The tiny vision encoder: a CLIP vision model of 128 px, 16 x 16 patches and width 192, which ComfyUI's stock loader takes.

Its registration (demo/registration) tells ComfyUI the sizes; the names of its weights are those of every CLIP vision file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .registration import VISION_CONFIG

FILE = Path(__file__).resolve().parent / "tiny-clip-vision.safetensors"
SIZE, PATCH, WIDTH = (int(VISION_CONFIG[name]) for name in ("image_size", "patch_size", "hidden_size"))
GRID = SIZE // PATCH
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation, which ComfyUI applies to every picture."""


class Vision(nn.Module):
    """`transformers`' CLIP vision model, in which patches can be hidden as Hide in Reference's `hide` does."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        sizes = {name: value for name, value in VISION_CONFIG.items() if name != "model_type"}
        self.model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))

    def forward(self, pictures: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, 128, 128] in 0..1 to the states after the last layer but one [B, 1 + k, 192] and the pooled embedding [B, 128].

        `visible` [B, k] are the numbers of the patches that are seen, in order.
        """
        vision = self.model.vision_model
        mean, deviation = (pictures.new_tensor(numbers).view(3, 1, 1) for numbers in (MEAN, DEVIATION))
        tokens = vision.embeddings((pictures - mean) / deviation)
        chosen = (visible + 1)[..., None].expand(-1, -1, tokens.shape[-1])
        states = vision.pre_layrnorm(torch.cat([tokens[:, :1], tokens.gather(1, chosen)], 1))
        for layer in vision.encoder.layers[:-1]:
            states = _state(layer(states, None))
        last = _state(vision.encoder.layers[-1](states, None))
        return states, self.model.visual_projection(vision.post_layernorm(last[:, 0]))


def _state(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A layer's result; older versions of `transformers` give it in a tuple."""
    return result if isinstance(result, Tensor) else result[0]


def save(vision: Vision, file: Path, about: dict[str, str]) -> None:
    """Half precision, under CLIP's names."""
    from safetensors.torch import save_file

    state = {key: value for key, value in vision.model.state_dict().items() if "position_ids" not in key}
    save_file({key: value.detach().to("cpu", torch.float16).contiguous() for key, value in state.items()}, file, metadata=about)
