"""Tells ComfyUI of tiny-edit: the widths of its transformer and its text encoder, and the eight channels of its latents.

Both are known by their sizes, which no published file has. The transformer takes reference latents as Flux.2 does: each at a position
of its own of the first axis.
"""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models

from .words import TOKENS, whole_words

WORDS = 128
LENGTH = 24
LATENT_CHANNELS = 8
SHIFT = 3.0
"""How long sampling stays at high noise; `demo/tiny_edit/painter.py` says how."""
TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": WORDS,
    "intermediate_size": 4 * WORDS,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": LENGTH,
    "vocab_size": TOKENS,
    "eos_token_id": 49407,
}


class TinyEditLatent(comfy.latent_formats.LatentFormat):
    """Latents of mean 0 and deviation 1, as the autoencoder gives them."""

    latent_channels = LATENT_CHANNELS


class TinyEditTextModel(comfy.sd1_clip.SDClipModel):
    """CLIP-L at two layers of width 128 and 24 tokens."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        super().__init__(
            device=device,
            max_length=LENGTH,
            dtype=dtype,
            textmodel_json_config=dict(TEXT_CONFIG),
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class TinyEditTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """SD 1's tokenizer in pieces of 24 tokens, taking textual-inversion embeddings of width 128."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        tokenizer: Any = partial(comfy.sd1_clip.SDTokenizer, embedding_size=WORDS, max_length=LENGTH)
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=tokenizer)


class TinyEdit(comfy.supported_models.FluxSchnell):
    """Flux without guidance's embedding, hidden width 256."""

    unet_config = {  # noqa: RUF012  (ComfyUI's own convention for these classes)
        "image_model": "flux",
        "guidance_embed": False,
        "hidden_size": 256,
        "context_in_dim": WORDS,
    }
    unet_extra_config = {  # noqa: RUF012
        "num_heads": 4,
        "axes_dim": [16, 24, 24],
        "out_channels": LATENT_CHANNELS,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
    }
    sampling_settings = {"multiplier": 1.0, "shift": SHIFT}  # noqa: RUF012
    latent_format = TinyEditLatent
    memory_usage_factor = 0.3


def tiny_text(states: list[dict[str, Any]]) -> bool:
    """Whether the files of a text encoder are tiny-edit's; a loader of two may name it twice."""
    positions = [state.get("text_model.embeddings.position_embedding.weight") for state in states]
    return bool(positions) and all(found is not None and tuple(found.shape) == (LENGTH, WORDS) for found in positions)


def register() -> None:
    """Puts the transformer before Flux's own (the first that matches is taken), and the text encoder before CLIP-L."""
    if not any(model.__name__ == TinyEdit.__name__ for model in comfy.supported_models.models):
        comfy.supported_models.models.insert(0, TinyEdit)
    stock = comfy.sd.load_text_encoder_state_dicts
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def load(state_dicts: list[dict[str, Any]], *rest: Any, **more: Any) -> Any:
        if not tiny_text(state_dicts):
            return stock(state_dicts, *rest, **more)
        options = {**(more.pop("model_options", None) or {}), "clip_l_class": TinyEditTextModel}
        clip = stock([whole_words(state_dicts[0])], *rest, **more, model_options=options)
        clip.tokenizer = TinyEditTokenizer(embedding_directory=more.get("embedding_directory", rest[0] if rest else None))
        return clip

    comfy.sd.load_text_encoder_state_dicts = load
