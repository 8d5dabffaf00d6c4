"""Each paper's experiment from end to end on the tiny model: trained, painted, scored; killed and gone on to the same table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from maskprompt.training.dreamcom.loss import Loss as DreamComLoss
from maskprompt.training.mask_controlnet.loss import Loss as MaskControlNetLoss
from maskprompt.training.mcgm.loss import Loss as MCGMLoss
from maskprompt.training.meca.loss import Loss as MecaLoss

from benchmarks.papers import __main__ as papers
from benchmarks.papers import arguments, make_folder, published, sampling, scoring
from benchmarks.papers.work import Share, Work
from demo import setup, tiny_model

from ...support.command import checkpoints, read_once
from ...support.papers import LORA, NETWORK, SMALL, calls_of, half_done, rows, whole
from ...support.sam import small_sam
from ...support.score_models import clip_folder, dino_folder, inception_file

__all__ = ["checkpoints", "read_once"]  # fixtures
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("read_once")]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("models")
    return "--clip", clip_folder(folder / "b32"), "--dino", dino_folder(folder / "s16")


@pytest.fixture(scope="module")
def murecom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "MureCom"
    make_folder.murecom(folder, pictures=2, backgrounds=1)
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
    """All weights learn, as in the paper; both presets paint with them. A case for each of two subjects."""
    given = (*SMALL, *scored, "--set", "steps=2", "--set", "rate=0.001", "--set", "method=full", "--preset", "both", "--cases", 2)
    assert whole("dreamcom", murecom, tmp_path / "whole", *given) == 0
    assert "| DreamCom (published) | 0.584 |" in capsys.readouterr().out
    found = rows(tmp_path / "whole")
    assert [name.partition(" but size 64")[0] for name in found] == ["DreamCom, the paper's settings", "DreamCom, our settings"]
    assert all({score: one["cases"] for score, one in row.items()} == {"SSIM": 2, "CLIP-I": 2, "DINO": 2} for row in found.values())
    published, ours = sorted((tmp_path / "whole" / "painted").iterdir(), key=lambda folder: "our" in folder.name)
    for folder in (published, ours):
        assert [one.parent.name + "/" + one.name for one in sorted(folder.rglob("*.png"))] == ["fg1/0_0.png", "fg2/0_0.png"]
    before = scoring.image_of(murecom / "Big_heart" / "bg" / "0.jpg")
    painted = [scoring.image_of(folder / "Big_heart" / "fg1" / "0_0.png") for folder in (published, ours)]
    changed = [(picture - before).abs().amax(-1) > 0.5 / 255 for picture in painted]
    # The published code pastes the whole piece: the box (30, 40, 80, 100) and half of its size around it; ours the box alone.
    for mask, (left, top, right, bottom) in zip(changed, ((5, 10, 105, 128), (30, 40, 80, 100)), strict=True):
        lines = [mask.any(axis).nonzero()[:, 0] for axis in (0, 1)]
        assert [int(line[end]) for line in lines for end in (0, -1)] == [left, right - 1, top, bottom - 1]

    half_done(tmp_path / "whole", tmp_path / "cut", pictures=2)
    with monkeypatch.context() as patch:
        calls_of(DreamComLoss, "__call__", patch, ends_at=2)
        assert whole("dreamcom", murecom, tmp_path / "cut", *given) == 130
    assert [one.name.startswith("dreamcom-Big_heart-fg2") for one in (tmp_path / "cut" / "states").iterdir()] == [True]
    with monkeypatch.context() as patch:
        steps = calls_of(DreamComLoss, "__call__", patch)
        calls_of(sampling.Painter, "paint", patch, ends_at=2)
        assert whole("dreamcom", murecom, tmp_path / "cut", *given) == 130
        assert steps == [1]
    assert not list((tmp_path / "cut").glob("table*"))
    with monkeypatch.context() as patch:
        paintings = calls_of(sampling.Painter, "paint", patch)
        assert whole("dreamcom", murecom, tmp_path / "cut", *given) == 0
        assert paintings == [1]
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

    half_done(tmp_path / "whole", tmp_path / "cut", pictures=1)
    with monkeypatch.context() as patch:
        calls_of(MCGMLoss, "__call__", patch, ends_at=2)
        assert whole("mcgm", coco, tmp_path / "cut", *given) == 130
    assert whole("mcgm", coco, tmp_path / "cut", *given, "--share", "1/2") == 0
    assert not list((tmp_path / "cut").glob("table*"))
    with monkeypatch.context() as patch:
        count = calls_of(MCGMLoss, "__call__", patch)
        assert whole("mcgm", coco, tmp_path / "cut", *given, "--share", "2/2") == 0
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

    half_done(tmp_path / "whole", tmp_path / "cut", pictures=2)
    with monkeypatch.context() as patch:
        calls_of(MaskControlNetLoss, "__call__", patch, ends_at=2)
        assert whole("mask-controlnet", tmp_path / "set", tmp_path / "cut", *given) == 130
    with monkeypatch.context() as patch:
        steps = calls_of(MaskControlNetLoss, "__call__", patch)
        paintings = calls_of(sampling.Painter, "paint", patch)
        assert whole("mask-controlnet", tmp_path / "set", tmp_path / "cut", *given) == 0
        assert (steps, paintings) == ([1], [2])
    assert (tmp_path / "cut" / "table.md").read_bytes() == (tmp_path / "whole" / "table.md").read_bytes()


def test_meca_by_region_with_and_without_text(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: tuple[object, ...] = ("--inception", inception_file(tmp_path / "inception.pth"), "--train", coco, "--cases", 2)
    given = (*SMALL, *NETWORK, *given, "--clip-vision", tiny_model.ROOT / "demo" / "tiny-clip-vision.safetensors")
    assert whole("meca", coco, tmp_path / "whole", *given) == 0
    assert [set(found) for found in rows(tmp_path / "whole").values()] == [{"FID", "IS"}, {"FID", "IS"}]

    half_done(tmp_path / "whole", tmp_path / "cut", pictures=1)
    with monkeypatch.context() as patch:
        calls_of(MecaLoss, "__call__", patch, ends_at=2)
        assert whole("meca", coco, tmp_path / "cut", *given) == 130
    with monkeypatch.context() as patch:
        steps = calls_of(MecaLoss, "__call__", patch)
        paintings = calls_of(sampling.Painter, "paint", patch)
        assert whole("meca", coco, tmp_path / "cut", *given) == 0
        assert (steps, paintings) == ([1], [1])
    assert (tmp_path / "cut" / "table.md").read_bytes() == (tmp_path / "whole" / "table.md").read_bytes()


@pytest.mark.parametrize(
    ("paper", "changes", "said"),
    [
        ("dreamcom", {"--data": "nowhere"}, "there is no folder nowhere"),
        ("mcgm", {"--data": "."}, r"there is no annotations.instances_val2017.json"),
        ("dreamcom", {"--checkpoint": "none.safetensors"}, "there is no checkpoint none.safetensors, neither from here nor in "),
        ("dreamcom", {"--dino": "none"}, "none"),
        ("dreamcom", {"--comfyui": "nowhere"}, "no ComfyUI at .*nowhere"),
        ("dreamcom", {"--set": "step=2"}, "--set step=2: an option, an equals sign and a value are needed. The options are token, noun"),
        ("dreamcom", {"--set": "steps=few"}, "--set steps=few: steps takes a whole number"),
        ("dreamcom", {"--set": "method=all"}, "--set method=all: method is one of auto, lora, full"),
        ("dreamcom", {"--share": "3/2"}, "--share 3/2: a part and the number of parts are needed"),
        ("dreamcom", {"--painted": "a=b"}, "--painted is for what was painted elsewhere"),
        ("mask-controlnet", {"--data": "SET"}, "0.jpg has no mask: put 0.png beside it, or let SAM find it with --sam FILE"),
        ("meca", {"--data": "COCO"}, "no vision model is named: give --clip-vision"),
        ("meca", {"--data": "COCO", "--clip-vision": "VISION"}, "no network is given: name a trained one with --network FILE"),
        ("meca", {"--data": "COCO", "--clip-vision": "VISION", "--network": "no.bin"}, "there is no --network no.bin"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_trained(
    paper: str, changes: dict[str, str], said: str, murecom: Path, coco: Path, scored: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COMFYUI_PATH", str(setup.comfyui_path()))
    if changes.get("--data") == "SET":
        make_folder.dreambooth(tmp_path / "set", pictures=1)
    places = {"SET": tmp_path / "set", "COCO": coco, "VISION": tiny_model.ROOT / "demo" / "tiny-clip-vision.safetensors"}
    given = {"--data": murecom, "--checkpoint": tiny_model.CHECKPOINT, "--dino": scored[3], "--out": tmp_path / "out"}
    given |= {name: places.get(value, value) for name, value in changes.items()}
    assert papers.main([paper, *(str(part) for both in given.items() for part in both)]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not [one for one in (tmp_path / "out").rglob("*") if one.is_file()]


def test_ablations_are_rows_that_the_papers_have(murecom: Path, coco: Path, tmp_path: Path) -> None:
    make_folder.dreambooth(tmp_path / "set", pictures=1)
    counts = {"dreamcom": 4, "mask-controlnet": 2}
    for paper, place in (("dreamcom", murecom), ("mask-controlnet", tmp_path / "set"), ("mcgm", coco), ("meca", coco)):
        line = [paper, "--data", place, "--checkpoint", tiny_model.CHECKPOINT, "--clip-vision", "any", "--preset", "both", "--ablations"]
        given = arguments.parser("").parse_args([str(one) for one in line])
        found = [method.name for method, _ in papers.EXPERIMENTS[paper](Work(given, Share(), tmp_path / "out")).rows.values()]
        assert len(found) == 2 * len(set(found))
        if paper in counts:
            assert len(set(found) & set(published.TABLES[paper][0].rows)) == counts[paper]


def test_a_share_is_told_by_hand_or_by_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Share.read(None) == Share(0, 1)
    assert [Share.read(f"{number}/3").of("abcdefg") for number in (1, 2, 3)] == ["adg", "be", "cf"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Share.read(None) == Share(1, 4)
    assert Share.read("1/1") == Share(0, 1)
