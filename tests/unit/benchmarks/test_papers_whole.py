"""Each paper's experiment from end to end on the tiny model: trained, painted, scored; killed and gone on to the same table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from maskprompt.training.dreamcom.loss import Loss as DreamComLoss
from maskprompt.training.mask_controlnet.loss import Loss as MaskControlNetLoss
from maskprompt.training.mcgm.loss import Loss as MCGMLoss
from maskprompt.training.meca.loss import Loss as MecaLoss

from benchmarks.papers import make_folder, sampling
from demo import tiny_model

from ...support.papers import LORA, NETWORK, SMALL, calls_of, rows, whole
from ...support.sam import small_sam
from ...support.score_models import clip_folder, dino_folder, inception_file


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("models")
    return "--clip", clip_folder(folder / "b32"), "--dino", dino_folder(folder / "s16")


@pytest.fixture(scope="module")
def murecom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "MureCom"
    make_folder.main(["murecom", str(folder)])
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "coco"
    make_folder.main(["coco", str(folder)])
    return folder


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "small_sam.pth"
    torch.save(small_sam().state_dict(), file)
    return file


def test_dreamcom_killed_while_training_and_painting(
    murecom: Path, scored: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*SMALL, *LORA, *scored, "--set", "steps=2", "--set", "rate=0.001", "--cases", 3)
    assert whole("dreamcom", murecom, tmp_path / "whole", *given) == 0
    assert "| DreamCom (published) | 0.584 |" in capsys.readouterr().out
    ((name, found),) = rows(tmp_path / "whole").items()
    assert name.startswith("DreamCom, the paper's settings but size 64")
    assert {score: one["cases"] for score, one in found.items()} == {"SSIM": 3, "CLIP-I": 3, "DINO": 3}
    painted = sorted((tmp_path / "whole" / "painted").rglob("*.png"))
    assert [one.parent.name + "/" + one.name for one in painted] == ["fg1/0_0.png", "fg1/1_0.png", "fg2/0_0.png"]

    with monkeypatch.context() as patch:
        calls_of(DreamComLoss, "__call__", patch, ends_at=2)
        assert whole("dreamcom", murecom, tmp_path / "cut", *given) == 130
    assert [one.name.startswith("dreamcom-Big_heart-fg1") for one in (tmp_path / "cut" / "states").iterdir()] == [True]
    with monkeypatch.context() as patch:
        steps = calls_of(DreamComLoss, "__call__", patch)
        calls_of(sampling.Painter, "paint", patch, ends_at=2)
        assert whole("dreamcom", murecom, tmp_path / "cut", *given) == 130
        assert steps == [1]
    assert not list((tmp_path / "cut").glob("table*"))
    with monkeypatch.context() as patch:
        paintings = calls_of(sampling.Painter, "paint", patch)
        assert whole("dreamcom", murecom, tmp_path / "cut", *given) == 0
        assert paintings == [2]
    assert (tmp_path / "cut" / "table.md").read_bytes() == (tmp_path / "whole" / "table.md").read_bytes()
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_mcgm_in_two_shares(coco: Path, scored: tuple[object, ...], sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second phase of the second training; then a share each of two processes, of which the last one writes the table."""
    steps = ("--set", "steps=1", "--set", "weight_steps=1", "--set", "variations=2", "--set", "rate=0.001")
    given = (*SMALL, *LORA, *steps, *scored, "--sam", sam, "--cases", 2)
    assert whole("mcgm", coco, tmp_path / "whole", *given) == 0
    ours, baseline = rows(tmp_path / "whole").values()
    assert set(ours) == {"CLIP-T", "CLIP-I", "DINO", "IoU", "preferred, %"}
    assert ours["preferred, %"]["value"] + baseline["preferred, %"]["value"] == 100
    assert ours["IoU"]["cases"] == 2

    with monkeypatch.context() as patch:
        calls_of(MCGMLoss, "__call__", patch, ends_at=4)
        assert whole("mcgm", coco, tmp_path / "cut", *given) == 130
    assert whole("mcgm", coco, tmp_path / "cut", *given, "--share", "2/2") == 0
    assert not list((tmp_path / "cut").glob("table*"))
    with monkeypatch.context() as patch:
        count = calls_of(MCGMLoss, "__call__", patch)
        assert whole("mcgm", coco, tmp_path / "cut", *given, "--share", "1/2") == 0
        assert count == [1]
    assert (tmp_path / "cut" / "table.md").read_bytes() == (tmp_path / "whole" / "table.md").read_bytes()


def test_mask_controlnet_trained_on_coco(
    coco: Path, scored: tuple[object, ...], sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two subjects without masks, which SAM finds; three prompts, and each subject's picture painted again."""
    make_folder.dreambooth(tmp_path / "set", pictures=1)
    given = (*SMALL, *NETWORK, *scored, "--sam", sam, "--train", coco)
    assert whole("mask-controlnet", tmp_path / "set", tmp_path / "whole", *given) == 0
    (found,) = rows(tmp_path / "whole").values()
    assert {score: one["cases"] for score, one in found.items()} == {"CLIP-T": 3, "CLIP-I": 3, "DINO": 3, "PSNR": 2, "SSIM": 2}

    with monkeypatch.context() as patch:
        calls_of(MaskControlNetLoss, "__call__", patch, ends_at=2)
        assert whole("mask-controlnet", tmp_path / "set", tmp_path / "cut", *given) == 130
    with monkeypatch.context() as patch:
        steps = calls_of(MaskControlNetLoss, "__call__", patch)
        calls_of(sampling.Painter, "paint", patch, ends_at=3)
        assert whole("mask-controlnet", tmp_path / "set", tmp_path / "cut", *given) == 130
        assert steps == [1]
    assert whole("mask-controlnet", tmp_path / "set", tmp_path / "cut", *given) == 0
    assert (tmp_path / "cut" / "table.md").read_bytes() == (tmp_path / "whole" / "table.md").read_bytes()


def test_meca_by_region_with_and_without_text(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: tuple[object, ...] = ("--inception", inception_file(tmp_path / "inception.pth"), "--train", coco, "--cases", 2)
    given = (*SMALL, *NETWORK, *given, "--clip-vision", tiny_model.ROOT / "demo" / "tiny-clip-vision.safetensors")
    assert whole("meca", coco, tmp_path / "whole", *given) == 0
    assert [set(found) for found in rows(tmp_path / "whole").values()] == [{"FID", "IS"}, {"FID", "IS"}]

    with monkeypatch.context() as patch:
        calls_of(MecaLoss, "__call__", patch, ends_at=2)
        assert whole("meca", coco, tmp_path / "cut", *given) == 130
    with monkeypatch.context() as patch:
        steps = calls_of(MecaLoss, "__call__", patch)
        calls_of(sampling.Painter, "paint", patch, ends_at=3)
        assert whole("meca", coco, tmp_path / "cut", *given) == 130
        assert steps == [1]
    assert whole("meca", coco, tmp_path / "cut", *given) == 0
    assert (tmp_path / "cut" / "table.md").read_bytes() == (tmp_path / "whole" / "table.md").read_bytes()
