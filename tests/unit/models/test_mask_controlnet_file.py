"""Mask-ControlNet's file: what is saved is what is read, also by `diffusers`; and what is refused, in which words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models.mask_controlnet import control as mask_controlnet
from maskprompt.models.mask_controlnet import diffusers_layout
from maskprompt.models.mask_controlnet import file as mask_controlnet_file
from maskprompt.models.mask_controlnet.adapter import MaskConcat
from maskprompt.models.mask_controlnet.file import About
from maskprompt.models.mask_controlnet.network import started, weights_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo import train_control

from ...support.control_networks import SMALL, random_network
from ...support.mask_controlnet_files import SHAPE, WEIGHTS, content
from ...support.pickles import Evil


def same(one: Mapping[str, torch.Tensor] | None, other: Mapping[str, torch.Tensor] | None) -> bool:
    """The same names, precisions and bits."""
    assert one is not None
    assert other is not None
    return one.keys() == other.keys() and all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("controlnet") / "mine.safetensors"
    mask_controlnet_file.save(content(), path)
    return path


@pytest.fixture
def changed(saved: Path, tmp_path: Path) -> Any:
    """`changed(weights=…, **metadata)` is the path of the saved file with these changes; None takes an entry away."""

    def write(weights: Mapping[str, torch.Tensor | None] | None = None, **about: str | None) -> str:
        tensors = {**load_file(saved), **(weights or {})}
        told = {**metadata(saved), **about}
        save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / "changed.safetensors",
                  {name: value for name, value in told.items() if value is not None})  # fmt: skip
        return str(tmp_path / "changed.safetensors")

    return write


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_is_read_and_saved_again(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    given = content(SMALL[name], dtype, About(0.13025, "SDXL, say", masked=True))
    mask_controlnet_file.save(given, tmp_path / "a.safetensors")
    found = mask_controlnet_file.read(str(tmp_path / "a.safetensors"))
    assert (found.shape, found.about) == (given.shape, given.about)
    assert same(found.control, given.control)
    assert same(found.adapter, given.adapter)
    mask_controlnet_file.save(found, tmp_path / "b.safetensors")
    assert same(load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "a.safetensors"))
    assert metadata(tmp_path / "b.safetensors") == metadata(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", SMALL)
def test_under_dynamic_memory_it_is_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's way on NVIDIA cards: its linear layers have no weights before a file is read. Loaded, begun, counted and saved alike."""
    memory_management = pytest.importorskip("comfy.memory_management")
    file, base = str(tmp_path / "mine.safetensors"), random_network(SMALL[name], 1).state_dict()
    mask_controlnet_file.save(content(SMALL[name]), Path(file))

    def made() -> tuple[Any, ...]:
        control, adapter = mask_controlnet.load(file)
        shown = [torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        words = torch.rand(1, 5, SMALL[name]["context_dim"], generator=torch.Generator().manual_seed(2))
        adm = torch.ones(1, SMALL[name]["adm_in_channels"]) if "adm_in_channels" in SMALL[name] else None
        begun = started(SMALL[name], base)
        with torch.no_grad():
            said = [
                part
                for one in (control.network, begun)
                for parts in one(*shown, torch.tensor([3.0]), words, adm).values()
                for part in parts
            ]
        return mask_controlnet.content_of(control, adapter).control, begun.state_dict(), weights_of(SMALL[name]), said

    plain = made()
    monkeypatch.setattr(memory_management, "aimdo_enabled", True)
    dynamic = made()
    assert same(dynamic[0], plain[0])
    assert same(dynamic[1], plain[1])
    assert dynamic[2] == plain[2] == sum(value.numel() for value in plain[1].values())
    assert all(torch.equal(one, other) for one, other in zip(dynamic[3], plain[3], strict=True))


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    """Format, version and configuration stand in the metadata, and what a training adds takes nothing away from them."""
    path = tmp_path / "a.safetensors"
    mask_controlnet_file.save(content(), path, {"steps": "400", "format": "mine", "base": "another"})
    assert metadata(path) == {
        "format": "maskprompt-mask-controlnet", "format_version": "1", "config": json.dumps(diffusers_layout.config_of(SHAPE)),
        "latent_scale": "0.25", "base": "a base, in words", "masked": "false", "steps": "400",
    }  # fmt: skip
    names = set(load_file(path))
    assert {name for name in names if not name.startswith("control_net.")} == {"adapter.layer.weight", "adapter.layer.bias"}
    assert {"control_net.conv_in.weight", "control_net.mid_block.resnets.0.conv1.weight"} <= names


@pytest.mark.parametrize("name", ["like SD 1.5", "like SDXL"])
def test_a_folder_for_diffusers(name: str, tmp_path: Path) -> None:
    """Which `diffusers` loads as it stands, and which is read back whole: the adapter and what is told of it lie beside."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    given = content(SMALL[name])
    mask_controlnet_file.save_diffusers(given, tmp_path / "new" / "mine")
    theirs = ControlNetModel.from_pretrained(tmp_path / "new" / "mine")
    assert same(theirs.state_dict(), diffusers_layout.to_diffusers(given.control, given.shape))
    assert {name: theirs.config[name] for name in ("conditioning_channels", "cross_attention_dim")} == {
        "conditioning_channels": 4, "cross_attention_dim": given.shape["context_dim"]
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "new" / "mine").iterdir()) == ["adapter.safetensors", "config.json", WEIGHTS]
    found = mask_controlnet_file.read(str(tmp_path / "new" / "mine" / WEIGHTS))
    assert (found.shape, found.about) == (given.shape, given.about)
    assert same(found.control, given.control)
    assert same(found.adapter, given.adapter)
    with pytest.raises(ValueError, match=rf"'adapter.safetensors' is the adapter alone: load {WEIGHTS}, which is beside it"):
        mask_controlnet_file.read(str(tmp_path / "new" / "mine" / "adapter.safetensors"))


@pytest.mark.parametrize(("name", "scale"), [("like SD 1.5", 0.18215), ("like SDXL", 0.13025)])
def test_what_diffusers_itself_saved(name: str, scale: float, tmp_path: Path) -> None:
    """It has no adapter, so an untrained one is taken, and its latents are scaled as those of its family are."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    given = content(SMALL[name])
    theirs: Any = ControlNetModel.from_config(diffusers_layout.config_of(given.shape))
    theirs.load_state_dict(diffusers_layout.to_diffusers(given.control, given.shape))
    theirs.save_pretrained(tmp_path)
    save_file({"layer.weight": torch.zeros(1)}, tmp_path / "adapter.safetensors")  # somebody else's
    found = mask_controlnet_file.read(str(tmp_path / WEIGHTS))
    assert (found.shape, found.adapter, found.about) == (given.shape, None, About(scale, "", masked=True))
    assert same(found.control, given.control)
    mask_controlnet_file.save(found, tmp_path / "one.safetensors")
    assert same(mask_controlnet.load(str(tmp_path / "one.safetensors"))[1].layer.state_dict(), MaskConcat().state_dict())
    control, adapter = mask_controlnet.load(str(tmp_path / WEIGHTS))
    assert same(control.network.state_dict(), given.control)
    assert same(adapter.layer.state_dict(), MaskConcat().state_dict())


def refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_controlnet.load(path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_named_as_such(saved: Path, tmp_path: Path, part: float) -> None:
    whole = saved.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * part)])
    refused(str(tmp_path / "cut.safetensors"), r"'cut\.safetensors'.*damaged or not complete.*download it again")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"control_net.conv_in.weight": Evil(tmp_path / "was-run")}, tmp_path / "evil.pth")
    refused(str(tmp_path / "evil.pth"), r"'evil\.pth' was refused.*run any program")
    assert not (tmp_path / "was-run").exists()


def test_a_missing_file(tmp_path: Path) -> None:
    refused(str(tmp_path / "none.safetensors"), r"'none\.safetensors' is missing")


def test_control_networks_for_pictures_are_sent_to_their_own_loader(tmp_path: Path) -> None:
    """In ComfyUI's layout and in that of `diffusers`, as a folder and as a single file."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    refused(
        str(train_control.FILE), r"'tiny-depth-control\.safetensors' is no Mask-ControlNet file but a ControlNet for pictures, for Load"
    )
    config = {**diffusers_layout.config_of(SHAPE), "conditioning_channels": 3, "conditioning_embedding_out_channels": [16, 32]}
    theirs: Any = ControlNetModel.from_config(config)
    theirs.save_pretrained(tmp_path)
    refused(str(tmp_path / WEIGHTS), "a ControlNet for pictures, for Load ControlNet Model")
    (tmp_path / WEIGHTS).rename(tmp_path / "alone.safetensors")
    (tmp_path / "config.json").unlink()
    refused(str(tmp_path / "alone.safetensors"), "a ControlNet for pictures, for Load ControlNet Model")


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(8, 4)}, path)
    refused(str(path), r"'lora\.safetensors' is no Mask-ControlNet file but another kind\. Take one from Train Mask-ControlNet")
    torch.save(load_file(path), tmp_path / "lora.pth")
    refused(str(tmp_path / "lora.pth"), "another kind")
    path.write_text("<html>not found</html>")
    refused(str(path), "no model but a text or web page")


def test_a_folder_of_diffusers_must_be_whole(tmp_path: Path) -> None:
    mask_controlnet_file.save_diffusers(content(), tmp_path)
    whole = (tmp_path / "config.json").read_text()
    for broken in (whole[:-20], "", "[]", "null", "[" * 100_000):
        (tmp_path / "config.json").write_text(broken)
        refused(str(tmp_path / WEIGHTS), "the configuration of its control network cannot be read")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\xff")
    refused(str(tmp_path / WEIGHTS), "the configuration of its control network cannot be read")
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(whole), "conditioning_channels": 3}))
    refused(str(tmp_path / WEIGHTS), r"its hint is a picture, not a latent: load it with Load ControlNet Model")
    (tmp_path / "config.json").unlink()
    refused(str(tmp_path / WEIGHTS), r"its config\.json is not beside it: copy the whole folder")


def test_versions_and_metadata_that_cannot_be_read(changed: Any) -> None:
    for version, words in (("2", "format 2"), ("", "format unknown"), (None, "format unknown")):
        refused(changed(format_version=version), rf"{words}; this pack reads format 1\. Update MaskPrompt")
    for broken in ({"latent_scale": "wide"}, {"latent_scale": None}, {"latent_scale": "nan"}, {"latent_scale": "0"}, {"latent_scale": "-1"},
                   {"latent_scale": "inf"}, {"masked": None}, {"masked": "perhaps"}):  # fmt: skip
        refused(changed(**broken), "its metadata cannot be read. The file is damaged")
    refused(changed(config=None), "the configuration of its control network cannot be read")
    refused(changed(format="another"), "no Mask-ControlNet file but another kind")


@pytest.mark.parametrize("key", sorted(diffusers_layout.config_of(SHAPE).keys() - {"_class_name", "in_channels", "upcast_attention",
                                                                                "use_linear_projection"}))  # fmt: skip
def test_a_configuration_that_is_broken_anywhere_is_refused(changed: Any, key: str) -> None:
    """Whatever stands in its place: never an error that only a programmer understands."""
    config = diffusers_layout.config_of(SHAPE)
    for value in (None, "x", -1, 0, 7, [], [0], ["x"], {}, [3, 3, 3], [None] * 3):
        path = changed(config=json.dumps({**config, key: value}))
        with pytest.raises(ValueError, match=r"'changed\.safetensors'.*(damaged|Load ControlNet Model)"):
            mask_controlnet.load(path)


def test_weights_that_are_missing_too_many_or_of_another_shape(changed: Any) -> None:
    name = "control_net.down_blocks.0.resnets.0.conv1.weight"
    refused(changed({name: None}), r"'changed\.safetensors' lacks input_blocks\.1\.0\.in_layers\.2\.weight \(1 in all\): it is damaged")
    refused(changed({"control_net.more": torch.zeros(1)}), r"has too many: more \(1 in all\)")
    refused(changed({name: torch.zeros(32, 16, 3, 3)}), r"input_blocks\.1\.0\.in_layers\.2\.weight has the shape \[32, 16, 3, 3\] where "
            r"\[32, 32, 3, 3\] is needed")  # fmt: skip
    refused(changed({"adapter.layer.bias": None}), r"lacks layer\.bias")
    refused(changed({"adapter.layer.bias": None, "adapter.layer.weight": None}), r"lacks layer\.bias, layer\.weight \(2 in all\)")
    refused(changed({"adapter.layer.bias": torch.zeros(4)}), r"layer\.bias has the shape \[4\] where \[3\] is needed")
    without = {f"control_net.{name}": None for name in diffusers_layout.to_diffusers(content().control, SHAPE)}
    refused(changed(without), r"lacks input_blocks")


def test_a_failed_save_leaves_the_old_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(saved.read_bytes())

    def fail(*given: Any, **more: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        mask_controlnet_file.save(content(about=About(0.5)), path)
    assert path.read_bytes() == saved.read_bytes()
    assert list(tmp_path.iterdir()) == [path]
