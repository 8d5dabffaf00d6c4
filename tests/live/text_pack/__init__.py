"""A custom-node folder for the tests: a CLIP with ComfyUI's tokenizer whose encoder gives random numbers, and a prompt encoded by it."""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import torch


@functools.lru_cache
def tokenizer_of(module: str, name: str) -> Any:
    """One of ComfyUI's tokenizers, read once."""
    return getattr(importlib.import_module(f"comfy.text_encoders.{module}"), name)()


class RandomClip:
    """Tokenizes as ComfyUI's class does, and encodes each token to numbers that depend on it alone.

    `encoders` are the rows of tokens that are encoded, one behind the other; the first `cut` tokens are left out; `pooled` is the width
    of the pooled output, 0 for none; `ids` is a row of tokens whose numbers go beside the text, "" for none.
    """

    def __init__(self, module: str, name: str, encoders: str, width: int, cut: int, pooled: int, ids: str) -> None:
        self.tokenizer = tokenizer_of(module, name)
        self.cond_stage_model = SimpleNamespace(clip_l=True, clip_g=True, t5xxl=True)
        self.encoders, self.width, self.cut, self.pooled, self.ids = encoders.split(","), width, cut, pooled, ids

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[list[Any]]:
        numbers = [entry[0] for encoder in self.encoders for chunk in tokens[encoder] for entry in chunk][self.cut :]
        rows = [torch.randn(self.width, generator=torch.Generator().manual_seed(int(number))) for number in numbers]
        options = {"pooled_output": torch.ones(1, self.pooled)} if self.pooled else {}
        if self.ids:
            beside = [int(entry[0]) for chunk in tokens[self.ids] for entry in chunk]
            options |= {"t5xxl_ids": torch.tensor(beside), "t5xxl_weights": torch.ones(len(beside))}
        return [[torch.stack(rows)[None], options]]


class RandomText:
    """A prompt, and the CLIP that encodes it."""

    CATEGORY = "tests"
    RETURN_TYPES = ("CLIP", "CONDITIONING")
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (ComfyUI's name)
        words = {name: ("STRING", {"default": ""}) for name in ("module", "tokenizer", "encoders", "text", "ids")}
        return {"required": {**words, **{name: ("INT", {"default": 0}) for name in ("width", "cut", "pooled")}}}

    def encode(self, module: str, tokenizer: str, encoders: str, text: str, width: int, cut: int, pooled: int, ids: str) -> tuple[Any, Any]:
        """Encode the text."""
        clip = RandomClip(module, tokenizer, encoders, width, cut, pooled, ids)
        return clip, clip.encode_from_tokens_scheduled(clip.tokenize(text))


NODE_CLASS_MAPPINGS: dict[str, type] = {"RandomText": RandomText}
