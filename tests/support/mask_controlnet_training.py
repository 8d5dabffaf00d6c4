"""Samples, branches and dense losses of Mask-ControlNet's training."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from maskprompt.conditioning.texts import Texts
from maskprompt.training.data.objects import Example, Given
from maskprompt.training.engine.learner import Learner
from maskprompt.training.mask_controlnet.branch import Branch
from maskprompt.training.mask_controlnet.examples import Batch, Source
from maskprompt.training.mask_controlnet.options import Options
from torch import Tensor

from .learners import conditioning, unet_of

OPTIONS = Options(steps=4, rate=1e-3, batch=1, size=64, text_dropout=0.3, checkpointing=False)


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def model() -> Any:
    """Few blocks; 9 channels, as the tiny model has."""
    return unet_of(32, small=True)


def of_stable_diffusion(dtype: torch.dtype = torch.float32) -> Any:
    """A VAE of Stable Diffusion's kind, narrow, of random weights, as ComfyUI loads it."""
    shape = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 2, 2],
             "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config: Any = {"params": {"ddconfig": shape, "embed_dim": 4}}
    generator = torch.Generator().manual_seed(4)
    state = {}
    for name, value in AutoencoderKL(**config["params"]).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        state[name] = noise / value[0].numel() ** 0.5 if value.ndim > 1 else float(name.endswith("weight")) + 0.1 * noise
    return comfy.sd.VAE(sd=state, config=config, dtype=dtype)


@pytest.fixture(scope="module")
def vae() -> Any:
    return of_stable_diffusion()


class Clip:
    """Each text has a conditioning of its own, drawn from its letters."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> Any:
        self.encoded.append(text)
        return conditioning(sum(ord(letter) for letter in text))


def squares(count: int = 3, height: int = 64, width: int = 64) -> Given:
    """Noise with a bright square in each, somewhere else in each, and its caption."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        image = 0.7 * torch.rand(height, width, 3, generator=generator)
        marks = torch.zeros(1, height, width)
        marks[0, 8 + 8 * number : 32 + 8 * number, 4 : 28 + 4 * number] = 1
        found.append(Example(torch.where(marks[0, ..., None] > 0, torch.tensor([1.0, 0.5, 0.2]), image), marks, f"square {number}"))
    return Given(found)


def source_of(options: Options = OPTIONS, examples: Given | None = None) -> Source:
    return Source(examples or squares(), options.batch, options.size, options.text_dropout)


def known(*texts: str) -> Texts:
    found = Texts(Clip())
    found.know(texts)
    return found


def batch_of(height: int = 32, width: int = 64) -> Batch:
    """Two pictures of one wide bucket, another one as reference for each, soft masks."""
    generator = torch.Generator().manual_seed(2)
    reference, image = (torch.rand(2, 3, height, width, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, height, width)
    mask[0, :, 4:20, 8:50] = 1
    mask[1, :, 12:, :32] = 1
    mask[:, :, 15:17] = 0.5
    return Batch(reference, mask, image, ("a red ball", ""))


def moved(branch: Branch) -> Branch:
    """As after some training, by numbers that half precision holds exactly: no layer is zero, and the hint reaches over 0..1."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in branch.parameters.values():
            size = 0.3 * value.std().nan_to_num() + (0.05 if value.abs().max() == 0 else 0)
            value.copy_((value + size * torch.randn(value.shape, generator=generator)).half())
    return branch


def branch_of(learner: Learner, vae: Any, options: Options = OPTIONS) -> Branch:
    branch = Branch(learner, vae, options)
    branch.load()
    return branch


def noise_for(batch: Batch) -> Tensor:
    size = batch.image.shape[2] // 8, batch.image.shape[3] // 8
    return torch.randn(len(batch.image), 4, *size, generator=torch.Generator().manual_seed(3))


def lit(values: dict[str, Any]) -> set[str]:
    """The names of those with a gradient."""
    return {name for name, value in values.items() if value.grad is not None and bool(value.grad.any())}
