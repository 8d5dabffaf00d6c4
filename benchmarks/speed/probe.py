"""A training step with the probe against one that stores every cross-attention map, as ratios of time and of extra memory.

SD 1.5's blocks with random weights, 256 px, a LoRA through `training.learner`, batch 1: the losses of MCGM's equations 1 to 3 for two
subjects. Both sides in one run on the same machine, taken in turns. Extra memory is the peak beyond that of the step without maps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..figures import Figure, ratio
from .measure import SD15, device, peak, seconds

TOKENS = 79
"""77 of text and two mask tokens."""
WANTED = ((5,), (8,), (77,), (78,))
"""Two handles and two mask tokens."""
WEIGHTS = (1.0, 1.0, 0.3, 0.3)
"""Equation 3: lambda_m is 0.3."""

PLAIN = "no maps"
OURS = "the probe"
STORED = "every cross-attention map stored"
WRITTEN = "the same with self-attention written out too"


@dataclass
class Store:
    """The usual way: attention written out in every layer, its maps kept, those of 16 x 16 cells averaged at the end."""

    kind: Any
    scope: Any
    maps: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Any, inner: Any) -> Tensor:
        heads = [x.unflatten(2, (call.heads, -1)).transpose(1, 2) for x in (q, k, v)]
        weights = (heads[0] @ heads[1].mT * heads[0].shape[-1] ** -0.5).softmax(-1)
        if self.kind == "cross":
            self.maps.setdefault(call.layer, weights)
        return (weights @ heads[2]).transpose(1, 2).flatten(2)

    def mean(self, chosen: frozenset[Any], grid: tuple[int, int]) -> Tensor:
        """[B, wanted, h, w] over layers and heads."""
        mean = torch.stack([self.maps[layer] for layer in chosen]).mean((0, 2))
        return mean[..., [column for (column,) in WANTED]].mT.unflatten(2, grid)


def random_model(unet: dict[str, Any]) -> Any:
    """A MODEL of these blocks, of random weights, as a checkpoint loader gives it."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    target = device()
    dtype = torch.float32 if target.type == "cpu" else torch.bfloat16
    config = comfy.supported_models.SD15(unet)
    config.set_inference_dtype(dtype, None)
    base: Any = config.get_model({}, device=target)
    for value in base.diffusion_model.parameters():
        torch.nn.init.normal_(value, std=0.02)
    return ModelPatcher(base.to(dtype), target, target)


def attention_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """Equations 2 and 3: each map over its own maximum against its mask; maps and masks [B, wanted, h, w]."""
    error = (maps / maps.amax((2, 3), keepdim=True) - masks) ** 2
    return (error.float().mean((0, 2, 3)) * torch.tensor(WEIGHTS, device=maps.device)).sum()


def steps(learner: Any, side: int) -> dict[str, Callable[[], float]]:
    """A training step without maps, with the probe, and with stored maps, on latents of side x side: each gives its loss."""
    from maskprompt.attention import chain, probe
    from maskprompt.attention.maps import Readings

    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1, 4, side, side, generator=generator).to(learner.device) for _ in range(2))
    width = learner.network.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2.to_k.in_features
    prompt = [[torch.randn(1, TOKENS, width, generator=generator), {}]]
    chosen = probe.layers_near(learner.network.diffusion_model, (side, side), 16)
    conditions = learner.conditions(prompt, latents)
    sigmas = torch.ones(1, device=learner.device)

    def step(patches: tuple[Any, ...] = (), maps: Callable[[], Tensor] | None = None) -> float:
        with torch.enable_grad():
            loss = ((learner.denoised(latents + noise, sigmas, conditions, patches) - latents) ** 2).mean()
            if maps is not None:
                found = maps()
                disc = torch.zeros_like(found)
                disc[:, :, : disc.shape[2] // 2] = 1
                loss = loss + 0.01 * attention_loss(found, disc)
            loss.backward()
        for value in learner.parameters.values():
            value.grad = None
        return float(loss.detach())

    def probed() -> float:
        readings = Readings()
        return step((probe.Probe((WANTED,), TOKENS, readings, chain.Scope(chosen)),), readings.mean)

    def stored(kinds: tuple[str, ...]) -> float:
        patches = [Store(kind, chain.EVERYWHERE) for kind in kinds]
        return step(tuple(patches), lambda: patches[0].mean(chosen, (min(16, side), min(16, side))))

    return {PLAIN: step, OURS: probed, STORED: lambda: stored(("cross",)), WRITTEN: lambda: stored(("cross", "self"))}


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Times of all, after one unmeasured run of each, in another order each round so that a slow moment hits each of them."""
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(runs[name]))
    return times


def probe(rounds: int = 4, side: int = 32, unet: dict[str, Any] | None = None) -> list[Figure]:
    """Latents of 32 x 32 are 256 px. With gradient checkpointing, as training runs by default, and without."""
    from maskprompt.training.engine.learner import Learner

    figures: list[Figure] = []
    for checkpointing in (True, False):
        learner = Learner(random_model({**SD15, "in_channels": 4, **(unet or {})}), "lora", checkpointing=checkpointing)
        with learner.loaded():
            figures += compared(steps(learner, side), f"training step, {'' if checkpointing else 'no '}checkpointing", rounds)
        del learner
        gc.collect()
    return figures


def compared(runs: dict[str, Callable[[], float]], way: str, rounds: int) -> list[Figure]:
    """The probe against either way of storing, and against no maps at all."""
    losses = {name: run() for name, run in runs.items()}
    if abs(losses[OURS] - losses[STORED]) > 1e-3 * abs(losses[STORED]):
        raise AssertionError(f"the two sides do not reckon the same loss: {losses}")
    peaks = {name: peak(run) for name, run in runs.items()}
    more = {name: max(size - peaks[PLAIN], 0) for name, size in peaks.items()}
    print(f"{way}: {peaks[PLAIN] / 2**20:.1f} MB without maps; more: { ({name: f'{size / 2**20:.2f} MB' for name, size in more.items()}) }")
    times = in_turns(runs, rounds)
    figures = [ratio(f"{way}, probe against no maps: time", times[OURS], times[PLAIN])]
    for name, bars in ((STORED, (0.7, 0.6)), (WRITTEN, (None, None))):
        figures.append(ratio(f"{way}, probe against {name}: time", times[OURS], times[name], at_most=bars[0]))
        figures.append(ratio(f"{way}, probe against {name}: extra memory", [more[OURS]], [max(more[name], 1)], at_most=bars[1]))
    return figures
