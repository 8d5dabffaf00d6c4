"""Steps of transformers with FLUX.1's and Qwen-Image's sizes, few blocks deep: regions of text against the plain step and a dense mask."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import figures as results
from ..speed import measure as bench
from . import shapes
from .checks import Check, Setting, figure

TEXTS = (512, 64, 64)
"""Words of the prompt and of two regions; 4,096 cells at 1024 px."""


@dataclass(frozen=True)
class Family:
    """A transformer as ComfyUI has it: its class, real and toy configuration, its latent's channels, and what its words take."""

    name: str
    kind: str
    real: dict[str, Any]
    toy: dict[str, Any]
    channels: int
    words: str
    pooled: str = ""


FAMILIES: tuple[Family, ...] = (
    Family(
        "FLUX.1's blocks (2 double, 4 single)", "Flux",
        {
            "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
            "mlp_ratio": 4.0, "num_heads": 24, "depth": 2, "depth_single_blocks": 4, "axes_dim": [16, 56, 56], "theta": 10000,
            "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
        },
        {"vec_in_dim": 24, "context_in_dim": 40, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "axes_dim": [4, 6, 6]},
        16, "context_in_dim", "vec_in_dim",
    ),
    Family(
        "Qwen-Image's blocks (4)", "QwenImage",
        {
            "image_model": "qwen_image", "in_channels": 64, "num_layers": 4, "attention_head_dim": 128, "num_attention_heads": 24,
            "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56),
        },
        {"attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 40, "axes_dims_rope": (4, 6, 6)},
        16, "joint_attention_dim",
    ),
)  # fmt: skip


def available() -> bool:
    """Whether this version of the pack has regions of text."""
    return importlib.util.find_spec("maskprompt.attention.prompt_regions") is not None


class Run:
    """A MODEL of a family, a prompt, two regions, and one step through ComfyUI's own sampler."""

    def __init__(self, family: Family, setting: Setting, dtype: torch.dtype) -> None:
        import comfy.model_management as management
        import comfy.supported_models
        from comfy.model_patcher import CoreModelPatcher

        regions, chain, grid = (importlib.import_module(f"maskprompt.attention.{name}") for name in ("prompt_regions", "chain", "grid"))
        given = {**family.real, **(family.toy if setting.small else {})}
        config = getattr(comfy.supported_models, family.kind)(dict(given))
        config.set_inference_dtype(dtype, None)
        base = config.get_model({}, "", device=setting.device)
        shapes.fill(base.diffusion_model)
        self.model = CoreModelPatcher(base.eval(), management.get_torch_device(), management.unet_offload_device())
        self.side = 16 if setting.small else 128
        generator = torch.Generator().manual_seed(3)
        self.latent = torch.randn(
            1, family.channels, *((1,) if family.kind == "QwenImage" else ()), self.side, self.side, generator=generator
        )
        counts = (7, 5, 4) if setting.small else TEXTS
        words = [torch.randn(1, count, given[family.words], generator=generator) for count in counts]
        pooled = {"pooled_output": torch.randn(1, given[family.pooled], generator=generator)} if family.pooled else {}
        self.prompt = [[words[0], pooled]]
        left = torch.zeros(1, 8 * self.side, 8 * self.side)
        left[:, :, : 4 * self.side] = 1
        scope = chain.Scope(half="positive")
        placed = zip(words[1:], (left, 1 - left), strict=True)
        self.regions = tuple(regions.PromptRegion(text, grid.RegionMask(mask), scope=scope) for text, mask in placed)
        self.with_regions = regions.install(self.model, *self.regions)
        self.longer = [[torch.cat(words, 1), pooled]]
        self.counts = counts

    def step(self, model: Any, prompt: Any) -> Tensor:
        import comfy.sample

        return comfy.sample.sample(
            model, self.latent, 1, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(self.latent), seed=3, disable_pbar=True
        )  # fmt: skip

    def dense(self) -> Any:
        """The same regions by a mask of N x N over the words of all texts joined to one prompt."""
        from comfy.ldm.modules.attention import attention_pytorch

        clone, words, cells = self.model.clone(), sum(self.counts), (self.side // 2) ** 2
        text = torch.repeat_interleave(torch.arange(3), torch.tensor(self.counts))
        left = torch.arange(cells) % (self.side // 2) < self.side // 4
        seen = torch.ones(words + cells, words + cells, dtype=torch.bool)
        seen[:words, :words] = text[:, None] == text[None, :]
        inside = torch.stack([torch.ones_like(left), left, ~left])[text]
        seen[:words, words:], seen[words:, :words] = inside, inside.T
        placed: dict[torch.device, Tensor] = {}

        def override(_function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
            kwargs.pop("transformer_options", None)
            if q.device not in placed:
                placed[q.device] = seen.to(q.device)[None, None]
            return attention_pytorch(q, k, v, heads, mask=placed[q.device], **kwargs)

        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return clone


def steps(family: Family, dtype: torch.dtype) -> Callable[[Setting], list[results.Figure]]:
    """Two regions against no regions at the same number of words, against a dense mask, and that dense mask and regions agree."""

    def run(setting: Setting) -> list[results.Figure]:
        one = Run(family, setting, dtype)
        label = f"a step of {family.name}, {str(dtype).removeprefix('torch.')}, two regions of text"
        masked = one.dense()
        ours = functools.partial(one.step, one.with_regions, one.prompt)
        plain = functools.partial(one.step, one.model, one.longer)
        dense = functools.partial(one.step, masked, one.longer)
        rounds = max(2, setting.rounds // 2)
        found = [
            results.ratio(f"{label}: time against as many words without regions", *bench.in_turns(ours, plain, rounds),
                          at_most=1.0 if setting.decides else None),
            results.ratio(f"{label}: time against a dense mask", *bench.in_turns(ours, dense, rounds),
                          at_most=0.7 if setting.decides else None),
        ]  # fmt: skip
        if setting.device.type == "cuda":
            held = bench.peak(ours) / max(1, bench.peak(plain))
            found.append(figure(f"{label}: peak memory against as many words without regions", held, 1.05 if setting.decides else None))
        if family.kind == "Flux":  # whose words have no places, so that a longer prompt is the same as several
            wanted, result = dense(), ours()
            far = float((result - wanted).abs().max() / wanted.abs().max())
            found.append(figure(f"{label}: largest difference to a dense mask", far, 0.03 if dtype != torch.float32 else 1e-4))
        return found

    return run


def checks(setting: Setting) -> list[Check]:
    if not available():
        return []
    return [Check(f"transformers: {family.name}", steps(family, setting.dtypes[-1]), 25) for family in FAMILIES]
