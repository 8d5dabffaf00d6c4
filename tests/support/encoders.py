"""CLIP objects with ComfyUI's own tokenizers over text encoders that give random numbers."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch


class RandomClip:
    """Tokenizes as ComfyUI's class does, and encodes every row of tokens to numbers that depend on the tokens alone.

    `encoder` names the row that is encoded, `cut` is how many tokens of a template the encoder leaves out at the beginning.
    """

    def __init__(self, module: str, name: str, encoder: str, width: int, cut: int = 0, **data: Any) -> None:
        found = getattr(importlib.import_module(f"comfy.text_encoders.{module}"), name)
        self.tokenizer = found(tokenizer_data=data) if data else found()
        self.encoder, self.width, self.cut = encoder, width, cut
        self.cond_stage_model: Any = SimpleNamespace(named_children=dict[str, Any]().items)

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)

    def flat(self, text: str, encoder: str | None = None) -> list[int]:
        """The token numbers of a text as they are encoded."""
        return [entry[0] for chunk in self.tokenize(text)[encoder or self.encoder] for entry in chunk][self.cut :]

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any], **options: Any) -> list[list[Any]]:
        numbers = [entry[0] for chunk in tokens[self.encoder] for entry in chunk][self.cut :]
        rows = [torch.randn(self.width, generator=torch.Generator().manual_seed(int(number))) for number in numbers]
        return [[torch.stack(rows)[None], options]]
