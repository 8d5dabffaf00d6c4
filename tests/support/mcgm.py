"""Pose by Masks and Load Poseable Subjects, run."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from maskprompt.conditioning.handles import Handle
from maskprompt.models.mcgm import mask_encoder
from maskprompt.models.mcgm.file import About, LoadedEncoder
from maskprompt.nodes.mcgm import EncodeMasks

from .mask_encoders import CAT, DOG

WIDTH = 128


def encoder(width: int = WIDTH, subjects: int = 0, known: tuple[Handle, ...] = (CAT, DOG)) -> LoadedEncoder:
    """A mask encoder whose tokens are as large as the random texts of the tests; with a vector for each subject if bound."""
    network = mask_encoder.fresh(width, subjects, seed=7).requires_grad_(False)
    network.linear.weight *= 5
    if network.subjects is not None:
        network.subjects.copy_(torch.randn(subjects, width, generator=torch.Generator().manual_seed(2)))
    return LoadedEncoder(network, About(known), "fox.safetensors")


def text(seed: int = 1, length: int = 77, width: int = WIDTH, **options: Any) -> list[Any]:
    return [torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed)), options]


def encoded(masks: Any, positive: Any = None, negative: Any = None, loaded: LoadedEncoder | None = None, **more: Any) -> tuple[Any, Any]:
    """The two CONDITIONINGs that Pose by Masks gives."""
    result = EncodeMasks.execute(positive or [text(1)], negative or [text(2)], loaded or encoder(), masks=masks, **more).args
    return result[0], result[1]


def painted(model: Any, conditionings: tuple[Any, Any], size: tuple[int, int] = (16, 16), batch: int = 1, steps: int = 2) -> torch.Tensor:
    import comfy.sample

    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(1))
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, steps, 4.0, "euler", "normal", *conditionings, empty, seed=1, disable_pbar=True)


def passes(model: Any, conditionings: tuple[Any, Any], size: tuple[int, int] = (16, 16)) -> list[tuple[int, int]]:
    """(pictures, tokens) of each forward pass through the UNet in one step."""
    seen: list[tuple[int, int]] = []

    def counted(executor: Any, x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        context = rest[1] if len(rest) > 1 else more["context"]
        seen.append((len(x), context.shape[1]))
        return executor(x, *rest, **more)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", counted)
    painted(watched, conditionings, size, steps=1)
    return seen
