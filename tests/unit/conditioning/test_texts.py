"""Captions encoded for a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.conditioning.texts import MOST_TOKENS, Texts, together


class Clip:
    """Gives 77 tokens for each word of a text, as CLIP does for 75 words."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> Any:
        count = len(text.split())
        return [[torch.arange(77.0 * count).reshape(1, -1, 1).expand(-1, -1, 8), {"pooled_output": torch.zeros(1, 8)}]]


def test_long_captions_of_mixed_lengths_take_no_more_than_short_ones(caplog: pytest.LogCaptureFixture) -> None:
    """Repeated to a common length, 4, 5, 6 and 7 parts would be 420."""
    texts = Texts(Clip())
    captions = [" ".join("abcdefg"[:count]) for count in (1, 2, 3, 4, 5, 6, 7)]
    texts.know(captions)
    assert caplog.text.count("are cut to their first four parts") == 1
    for number, caption in enumerate(captions, 1):
        ((words, options),) = texts[caption]
        assert torch.equal(words[0, :, 0], torch.arange(77.0 * min(number, 4)))
        assert options["pooled_output"].shape == (1, 8)
    ((rows, _),) = together([texts[caption] for caption in captions])
    assert rows.shape == (7, 3 * MOST_TOKENS, 8)
    short = Texts(Clip())
    caplog.clear()
    short.know(captions[:4])
    assert not caplog.text
