"""Text encoders that learn, and what stock nodes make of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import torch
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.text_learner import PLACEHOLDER, TextLearner
from maskprompt.training.engine.trainable_weights import Method
from torch import Tensor

from demo import tiny_model

from .learners import unet_of

METHODS: tuple[Method, ...] = ("lora", "full")
KINDS = {
    "l": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
    "h": (comfy.text_encoders.sd2_clip.SD2ClipModel, comfy.text_encoders.sd2_clip.SD2Tokenizer),
    "lg": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
}
"""The text encoders of SD 1.5, SD 2.1 and SDXL, by their letters."""
WIDTHS = {"l": 32, "h": 40, "g": 48}
LAYERS = 3
LONG = "a photo of x beside " + "one old stone house, two tall trees, " * 9 + "and x at sea"


def small_clip(kind: str, dtype: torch.dtype = torch.float32, folder: Path | None = None) -> Any:
    """A CLIP of three narrow layers, as ComfyUI builds it for a checkpoint; random weights. It finds embeddings in `folder`."""
    made, tokenizer = KINDS[kind]
    options: dict[str, Any] = {"dtype": dtype}
    for letter, width in WIDTHS.items():
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": LAYERS}
        options[f"clip_{letter}_model_config"] = sizes
    target = comfy.supported_models_base.ClipTarget(tokenizer, made)
    clip = comfy.sd.CLIP(target, folder and [str(folder)], model_options=options, disable_dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in clip.cond_stage_model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "embedding" in name or value.ndim < 2:
            value.data = (("norm" in name and name.endswith("weight")) + 0.2 * noise).to(dtype)
        else:
            value.data = (1.5 * noise / value.shape[1] ** 0.5).to(dtype)
    for letter in kind:
        getattr(clip.tokenizer, f"clip_{letter}").embedding_size = WIDTHS[letter]
    return clip


clip_of = functools.cache(small_clip)
"""The same, kept: a learner only reads it."""


def with_a_lora(clip: Any) -> Any:
    """A clone of the CLIP with a random LoRA on some layers, as a stock loader leaves it."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, weight in clip.patcher.model.state_dict().items():
        if name.endswith(("layers.0.self_attn.v_proj.weight", "layers.1.mlp.fc2.weight")):
            layer = f"text_encoders.{name.removesuffix('.weight')}"
            state[f"{layer}.lora_up.weight"] = 0.2 * torch.randn(weight.shape[0], 4, generator=generator)
            state[f"{layer}.lora_down.weight"] = 0.2 * torch.randn(4, weight.shape[1], generator=generator)
    return with_a_state(None, clip, state, 0.8)[1]


def with_a_state(model: Any, clip: Any, state: dict[str, Tensor], strength: float = 1.0) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with a LORA_MODEL, by the stock loader."""
    return comfy.sd.load_lora_for_models(model, clip, state, 1, strength)


@contextmanager
def loaded(text: TextLearner) -> Iterator[TextLearner]:
    """The text encoder ready to learn, beside a UNet that does not."""
    with Learner(unet(), "frozen", text=text, checkpointing=False).loaded():
        yield text


@functools.cache
def unet() -> Any:
    return unet_of(32, small=True)


def stock(clip: Any, prompt: str) -> list[Any]:
    """What a stock Text Encode node gives."""
    with torch.inference_mode():
        (entry,) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return entry


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two texts of a CONDITIONING are equal to the bit."""
    pooled = [entry[1]["pooled_output"] for entry in (one, other)]
    return one[1].keys() == other[1].keys() and torch.equal(one[0], other[0]) and torch.equal(*pooled)


def roughened(text: TextLearner) -> None:
    """As after a long training: all that learns has moved far enough to be seen, by what half precision holds exactly."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in text.parameters.items():
            noise = torch.randn(value.shape, generator=generator)
            if name in text.adapted.parameters and text.adapted.method == "full":
                value.add_((0.1 * noise * (value.abs().mean() + 0.01)).half())
            else:
                value.copy_((value + 0.1 * noise).half())


TOKENIZER = tiny_model.tokenizer()
X = TOKENIZER(PLACEHOLDER).input_ids[1]
