"""Adapter files and models that do not fit are refused in words."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from maskprompt.attention import ip_adapter_layers
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.models.ip_adapter import file as meca_file
from safetensors.torch import load_file, save_file

from ...support import adapters
from ...support.ip_adapters import CONTEXT, WIDTHS, write
from ...support.pickles import Evil
from ...support.unets import unet as real_unet


def without(weights: adapters.Weights, *names: str) -> adapters.Weights:
    return {name: weight for name, weight in weights.items() if name not in names}


FACE_ID = {
    "image_proj.proj.0.weight": torch.zeros(8, 512),
    "image_proj.proj.2.weight": torch.zeros(8, 8),
    "image_proj.norm.weight": torch.zeros(8),
}
LAYERS = adapters.layer_weights(WIDTHS, CONTEXT)
REFUSED: dict[str, tuple[Any, str]] = {
    "FaceID": ({**FACE_ID, "ip_adapter.0.to_q_lora.down.weight": torch.zeros(2, 2)}, "FaceID file, which needs a face recogniser"),
    "FaceID plus": ({"image_proj.perceiver_resampler.proj_in.weight": torch.zeros(4, 4), **LAYERS}, "FaceID"),
    "full face": ({**FACE_ID, "image_proj.proj.3.weight": torch.zeros(8), **LAYERS}, "full-face file"),
    "InstantID": (adapters.plus(WIDTHS, CONTEXT, features=512), "face embeddings of 512 numbers"),
    "a LoRA": ({"lora_unet_up.weight": torch.zeros(2, 2)}, "another kind of model .*lora_unet_up"),
    "another adapter": ({"double_blocks.0.processor.weight": torch.zeros(2, 2)}, "another kind of model"),
    "a missing weight": (without(adapters.base(WIDTHS, CONTEXT), "ip_adapter.3.to_v_ip.weight"), "lacks ip_adapter.3.to_v_ip.weight"),
    "a missing projection": (without(adapters.base(WIDTHS, CONTEXT), "image_proj.norm.weight"), "no complete IP-Adapter"),
    "one weight too many": ({**adapters.base(WIDTHS, CONTEXT), "image_proj.extra.weight": torch.zeros(2)}, "image_proj.extra.weight"),
    "a wrong shape": ({**adapters.base(WIDTHS, CONTEXT), "ip_adapter.1.to_v_ip.weight": torch.zeros(32, 5)}, r"\[32, 5\].*\[32, 24\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_other_files_are_refused_in_words(case: str, suffix: str, tmp_path: Path) -> None:
    weights, message = REFUSED[case]
    path = tmp_path / f"file{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        ours = all(name.startswith(("image_proj.", "ip_adapter.")) for name in weights)
        torch.save(adapters.nested(weights) if ours else weights, path)
    with pytest.raises(ValueError, match=f"(?s)'file{suffix}'.*{message}"):
        meca_adapter.load(str(path))


def test_files_that_cannot_be_read_are_refused_in_words(tmp_path: Path) -> None:
    good = Path(write(adapters.base(WIDTHS, CONTEXT), tmp_path / "good.bin"))
    (tmp_path / "cut.bin").write_bytes(good.read_bytes()[:-2000])
    good = Path(write(adapters.base(WIDTHS, CONTEXT), tmp_path / "good.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"image_proj": Evil(tmp_path / "made")}, protocol=2))
    (tmp_path / "page.bin").write_text("<html>not found</html>")
    for name, message in (
        ("cut.bin", "damaged or not complete"), ("cut.safetensors", "damaged or not complete"), ("evil.bin", "can run any program"),
        ("page.bin", "web page"), ("none.bin", "is missing"), ("none.safetensors", "is missing"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            meca_adapter.load(str(tmp_path / name))
    assert not (tmp_path / "made").exists()


def test_another_vision_model_is_refused_with_numbers(tmp_path: Path) -> None:
    pooled = meca_adapter.load(write(adapters.base(WIDTHS, CONTEXT, features=1024), tmp_path / "base.bin"))
    with pytest.raises(ValueError, match=r"of width 1024 \(ViT-H\); this one's is 1280 \(ViT-bigG\)"):
        pooled.pairs(adapters.encoded(pooled=1280))
    patches = meca_adapter.load(write(adapters.plus(WIDTHS, CONTEXT, features=1280), tmp_path / "plus.bin"))
    with pytest.raises(ValueError, match=r"of width 1280 \(ViT-H\); this one's is 1664 \(ViT-bigG\)"):
        patches.pairs(adapters.encoded(patches=1664))
    with pytest.raises(ValueError, match=r"clip_vision: .*1280 \(ViT-H\); this one's is 48"):
        patches.pairs(adapters.encoded(patches=1280), adapters.small_clip_vision())
    with pytest.raises(ValueError, match="wire a CLIP_VISION_OUTPUT"):
        pooled.pairs(None)


def test_another_model_is_refused_with_numbers() -> None:
    def adapter(widths: dict[int, int], context: int) -> Any:
        return SimpleNamespace(name="mine.bin", widths=widths, context=context)

    (sd15, text), (sdxl, wide) = ip_adapter_layers.widths(real_unet("SD 1.5")), ip_adapter_layers.widths(real_unet("SDXL"))
    meca_adapter.check_fit(adapter(sd15, text), sd15, text)
    with pytest.raises(ValueError, match=r"'mine.bin'.* 70 .* of width 2048 \(SDXL\); this model has 16 .* of width 768 \(SD 1.5\)"):
        meca_adapter.check_fit(adapter(sdxl, wide), sd15, text)
    with pytest.raises(ValueError, match=r"768 \(SD 1.5\); this model has 16 .* 1024 \(SD 2.1\)"):
        meca_adapter.check_fit(adapter(sd15, text), *ip_adapter_layers.widths(real_unet("SD 2.1")))
    with pytest.raises(ValueError, match="layer 3 has the width 7, this model's 320"):
        meca_adapter.check_fit(adapter({**sd15, 3: 7}, text), sd15, text)


def test_both_kinds_of_file_give_the_very_same_weights(tmp_path: Path) -> None:
    weights = adapters.plus(WIDTHS, CONTEXT)
    one, _ = meca_file.read(write(weights, tmp_path / "a.bin"))
    two, _ = meca_file.read(write(weights, tmp_path / "a.safetensors"))
    assert one.keys() == two.keys() == load_file(tmp_path / "a.safetensors").keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
