"""Tiny transformers of random weights: ComfyUI's own classes, as MODELs that its own sampler runs.

What a test must know of them (where words, cells and references stand) is written here by hand, from the models' papers and sources, and
does not come from the pack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .dense import Token, listed

Options = dict[str, Any]


@dataclass(frozen=True)
class Tiny:
    """A family at toy size. `patch` is the latent's pixels to a cell along one axis; `text` the width of its words."""

    name: str
    config: Callable[[], Any]
    channels: int
    text: int
    patch: int = 2
    order: tuple[str, ...] = ("words", "cells", "references")
    frames: int | None = None
    references: bool = False
    options: Options = field(default_factory=dict)
    positions: Callable[[Sequence[int]], Any] | None = None
    layout: Callable[..., Any] | None = None
    padded: int = 0
    """To how many words the model fills a shorter prompt up, in front."""

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """A MODEL on the CPU."""
        import comfy.model_patcher

        config = self.config()
        config.set_inference_dtype(dtype, None)
        torch.manual_seed(seed)
        model = config.get_model({}, "", device=torch.device("cpu"))
        state = model.diffusion_model.state_dict()
        filled = {name: _filled(value) for name, value in state.items()}
        model.diffusion_model.load_state_dict(filled)
        return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))

    def latent(self, size: tuple[int, int], batch: int = 1, seed: int = 1, frames: int | None = None) -> torch.Tensor:
        time = () if self.frames is None else (frames or self.frames,)
        return torch.randn(batch, self.channels, *time, *size, generator=torch.Generator().manual_seed(seed))

    def words(self, count: int, seed: int, batch: int = 1) -> torch.Tensor:
        return torch.randn(batch, count, self.text, generator=torch.Generator().manual_seed(seed))

    def grid(self, size: tuple[int, int], frames: int | None = None) -> tuple[int, int, int]:
        time = 1 if self.frames is None else frames or self.frames
        return time, math.ceil(size[0] / self.patch), math.ceil(size[1] / self.patch)

    def tokens(self, texts: Sequence[int], size: tuple[int, int], references: Sequence[int] = (), frames: int | None = None) -> Any:
        """What the tokens of a call are, `dense.override`'s first argument: `texts` are the lengths of the prompt and of each region."""
        count = math.prod(self.grid(size, frames))
        texts = [max(texts[0], self.padded), *texts[1:]]
        words = [("words", length, number) for number, length in enumerate(texts)]
        if self.layout is not None:
            return self.layout(words, count, references)
        every = listed(*words, ("cells", count), *(("reference", length, number) for number, length in enumerate(references)))

        def told(queries: int, keys: int, _options: Options) -> tuple[list[Token], list[Token]]:
            assert queries == keys == len(every)
            return every, every

        return told


def _filled(value: torch.Tensor) -> torch.Tensor:
    """Weights in which nothing is zero and nothing explodes."""
    if not value.is_floating_point():
        return value
    if value.ndim < 2:
        return (1 + 0.1 * torch.randn(value.shape)).to(value.dtype)
    return (torch.randn(value.shape) * 0.8 / math.sqrt(value[0].numel())).to(value.dtype)


def _flux(**more: Any) -> Any:
    import comfy.supported_models

    return comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 40, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], **more,
    })  # fmt: skip


def _flux2() -> Any:
    import comfy.supported_models

    return comfy.supported_models.Flux2({
        "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 40, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1,
        "qkv_bias": False, "guidance_embed": True, "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
        "default_ref_method": "index", "ref_index_scale": 10.0,
    })  # fmt: skip


def _chroma() -> Any:
    import comfy.supported_models

    return comfy.supported_models.Chroma({
        "image_model": "chroma", "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": 40, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "txt_ids_dims": [], "in_dim": 64, "out_dim": 64, "hidden_dim": 48, "n_layers": 2,
    })  # fmt: skip


def _ending_alike(texts: Sequence[int]) -> Any:
    """Flux.2's places: each text ends where the prompt ends, which is padded to 512."""

    def moved(values: Options) -> Options:
        if values["txt_ids"].shape[1] != 512 + sum(texts[1:]):  # the negative prompt, alone
            return values
        ids, place = values["txt_ids"].clone(), 512
        for count in texts[1:]:
            ids[:, place : place + count, 3] = torch.arange(512 - count, 512.0)
            place += count
        return {**values, "txt_ids": ids}

    return moved


POOLED = torch.randn(1, 24, generator=torch.Generator().manual_seed(5))

TINIES: tuple[Tiny, ...] = (
    Tiny("Flux.1", _flux, 16, 40, references=True, options={"pooled_output": POOLED}),
    Tiny("Flux.1 Fill", lambda: _flux(in_channels=96), 16, 40, options={"pooled_output": POOLED}),
    Tiny("Flux.2", _flux2, 128, 40, patch=1, references=True, positions=_ending_alike, padded=512),
    Tiny("Chroma", _chroma, 16, 40),
)
