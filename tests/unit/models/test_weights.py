"""Files whose weights are no numbers, or of no kind that can be computed with, are refused in words by every loader of the pack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models import sd_families, weights
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.models.mask_controlnet import control
from maskprompt.models.mask_controlnet import file as mask_controlnet_file
from maskprompt.models.sam import model as sam
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...support import adapters
from ...support.mask_controlnet_files import WEIGHTS, content
from ...support.sam import small_sam


def with_one(value: Tensor, number: float) -> Tensor:
    """A copy whose last number is another."""
    changed = value.clone()
    changed.view(-1)[-1] = number
    return changed


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """The same file with other weights."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, about)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_finite_is_what_isfinite_says(number: float, dtype: torch.dtype) -> None:
    whole = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert weights.finite(whole)
    assert weights.finite(torch.full((2,), torch.finfo(dtype).max, dtype=dtype))
    assert not weights.finite(with_one(whole, number))
    assert weights.finite(torch.zeros(0, dtype=dtype))


def test_numbers_of_eight_bits_are_looked_at_too() -> None:
    whole = torch.randn(9, generator=torch.Generator().manual_seed(0)).to(torch.float8_e5m2)
    assert weights.finite(whole)
    assert not weights.finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2))
    assert not weights.finite(torch.tensor([1.0, float("inf")]).to(torch.float8_e5m2))


def test_differences_are_named() -> None:
    given = {"a": torch.zeros(2), "b": torch.zeros(2, 3), "c": torch.zeros(())}
    found = weights.differences(given, {"a": (2,), "b": [3, 2], "d": ()})
    assert found == weights.Differences(missing=("d",), surplus=("c",), misshapen=("b",))
    assert weights.differences(given, {name: value.shape for name, value in given.items()}) == weights.Differences((), (), ())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["ip_adapter.3.to_v_ip.weight", "image_proj.proj.weight"])
def test_an_adapter_whose_weights_are_no_numbers(tmp_path: Path, suffix: str, number: float, name: str) -> None:
    state = adapters.base({1: 32, 3: 32}, 24)
    state[name] = with_one(state[name], number)
    path = tmp_path / f"broken{suffix}"
    if suffix == ".bin":
        torch.save(adapters.nested(state), path)
    else:
        save_file(state, path)
    with pytest.raises(ValueError, match=rf"'broken{suffix}' holds numbers that are none \(NaN or infinite\), first in {name}: .*train it"):
        meca_adapter.load(str(path))


def test_an_adapter_of_whole_numbers(tmp_path: Path) -> None:
    state = adapters.base({1: 32, 3: 32}, 24)
    state["ip_adapter.1.to_k_ip.weight"] = state["ip_adapter.1.to_k_ip.weight"].long()
    save_file(state, tmp_path / "whole.safetensors")
    with pytest.raises(
        ValueError, match=r"'whole.safetensors': ip_adapter.1.to_k_ip.weight holds numbers of the kind int64, where weights"
    ):
        meca_adapter.load(str(tmp_path / "whole.safetensors"))


@pytest.mark.parametrize("name", ["control_net.down_blocks.0.resnets.0.conv1.weight", "adapter.layer.bias"])
def test_a_mask_controlnet_whose_weights_are_no_numbers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "broken.safetensors"
    mask_controlnet_file.save(content(), path)
    control.load(str(path))
    rewritten(path, lambda state: state.update({name: with_one(state[name], float("nan"))}))
    with pytest.raises(ValueError, match=rf"'broken.safetensors' holds numbers that are none \(NaN or infinite\), first in {name}"):
        control.load(str(path))


@pytest.mark.parametrize("file", [WEIGHTS, "adapter.safetensors"])
def test_a_folder_of_diffusers_whose_weights_are_no_numbers(tmp_path: Path, file: str) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        name = sorted(state)[0]
        state[name] = with_one(state[name], float("inf"))

    mask_controlnet_file.save_diffusers(content(), tmp_path)
    control.load(str(tmp_path / WEIGHTS))
    rewritten(tmp_path / file, spoil)
    with pytest.raises(ValueError, match=rf"'{file}' holds numbers that are none"):
        control.load(str(tmp_path / WEIGHTS))


@pytest.mark.parametrize("name", ["image_encoder.blocks.0.attn.qkv.weight", "mask_decoder.iou_token.weight"])
def test_a_sam_whose_weights_are_no_numbers(tmp_path: Path, name: str) -> None:
    state: dict[str, Any] = dict(small_sam().state_dict())
    torch.save(state, tmp_path / "whole.pth")
    sam.load(str(tmp_path / "whole.pth"))
    torch.save({**state, name: with_one(state[name], float("nan"))}, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"'broken.pth' holds numbers that are none \(NaN or infinite\)"):
        sam.load(str(tmp_path / "broken.pth"))


def test_families_by_their_sizes() -> None:
    assert sd_families.text_width(768) == "width 768 (SD 1.5)"
    assert sd_families.text_width(128) == "width 128"
    assert sd_families.unet(320, 1024) == "a UNet of 320 channels with text of width 1024 (SD 2.1)"
    assert sd_families.unet(32, 768) == "a UNet of 32 channels with text of width 768"
    assert sd_families.attention(70, 2048) == "70 attention layers and text of width 2048 (SDXL)"
    assert sd_families.attention(16, 2048) == "16 attention layers and text of width 2048"
