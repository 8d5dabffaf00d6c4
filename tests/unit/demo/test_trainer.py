"""What the training scripts of the tiny models share."""

from __future__ import annotations

import pytest
import torch

from demo import trainer


@pytest.mark.parametrize(
    ("told", "expected"),
    [({"avx512_bf16": True, "amx_bf16": False}, True), ({"amx_bf16": True}, True), ({"avx512_f": True, "avx512_bf16": False}, False)],
)
def test_a_processor_learns_in_bfloat16_if_it_multiplies_it(told: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert trainer.learns_in_bfloat16(torch.device("cpu")) is expected
    assert trainer.learns_in_bfloat16(torch.device("cuda"))


def test_an_older_pytorch_learns_in_float32_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not trainer.learns_in_bfloat16(torch.device("cpu"))
