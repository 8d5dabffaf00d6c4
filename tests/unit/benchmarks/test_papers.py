"""A paper's table from end to end: a tiny data set of its layout, pictures, small encoders; stopped and gone on; and what is told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from maskprompt.images import foreground
from maskprompt.models.scores import encoders, pairs
from PIL import Image
from safetensors.torch import save_file

from benchmarks.papers import __main__ as papers
from benchmarks.papers import data, make_folder, presets, scoring

from ...support.score_models import clip_folder, dino_folder, inception_file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    clip_folder(folder / "b32")
    dino_folder(folder / "s16")
    return folder


@pytest.fixture
def murecom(tmp_path: Path) -> Path:
    make_folder.main(["murecom", str(tmp_path / "MureCom")])
    return tmp_path / "MureCom"


def paste(cases: list[data.Insertion], folder: Path) -> None:
    """Paints by pasting: each subject's first picture into the box, two pictures a case, the second one darker."""
    for case in cases:
        (folder / case.subject.name).mkdir(parents=True, exist_ok=True)
        left, top, right, bottom = case.place.box
        for number in range(2):
            picture = Image.open(case.place.picture).convert("RGB")
            own = Image.open(case.subject.pictures[0]).resize((right - left, bottom - top))
            picture.paste(own.point(lambda value, number=number: value * (1 - 0.5 * number)), (left, top))
            picture.save(folder / case.subject.name / f"{case.place.picture.stem}_{number}.png")


def run(*arguments: object) -> int:
    return papers.main([str(one) for one in arguments])


def test_dreamcoms_table_from_end_to_end(murecom: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = data.murecom(murecom)
    paste(cases, tmp_path / "pasted")
    given = (
        "dreamcom",
        "--data",
        murecom,
        "--painted",
        f"pasted={tmp_path / 'pasted'}",
        "--clip",
        models / "b32",
        "--dino",
        models / "s16",
    )
    assert run(*given, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "| DreamCom (published) | 0.584 | 0.778 | 0.731 | 0.174 |" in told
    kept = json.loads((tmp_path / "out.json").read_text("utf-8"))["here"]["pasted"]
    assert {score: one["cases"] for score, one in kept.items()} == {"SSIM": 6, "CLIP-I": 6, "DINO": 6}

    expected, dino = [], encoders.load(models / "s16", encoders.DINO)
    for case in cases:
        references = [
            foreground.cut_out(scoring.image_of(one), scoring.mask_of(mask), "keep")
            for one, mask in zip(case.subject.pictures, case.subject.masks, strict=True)
            if mask is not None
        ]
        left, top, right, bottom = case.place.box
        for number in range(2):
            picture = scoring.image_of(tmp_path / "pasted" / case.subject.name / f"{case.place.picture.stem}_{number}.png")
            box = torch.zeros(128, 128)
            box[top:bottom, left:right] = 1
            cut = dino.pictures([foreground.cut_out(picture, box, "keep")])
            expected.append(float((cut @ dino.pictures(references).T).mean()))
    assert kept["DINO"]["value"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert kept["SSIM"]["value"] > 0.95


def test_a_run_that_was_stopped_goes_on_to_the_same_table(
    murecom: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paste(data.murecom(murecom), tmp_path / "pasted")
    given = ("dreamcom", "--data", murecom, "--painted", f"pasted={tmp_path / 'pasted'}", "--dino", models / "s16")
    assert run(*given, "--out", tmp_path / "whole") == 0
    real, calls = pairs.ssim, [0]

    def counted(*inputs: torch.Tensor) -> float:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return real(*inputs)

    monkeypatch.setattr(pairs, "ssim", counted)
    with pytest.raises(KeyboardInterrupt):
        run(*given, "--out", tmp_path / "cut")
    assert run(*given, "--out", tmp_path / "cut") == 0
    assert calls[0] == 6 + 7
    whole, cut = (json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["here"] for name in ("whole", "cut"))
    assert cut == whole

    first = next((tmp_path / "pasted").rglob("*.png"))
    os.utime(first, ns=(1, 1))
    assert run(*given, "--out", tmp_path / "cut") == 0
    assert calls[0] == 6 + 7 + 1


def test_mask_controlnets_table_compares_prompt_and_subject(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder.main(["dreambooth", str(tmp_path / "set")])
    for case, number in zip(data.dreambooth(tmp_path / "set"), (0, 1, 0), strict=True):
        target = tmp_path / "painted" / case.subject.name / f"prompt{number}_0.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(case.subject.pictures[number], target)
    given = ("mask-controlnet", "--data", tmp_path / "set", "--painted", f"real={tmp_path / 'painted'}", "--clip", models / "b32")
    assert run(*given, "--out", tmp_path / "out") == 0
    kept = json.loads((tmp_path / "out.json").read_text("utf-8"))["here"]["real"]
    clip, expected = encoders.load(models / "b32", encoders.CLIP), []
    for case, number in zip(data.dreambooth(tmp_path / "set"), (0, 1, 0), strict=True):
        own = clip.pictures([scoring.image_of(one) for one in case.subject.pictures])
        expected.append(float((own[number] @ own.T).mean()))
    assert kept["CLIP-I"]["value"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert kept["CLIP-T"]["cases"] == 3
    assert "| Mask-ControlNet (published) | 0.593 | 0.858 | 0.175 | 5.172 | 30.67 | 0.958 | 0.022 |" in capsys.readouterr().out


def test_mecas_table_is_a_distance_to_coco(tmp_path: Path) -> None:
    make_folder.main(["coco", str(tmp_path / "coco")])
    shutil.copytree(tmp_path / "coco" / "val2017", tmp_path / "painted")
    file = inception_file(tmp_path / "inception.pth")
    given = ("meca", "--data", tmp_path / "coco", "--painted", f"same={tmp_path / 'painted'}", "--inception", file)
    assert run(*given, "--out", tmp_path / "out") == 0
    kept = json.loads((tmp_path / "out.json").read_text("utf-8"))["here"]["same"]
    assert kept["FID"]["value"] == pytest.approx(0, abs=1e-3)


def test_what_is_missing_is_told(murecom: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    given = ("dreamcom", "--data", murecom, "--painted", f"none={tmp_path / 'empty'}", "--out", tmp_path / "out")
    assert run(*given) == 1
    assert "no model is named" in capsys.readouterr().err
    assert run(*given, "--dino", models / "s16") == 1
    assert "nothing was painted for Big_heart/fg1, 0" in capsys.readouterr().err
    case = data.murecom(murecom)[0]
    (tmp_path / "empty" / case.subject.name).mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "empty" / case.subject.name / "0_0.png")
    assert run(*given, "--dino", models / "s16") == 1
    assert "is not of its background's size, 128 x 128" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"a name, an equals sign and a folder"):
        run("dreamcom", "--painted", "nowhere")
    assert run("mcgm") == 0
    assert "reports no score" in capsys.readouterr().out


def test_pictures_are_read_upright(tmp_path: Path) -> None:
    """As trainings read them: a phone's picture says how it is turned."""
    picture = Image.new("RGB", (4, 2), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    assert scoring.image_of(tmp_path / "turned.png").shape == (4, 2, 3)
    assert scoring.mask_of(tmp_path / "turned.png").shape == (4, 2)


def test_kept_scores_survive_a_stop_in_the_middle_of_a_line(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(picture)
    file = tmp_path / "cases.json"
    assert scoring.Kept(file, "models").of(picture, lambda: {"clip": 0.5}) == {"clip": 0.5}
    with file.open("a") as lines:
        lines.write('\n{"cut o')
    again = scoring.Kept(file, "models")
    assert again.of(picture, lambda: pytest.fail("it was kept")) == {"clip": 0.5}
    assert scoring.Kept(file, "others").of(picture, lambda: {"clip": 0.7}) == {"clip": 0.7}
    assert scoring.Kept(file, "models").of(picture, lambda: pytest.fail("it was kept")) == {"clip": 0.5}


@pytest.mark.parametrize("kind", ["siglip_vision_model", "dinov3"])
def test_a_vision_model_that_gives_no_vector_is_refused_in_words(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redux's SigLIP lies in the same folder as CLIP."""
    import comfy.clip_vision

    save_file({"weight": torch.zeros(1)}, tmp_path / "sigclip.safetensors")
    found = SimpleNamespace(config={"model_type": kind})
    monkeypatch.setattr(comfy.clip_vision, "load_clipvision_from_sd", lambda *_: found)
    for wanted in (encoders.CLIP, encoders.DINO):
        with pytest.raises(ValueError, match=rf"'sigclip.safetensors' is another vision model \({kind}\), and a"):
            encoders.load(tmp_path / "sigclip.safetensors", wanted)


def test_a_rate_of_0_is_the_usual_one_as_on_the_command_line() -> None:
    from maskprompt.training.dreamcom.options import Options

    assert presets._read(Options, "rate=0") == ("rate", None)
    assert presets._read(Options, "rate=1e-4") == ("rate", 1e-4)
    assert presets._read(Options, "steps=0") == ("steps", 0)
