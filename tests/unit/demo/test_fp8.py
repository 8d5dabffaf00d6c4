"""Large matrices and kernels of a file in fp8."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo import fp8


def test_large_matrices_and_kernels_become_fp8_and_nothing_else_changes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "matrix": torch.randn(64, 64, generator=generator).half(),
        "kernel": torch.randn(32, 16, 3, 3, generator=generator).half(),
        "small": torch.randn(63, 65, generator=generator).half(),
        "bias": torch.randn(2**13, generator=generator).half(),
        "numbers": torch.arange(2**13).reshape(64, 128),
    }
    file = tmp_path / "weights.safetensors"
    save_file(weights, file, metadata={"format": "of the test", "steps": "7"})
    fp8.rewrite(file)
    found = load_file(file)
    assert {name: value.dtype for name, value in found.items()} == {
        "matrix": torch.float8_e4m3fn,
        "kernel": torch.float8_e4m3fn,
        "small": torch.half,
        "bias": torch.half,
        "numbers": torch.int64,
    }
    for name, value in weights.items():
        if found[name].dtype == value.dtype:
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name].float(), value.float(), rtol=2**-4, atol=2**-10)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "of the test", "steps": "7"}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_in_fp8_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"matrix": torch.randn(64, 64)}, file)
    fp8.rewrite(file)
    before = file.read_bytes()
    fp8.rewrite(file)
    assert file.read_bytes() == before
