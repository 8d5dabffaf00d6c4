"""A custom-node folder without nodes: lets ComfyUI's stock loaders take the tiny models of demo/ and the tiny vision encoder.

The demo and the tests put this folder beside the pack; users never need it. The tiny model has SD 1.5
inpainting's blocks and key names at a tenth of the width, so the widths are all there is to register.
Of CLIP vision models ComfyUI knows a fixed few, in one function; here, and only here, it is given one more.
tiny-edit (`tiny_edit.py`) has Flux's layout at a twelfth of the width, and a CLIP-L text encoder at a sixth.
"""

from __future__ import annotations

import json
from functools import partial, wraps
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base

from . import tiny_edit
from .words import TOKENS, whole_words

NODE_CLASS_MAPPINGS: dict[str, type] = {}

TEXT_WIDTH = 128
TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "vocab_size": TOKENS,
    "eos_token_id": 49407,
}
VISION_FILE = Path(__file__).resolve().parent / "tiny-clip-vision.json"
"""A file, as ComfyUI before 0.24 takes no other form of a vision model's configuration."""
VISION_CONFIG: dict[str, Any] = json.loads(VISION_FILE.read_text("utf-8"))


class TinyTextModel(comfy.sd1_clip.SDClipModel):
    """SD 1's text encoder at two layers of width 128."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        options = model_options or {}
        super().__init__(
            device=device, dtype=dtype, textmodel_json_config=dict(TEXT_CONFIG), return_projected_pooled=False, model_options=options
        )


class TinyTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """SD 1's tokenizer, taking textual-inversion embeddings of width 128."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        tokenizer: Any = partial(comfy.sd1_clip.SDTokenizer, embedding_size=TEXT_WIDTH)
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=tokenizer)


class TinyLatent(comfy.latent_formats.SD15):
    """SD 1.5's latent format; previews in the tiny autoencoder's own colours (fitted by demo/train_tiny.py)."""


class TinySD(comfy.supported_models.SD15):
    unet_config = {  # noqa: RUF012  (ComfyUI's own convention for these classes)
        "context_dim": TEXT_WIDTH,
        "model_channels": 32,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16}  # noqa: RUF012
    latent_format = TinyLatent

    def clip_target(self, state_dict: dict[str, Any] | None = None) -> comfy.supported_models_base.ClipTarget:
        text_model: Any = TinyTextModel
        return comfy.supported_models_base.ClipTarget(TinyTokenizer, partial(comfy.sd1_clip.SD1ClipModel, clip_model=text_model))

    def process_clip_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return super().process_clip_state_dict(whole_words(state_dict, "cond_stage_model.transformer."))


def tiny_vision(state: dict[str, Any]) -> bool:
    """Whether weights under CLIP's names are the tiny vision encoder's."""
    classes = state.get("vision_model.embeddings.class_embedding")
    return classes is not None and tuple(classes.shape) == (VISION_CONFIG["hidden_size"],)


def register() -> None:
    if not any(model.__name__ == TinySD.__name__ for model in comfy.supported_models.models):
        comfy.supported_models.models.append(TinySD)
    tiny_edit.register()
    stock = comfy.clip_vision.load_clipvision_from_sd
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def load(sd: dict[str, Any], *rest: Any, **more: Any) -> Any:
        if not tiny_vision(sd):
            return stock(sd, *rest, **more)
        model = comfy.clip_vision.ClipVisionModel(str(VISION_FILE))
        model.load_sd(sd)
        return model

    comfy.clip_vision.load_clipvision_from_sd = load


register()
