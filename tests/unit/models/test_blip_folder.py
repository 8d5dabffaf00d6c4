"""What a BLIP folder lacks or holds wrongly is named, and its code never runs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from maskprompt.models.blip import captioner
from maskprompt.models.blip import folder as blip_folder
from maskprompt.models.blip.captioner import Search
from maskprompt.nodes.caption import NO_FOLDERS, CaptionImage
from safetensors.torch import load_file, save_file

from ...support.blip import WORDS, blip, blips, folder, no_network, original, pictures, settings_of, write

__all__ = ["blip", "blips", "folder", "no_network", "original"]  # fixtures


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "preprocessor_config.json", "config.json"])
def test_a_missing_file_is_named_with_what_to_do_and_not_looked_for(folder: Path, no_network: list[Any], name: str) -> None:
    (folder / name).unlink()
    (folder / "tokenizer.json").unlink(missing_ok=True)
    wanted = "There is no BLIP folder 'tiny'" if name == "config.json" else f"tiny is not complete: it lacks .*{name}"
    with pytest.raises(ValueError, match=f"(?s){wanted}.*Download all files of Salesforce/blip-image-captioning-base.*models/blip"):
        blip_folder.find("tiny")
    assert no_network == []


def test_all_that_is_missing_is_named_at_once(folder: Path) -> None:
    for one in folder.iterdir():
        if one.name != "config.json":
            one.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors or pytorch_model\.bin; tokenizer\.json or vocab\.txt; preprocessor_config"):
        blip_folder.find("tiny")


def test_folders_are_listed_at_any_usual_place(blips: Path, original: Path, tmp_path: Path) -> None:
    """Below a publisher's name, in a copy of the Hub's cache, through a link, and files put straight into `blip`."""
    assert blip_folder.folders() == {}
    assert CaptionImage.GET_SCHEMA().inputs[1].as_dict()["options"] == [NO_FOLDERS]  # pyright: ignore[reportAttributeAccessIssue]
    hub = "models--Salesforce--base/snapshots/82a37760"
    for place in ("b", "Salesforce/base", hub, "a/b/c/d/too-deep"):
        (blips / place).mkdir(parents=True)
        shutil.copy(original / "config.json", blips / place)
    (blips / "empty").mkdir()
    (blips / "other-packs.pth").touch()
    (blips / "b" / "onnx").mkdir()
    shutil.copy(original / "config.json", blips / "b" / "onnx")
    os.symlink(original, blips / "link")
    assert list(blip_folder.folders()) == ["Salesforce/base", "b", "link", hub]
    assert blip_folder.find("link") == blips / "link"
    shutil.copytree(original, blips, dirs_exist_ok=True)
    assert list(blip_folder.folders()) == [".", "Salesforce/base", "b", "link", hub]
    assert blip_folder.find(".") == blips
    extra = Path(shutil.copytree(original, tmp_path / "extra" / "mine"))
    folder_paths.add_model_folder_path("blip", str(extra.parent))
    assert blip_folder.find("mine") == extra


@pytest.mark.parametrize("name", ["x", "../tiny-blip", "/", "", NO_FOLDERS])
def test_an_unknown_name_lists_the_known_ones(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"There is no BLIP folder '.*' in .*blip \(found there: tiny\)\. Download all files"):
        blip_folder.find(name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "blip-2"}, r"tiny holds no BLIP model: its config\.json says model_type 'blip-2'"),
        ({"model_type": None}, "holds no BLIP model"),
        ({"architectures": ["BlipForQuestionAnswering"]}, r"BLIP for another task \(BlipForQuestionAnswering\)"),
    ],
)
def test_another_model_is_named_before_anything_is_read(folder: Path, changed: dict[str, Any], message: str) -> None:
    write(folder, settings_of(folder) | changed)
    with pytest.raises(ValueError, match=message):
        blip_folder.find("tiny")
    assert message.split(r" \(")[0].replace("\\", "") in str(CaptionImage.validate_inputs(["tiny"]))


@pytest.mark.parametrize("content", ["{", "[]", "", "\x00"])
def test_a_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (cannot be read .*download it again|says model_type None)"):
        blip_folder.find("tiny")


def test_a_config_of_wrong_values_is_named(folder: Path) -> None:
    config = settings_of(folder)
    config["text_config"]["hidden_size"] = "large"
    write(folder, config)
    with pytest.raises(ValueError, match=r"tiny"):
        captioner.load(blip_folder.find("tiny"))


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_damaged_small_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"version": "1.0", "model": {')
    with pytest.raises(ValueError, match=r"The settings or the tokenizer in .*tiny cannot be read .*Download its small files again"):
        captioner.load(blip_folder.find("tiny"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_of_weights_is_named(folder: Path, name: str) -> None:
    if name.endswith(".bin"):
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{name}' .*damaged or not complete.*download it again"):
        captioner.load(blip_folder.find("tiny"))


class Evil:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_a_pickle_with_code_is_refused_and_not_run(folder: Path) -> None:
    flag = folder / "was-run"
    torch.save({**load_file(folder / "model.safetensors"), "x": Evil(flag)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' was refused.*run any program"):
        captioner.load(blip_folder.find("tiny"))
    assert not flag.exists()


def test_weights_that_are_missing_or_too_large_are_named(folder: Path) -> None:
    """transformers itself would go on with random ones."""
    weights = load_file(folder / "model.safetensors")
    fewer = {name: value for name, value in weights.items() if "text_decoder.bert.encoder.layer.1" not in name}
    save_file(fewer, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a BLIP captioning model, such as text_decoder\.bert\.encoder\.layer\.1"):
        captioner.load(folder)
    larger = {
        name: torch.zeros(*value.shape[:-1], value.shape[-1] + 1) if "qkv.weight" in name else value for name, value in weights.items()
    }
    save_file(larger, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"'model\.safetensors' in .*tiny does not fit its config\.json"):
        captioner.load(folder)


def test_a_tokenizer_of_another_model_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "three", "four", "five"]))
    with pytest.raises(ValueError, match=rf"has {len(WORDS) + 3} words, its BLIP {len(WORDS) + 2}: they are of different models"):
        captioner.load(folder)


def test_weights_that_are_no_numbers_are_an_error_and_no_caption(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.post_layernorm.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for beams in (1, 3):
        with pytest.raises(RuntimeError, match=r"'tiny' gives no usable numbers in torch\.float32"):
            captioner.captions(captioner.load(folder), list(pictures(2)), "", Search(beams, 2, 9))


def test_transformers_that_is_missing_or_too_old_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(RuntimeError, match=r"need the Python package transformers.*pip install"):
            captioner.load(folder)
        assert CaptionImage.validate_inputs(["tiny"]) is True  # ComfyUI still starts, and the node is still there
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", type(sys)("transformers"))
        with pytest.raises(RuntimeError, match=r"need the Python package transformers"):
            captioner.load(folder)
