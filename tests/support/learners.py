"""Small models that learn, and what tells whether weights changed."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from maskprompt.training.dreamcom.examples import Examples
from maskprompt.training.dreamcom.job import ready
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import job as engine
from maskprompt.training.engine import loop
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.trainable_weights import Method
from torch import Tensor

from .unets import SD15

METHODS: tuple[Method, ...] = ("lora", "full")


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


PARTS = ("patches", "object_patches", "wrappers", "injections", "model_options", "backup", "callbacks", "attachments")


def examples(count: int = 4, side: int = 8, seed: int = 0) -> Examples:
    """Random latents, each with a box of its own and a strip of padding."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(count, side * 8, side * 8, dtype=torch.bool)
    valid = torch.ones(count, 1, side, side)
    for number in range(count):
        boxes[number, 8 * (number % 2) : side * 5, 8 : side * 6 + number] = True
    valid[:, :, :, -1] = 0
    latents, masked = (torch.randn(count, 4, side, side, generator=generator) for _ in range(2))
    return Examples(latents, masked, boxes, valid)


def with_lora(model: Any, state: dict[str, Tensor], strength: float = 1.0) -> Any:
    """The MODEL that the stock loader gives for a LORA_MODEL."""
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]


def conditioning(seed: int = 0, **more: Any) -> list[list[Any]]:
    return [[torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(seed)), more]]


def train(learner: Learner, given: Examples, text: Any, options: Options, **more: Any) -> loop.Progress:
    """By its job, on these examples (the learner must be loaded)."""
    fingerprint = more.pop("fingerprint", "")
    job = ready(learner, [text, text], options, fingerprint, examples=given)
    path = more.pop("state", None)
    return engine.train(job, job.states(path) if path else (), **more)


def trained(learner: Learner, steps: int = 3, **more: Any) -> loop.Progress:
    """A short training on random examples (the learner must be loaded)."""
    options = Options(noun="ball", steps=steps, method=learner.method, size=64, rate=more.pop("rate", 1e-3))
    return train(learner, examples(), conditioning(), options, **more)


def unet_of(channels: int, small: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A MODEL with SD 1.5's blocks at this many channels and text of 128, an inpainting one, of random weights; `small`: fewer blocks."""
    import comfy.supported_models

    fewer = {"num_res_blocks": [1, 1], "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]}
    widths = {"model_channels": channels, "context_dim": 128, **(fewer if small else {})}
    return of_random_weights(comfy.supported_models.SD15({**SD15, **widths}), dtype)


def of_random_weights(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """As ComfyUI loads it on a CPU: weights in half precision are used in float32."""
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    base = config.get_model({}, device=torch.device("cpu"))
    base.set_inpaint()
    generator = torch.Generator().manual_seed(0)
    for value in base.diffusion_model.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data = (noise / value[0].numel() ** 0.5 if value.ndim > 1 else 1 + 0.1 * noise).to(dtype)
    return ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> Any:
    """Fewer blocks than SD 1.5 has, where it is not the blocks that matter."""
    return unet_of(32, small=True)


def roughened(learner: Learner) -> None:
    """As after a long training: weights that have moved far enough to be seen, and that half precision holds exactly."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in learner.parameters.items():
            noise = torch.randn(value.shape, generator=generator)
            if learner.method == "lora":
                value.copy_((value + 0.1 * noise).half())
            else:
                start = learner.adapted.start[name].float()
                value.copy_(start + (0.05 * noise * (start.abs().mean() + 0.01)).half())


def predicted(model: Any, seed: int = 1) -> Tensor:
    """What a MODEL makes of some noise, as the sampler asks it: [2, 4, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    sigmas = torch.tensor([0.7, 3.0])
    concat = torch.randn(2, 5, 8, 8, generator=generator)
    text = torch.randn(1, 77, 128, generator=generator).expand(2, -1, -1)
    comfy.model_management.load_models_gpu([model])
    with torch.inference_mode():
        return model.model.apply_model(noisy, sigmas, c_concat=concat, c_crossattn=text, transformer_options={})


def learner_predicts(learner: Learner, seed: int = 1) -> Tensor:
    with torch.no_grad():
        return predicted(learner.patcher, seed)


def fingerprint(model: Any) -> tuple[Any, ...]:
    """Everything about a MODEL that a training might change, but for what loading it does."""
    comfy.model_management.unload_all_models()
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    forwards = [name for name, module in model.model.named_modules() if "forward" in vars(module)]
    grads = [name for name, value in model.model.named_parameters() if value.requires_grad or value.grad is not None]
    return weights, {part: repr(getattr(model, part)) for part in PARTS}, model.patches_uuid, forwards, grads


def unchanged(model: Any, before: tuple[Any, ...]) -> bool:
    now = fingerprint(model)
    same = now[0].keys() == before[0].keys() and all(same_bits(now[0][name], before[0][name]) for name in before[0])
    return same and now[1:] == before[1:]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Bit by bit: what a checkpoint does not hold is whatever lay in memory, which may be no number, and no number equals itself."""
    parts = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(parts[0], parts[1])


def with_another_lora(model: Any) -> Any:
    """A clone of the MODEL with random LoRAs on two layers, as a stock loader leaves it."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name in ("input_blocks.1.1.transformer_blocks.0.attn2.to_k", "output_blocks.3.0.out_layers.3"):
        weight = model.model.state_dict()[f"diffusion_model.{name}.weight"]
        state[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.2
        state[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(4, weight[0].numel(), generator=generator) * 0.2
    return with_lora(model, state, 0.8)
