"""CONDITIONING of many texts: encoded once for all that need them, and put together into one batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOST_TOKENS = 4 * 77
"""A longer caption is cut. CLIP reads 75 words at a time, and repeats of short captions beside long ones grow with their number."""


class Texts:
    """Holds CONDITIONINGs by text, each encoded once, of the texts that are needed for now."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        self._known: dict[str, Any] = {}
        self._told = False

    def know(self, texts: Iterable[str]) -> None:
        """Encodes these, unless they are known, and forgets all others."""
        with torch.inference_mode(False), torch.no_grad():
            self._known = {text: self._known.get(text) or self._encoded(text) for text in dict.fromkeys(texts)}

    def __getitem__(self, text: str) -> Any:
        return self._known[text]

    def _encoded(self, text: str) -> Any:
        return [[self._cut(words), options] for words, options in self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))]

    def _cut(self, words: Tensor) -> Tensor:
        """Cuts a text [1, T, width] to `MOST_TOKENS`, and says so once."""
        if words.shape[1] > MOST_TOKENS and not self._told:
            log.warning("captions of more than about 300 words are cut to their first four parts of 75: such long ones take much memory")
            self._told = True
        return words[:, :MOST_TOKENS]


def together(texts: Sequence[Any]) -> list[list[Any]]:
    """Puts CONDITIONINGs of one entry each into one of as many rows. Shorter texts are repeated, as ComfyUI does: attention is the same.

    Pooled outputs go with their rows, if all have one.
    """
    (tensors, options) = zip(*(text[0] for text in texts), strict=True)
    length = math.lcm(*(tensor.shape[1] for tensor in tensors))
    rows = torch.cat([tensor.repeat(1, length // tensor.shape[1], 1) for tensor in tensors])
    pooled = [option.get("pooled_output") for option in options]
    return [[rows, {"pooled_output": torch.cat(pooled)} if all(isinstance(one, Tensor) for one in pooled) else {}]]
