"""Model files: what is read, what is refused, and in which words; the folder that ComfyUI looks in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import safetensors.torch
import torch
from maskprompt.models import files

from ...support.pickles import Evil


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"layer.weight": torch.randn(64, 64, generator=generator), "layer.bias": torch.arange(5).half()}


def save(weights: Any, path: Path, legacy: bool = False) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize(("name", "legacy"), [("a.safetensors", False), ("a.pth", False), ("a.pt", False), ("a.pth", True)])
def test_every_format_gives_the_same_tensors(weights: dict[str, torch.Tensor], tmp_path: Path, name: str, legacy: bool) -> None:
    loaded = files.load_weights(str(save(weights, tmp_path / name, legacy)))
    assert loaded.keys() == weights.keys()
    for key, tensor in weights.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_wrapped_weights_are_unwrapped(weights: dict[str, torch.Tensor], tmp_path: Path, key: str) -> None:
    loaded = files.load_weights(str(save({key: weights, "epoch": 3}, tmp_path / "a.pth")))
    assert loaded.keys() == weights.keys()


def test_a_prefix_is_stripped() -> None:
    one = torch.zeros(1)
    assert set(files.strip_prefix({"module.enc.a": one, "module.b": one, "step": one}, "enc.")) == {"enc.a", "b"}
    assert set(files.strip_prefix({"enc.a": one, "b": one}, "enc.")) == {"enc.a", "b"}
    assert set(files.strip_prefix({"a": one}, "enc.")) == {"a"}


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.98])
@pytest.mark.parametrize(("name", "legacy"), [("cut.safetensors", False), ("cut.pth", False), ("cut.pth", True)])
def test_a_truncated_file_is_named_as_such(weights: dict[str, torch.Tensor], tmp_path: Path, name: str, legacy: bool, part: float) -> None:
    path = save(weights, tmp_path / name, legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=rf"{name}.*(damaged or not complete).*download it again"):
        files.load_weights(str(path))


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    path = tmp_path / "evil.pth"
    flag = tmp_path / "was-run"
    if form == "plain":
        path.write_bytes(pickle.dumps({"layer.weight": Evil(flag)}))
    else:
        save({"layer.weight": Evil(flag)}, path, legacy=form == "legacy")
    with pytest.raises(ValueError, match=r"evil\.pth' was refused.*run any program"):
        files.load_weights(str(path))
    assert not flag.exists()
    # The file is dangerous indeed: without our care, the same file does run.
    with path.open("rb") as file:
        pickle.load(file) if form == "plain" else torch.load(path, weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", ["<!DOCTYPE html><html>Log in</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"])
def test_a_web_page_saved_as_a_model_is_named_as_such(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"page.{suffix}"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"no model but a text or web page"):
        files.load_weights(str(path))


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {"name": "x"}}])
def test_a_file_without_weights_is_named_as_such(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        files.load_weights(str(save(content, tmp_path / "a.pth")))


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bytes_give_weights_or_words(weights: dict[str, torch.Tensor], tmp_path: Path, legacy: bool) -> None:
    whole = save(weights, tmp_path / "a.pth", legacy).read_bytes()
    rng = np.random.default_rng(5)
    refused: list[str] = []
    for number in range(300):
        damaged = bytearray(whole)
        place = int(rng.integers(len(whole) if number % 2 else min(400, len(whole))))
        damaged[place] ^= 1 << int(rng.integers(8))
        path = tmp_path / "b.pth"
        path.write_bytes(damaged)
        try:
            found = files.load_weights(str(path))
        except ValueError as error:
            refused.append(str(error))
        else:
            assert all(isinstance(value, torch.Tensor) for value in found.values())
    assert len(refused) > 30
    assert all("'b.pth'" in words for words in refused)


def test_a_pickle_that_holds_itself_is_no_model(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    content["state_dict"] = content
    with pytest.raises(ValueError, match="holds no weights"):
        files.load_weights(str(save(content, tmp_path / "a.pth")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.pth' is missing"):
        files.load_weights(str(tmp_path / "gone.pth"))


def test_too_little_memory_is_not_taken_for_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 2564550879 bytes.")

    path = save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="not enough memory"):
        files.load_weights(str(path))


def test_the_folder_is_registered_and_listed(folders: Path) -> None:
    for name in ("b.pth", "a.safetensors", "c.PT", "readme.txt"):
        (folders / "models" / "sams" / name).touch()
    assert files.list_files("sams") == ["a.safetensors", "b.pth", "c.PT"]
    assert files.find_file("sams", "b.pth", "") == str(folders / "models" / "sams" / "b.pth")


def test_extra_model_paths_come_first_and_stay(folders: Path) -> None:
    from utils.extra_config import load_extra_path_config

    (folders / "elsewhere").mkdir()
    (folders / "elsewhere" / "x.pth").touch()
    (folders / "elsewhere" / "other-pack.onnx").touch()
    (folders / "extra.yaml").write_text(f"mine:\n    base_path: {folders}\n    sams: elsewhere\n")
    load_extra_path_config(str(folders / "extra.yaml"))
    assert files.list_files("sams") == ["x.pth"]
    assert folder_paths.get_folder_paths("sams") == [str(folders / "elsewhere"), str(folders / "models" / "sams")]
    assert "other-pack.onnx" in folder_paths.get_filename_list("sams")


def test_another_packs_folder_and_suffixes_stay(folders: Path) -> None:
    (folders / "theirs").mkdir()
    for name in ("x.pth", "y.onnx", "z.safetensors"):
        (folders / "theirs" / name).touch()
    folder_paths.folder_names_and_paths["sams"] = ([str(folders / "theirs")], {".pth", ".onnx"})
    assert folder_paths.get_filename_list("sams") == ["x.pth", "y.onnx"]
    assert files.list_files("sams") == ["x.pth", "z.safetensors"]
    assert folder_paths.get_filename_list("sams") == ["x.pth", "y.onnx", "z.safetensors"]
    # A pack that loads later may replace the entry; the next look repairs it without taking theirs away.
    folder_paths.folder_names_and_paths["sams"] = ([str(folders / "theirs")], {".pth"})
    files.register_folder("sams")
    assert folder_paths.get_folder_paths("sams") == [str(folders / "theirs"), str(folders / "models" / "sams")]


def test_a_missing_model_says_where_to_put_which(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"no file 'x\.pth' in .*sams \(found there: no model file\)\. Put it there\."):
        files.find_file("sams", "x.pth", "Put it there.")
    (folders / "models" / "sams" / "a.pth").touch()
    with pytest.raises(ValueError, match=r"found there: a\.pth"):
        files.find_file("sams", "../../x.pth", "")


def test_a_missing_model_names_the_files_of_every_kind_that_its_loader_takes(folders: Path) -> None:
    (folders / "models" / "sams" / "adapter.bin").touch()
    with pytest.raises(ValueError, match=r"found there: adapter\.bin"):
        files.find_file("sams", "x.pth", "", files.SUFFIXES | {".bin"})
