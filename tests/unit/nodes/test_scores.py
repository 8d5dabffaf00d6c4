"""Score Pictures and Score Against as ComfyUI calls them: every input is a list; what they give is what the rooms below give."""

from __future__ import annotations

import gc
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models.scores import encoders, likeness, pairs, sets
from maskprompt.nodes import score_inputs
from maskprompt.nodes.score_against import ScoreAgainst
from maskprompt.nodes.score_pictures import ScorePictures

from ...support.score_models import alexnet_file, clip_folder, coarse, dino_folder, inception_file


@pytest.fixture
def models(folders: Path) -> Path:
    clip_folder(folders / "models" / "clip_vision" / "b32")
    dino_folder(folders / "models" / "dino" / "s16")
    return folders / "models"


@pytest.fixture(scope="module")
def fid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_file(tmp_path_factory.mktemp("inception") / "fid.pth")


@pytest.fixture
def inception(folders: Path, fid: Path) -> Path:
    """The Inception network in ComfyUI's folder."""
    (folders / "models" / "inception").mkdir()
    return Path(shutil.copyfile(fid, folders / "models" / "inception" / "fid.pth"))


class Hidden:
    unique_id = None


@pytest.fixture(autouse=True)
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for node in (ScorePictures, ScoreAgainst):
        monkeypatch.setattr(node, "hidden", Hidden, raising=False)


def score(*images: torch.Tensor, clip: str = "none", dino: str = "none", **lists: list[Any]) -> tuple[Any, ...]:
    return ScorePictures.execute(images=list(images), clip_name=[clip], dino_name=[dino], **lists).args


def against(*images: torch.Tensor, references: list[Any], lpips: str = "none", inception: str = "none", **lists: Any) -> tuple[Any, ...]:
    return ScoreAgainst.execute(images=list(images), references=references, lpips_name=[lpips], inception_name=[inception], **lists).args


def test_all_scores_of_pictures_of_several_sizes(models: Path) -> None:
    images, references = [coarse(2), coarse(1, 30, 30, seed=4)], [coarse(2, 33, 44, seed=5)]
    text, clip_t, clip_i, dino = score(*images, clip="b32", dino="s16", references=references, prompt=["a cat"])
    flat = [*images[0], *images[1]]
    clip, own = encoders.load(models / "clip_vision" / "b32", "CLIP"), encoders.load(models / "dino" / "s16", "DINO")
    assert clip_t == pytest.approx(sum(likeness.to_prompts(clip, flat, ["a cat"] * 3)) / 3)
    assert clip_i == pytest.approx(sum(likeness.to_references(clip, flat, list(references[0]))) / 3)
    assert dino == pytest.approx(sum(likeness.to_references(own, flat, list(references[0]))) / 3)
    assert text.count("\n") == 7
    assert "CLIP: b32" in text
    assert "DINO: s16" in text


def test_what_is_not_asked_for_is_nan(models: Path) -> None:
    _, clip_t, clip_i, dino = score(coarse(1), clip="b32", prompt=["a cat"])
    assert math.isfinite(clip_t)
    assert math.isnan(clip_i)
    assert math.isnan(dino)


def test_masks_leave_the_foreground_alone(models: Path) -> None:
    """Two pictures that are alike inside the mask and nowhere else score as one and the same."""
    one, other = coarse(1), coarse(1, seed=1)
    mask = torch.zeros(1, 40, 60)
    mask[:, 10:30, 10:40] = 1
    other[mask[..., None].expand_as(other) > 0] = one[mask[..., None].expand_as(one) > 0]
    whole = score(one, dino="s16", references=[other])[3]
    inside = score(one, dino="s16", references=[other], masks=[mask], reference_masks=[mask])[3]
    assert inside == pytest.approx(1.0, abs=1e-6)
    assert whole < 0.99


def test_a_bar_counts_every_picture(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    from comfy.utils import ProgressBar

    def note(bar: Any, value: int, total: Any = None, preview: Any = None) -> None:
        seen.append((value, bar.total))

    monkeypatch.setattr(ProgressBar, "update_absolute", note)
    score(coarse(9), clip="b32", dino="s16", references=[coarse(2, seed=3)], prompt=["a cat"])
    values = [value for value, _ in seen]
    assert values == sorted(values)
    assert seen[-1] == (9 + 2 * 11, 9 + 2 * 11)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "no model is chosen"),
        ({"dino": "s16", "prompt": ["a cat"]}, "clip_name is none: CLIP-T needs CLIP"),
        ({"clip": "b32"}, "nothing to compare with: write a prompt"),
        ({"clip": "b32", "dino": "s16", "prompt": ["a cat"]}, "references is not wired"),
        ({"clip": "b32", "prompt": ["a\nb\nc"]}, "prompt holds 3 lines and images 2 pictures"),
        ({"dino": "gone", "references": [coarse(1)]}, "no DINO model 'gone'"),
        ({"clip": "b32", "references": [coarse(1)], "masks": [torch.zeros(1, 8, 8)]}, "picture 1 of images: the mask shows nothing"),
        ({"clip": "b32", "references": [torch.rand(0, 8, 8, 3)]}, "references is a batch of no pictures"),
    ],
)
def test_score_pictures_tells_what_is_wrong(inputs: dict[str, Any], said: str, models: Path) -> None:
    with pytest.raises(ValueError, match=said):
        score(coarse(2), **inputs)


def test_scores_against_originals(folders: Path, inception: Path) -> None:
    alexnet_file(folders / "models" / "lpips" / "alex.pth")
    images, references = coarse(3, 64, 64), coarse(3, 64, 64, seed=1)
    text, fid, score_, lpips, ssim, psnr = against(images, references=[references], lpips="alex.pth", inception="fid.pth", splits=[10])
    network = pairs.load_lpips(str(folders / "models" / "lpips" / "alex.pth"))
    found = pairs.score_pairs(list(images), list(references), None, network)
    seen = sets.load_inception(str(inception)).see([*images, *references])
    assert fid == pytest.approx(sets.frechet_distance(seen.features[:3], seen.features[3:]), rel=1e-5)
    assert score_ == pytest.approx(sets.inception_score(seen.logits[:3], 3)[0], rel=1e-5)
    assert lpips == pytest.approx(sum(found["lpips"]) / 3, rel=1e-5)
    assert ssim == pytest.approx(sum(found["ssim"]) / 3)
    assert psnr == pytest.approx(sum(found["psnr"]) / 3)
    assert "compare it only with FIDs of as many" in text
    assert "IS: 3 parts" in text


@pytest.mark.usefixtures("inception")
def test_sets_alone_may_differ_in_number_and_size() -> None:
    found = against(coarse(2), references=[coarse(2), coarse(1, 20, 20)], inception="fid.pth", pairs=[False])
    assert math.isfinite(found[1])
    assert all(math.isnan(one) for one in found[3:])
    text, fid, *_ = against(coarse(1), references=[coarse(3)], inception="fid.pth", pairs=[False])
    assert math.isnan(fid)
    assert "FID needs at least two pictures" in text


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"references": [coarse(2, 30, 30)]}, r"picture 1 and its reference differ in size \(60 x 40 and 30 x 30 pixels\)"),
        ({"references": [coarse(3)]}, "images holds 2 pictures and references 3"),
        ({"references": [coarse(2)], "pairs": [False]}, "nothing is asked for"),
        ({"references": [coarse(2)], "lpips": "gone.pth"}, r"no file 'gone.pth' in .*lpips .*Download alexnet"),
        ({"references": [coarse(2)], "inception": "gone.pth"}, r"no file 'gone.pth' in .*inception .*Download weights-inception"),
        ({"references": [coarse(2)], "masks": [torch.ones(3, 8, 8)]}, "masks holds 3 masks and images 2 pictures"),
    ],
)
def test_score_against_tells_what_is_wrong(inputs: dict[str, Any], said: str, folders: Path) -> None:
    with pytest.raises(ValueError, match=said):
        against(coarse(2), **inputs)


def test_models_live_as_long_as_their_node(models: Path) -> None:
    node = ScorePictures()
    score(coarse(1), clip="b32", prompt=["a cat"])
    (model,) = score_inputs._used[node][1]
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert encoders.load(models / "clip_vision" / "b32", "CLIP") is alive()
    score_inputs.hold("Score Against", [])
    assert alive() is not None
    del node
    gc.collect()
    assert alive() is None


def test_a_list_of_prompts_is_one_for_each_picture(models: Path) -> None:
    """As a list of prompts and the list of pictures painted from it come; a line break in one of them begins no other."""
    images = coarse(3)
    together = score(images, clip="b32", prompt=["a cat\na dog\na hat"])[1]
    assert score(*(one[None] for one in images), clip="b32", prompt=["a cat", "a dog", "a hat"])[1] == pytest.approx(together)
    broken = score(*(one[None] for one in images), clip="b32", prompt=["a\ncat", "a dog", "a hat"])[1]
    assert broken == pytest.approx(together)
    with pytest.raises(ValueError, match="prompt holds 2 lines and images 3 pictures"):
        score(images, clip="b32", prompt=["a cat", "a dog"])


def test_a_mask_of_another_shape_is_refused(models: Path) -> None:
    with pytest.raises(ValueError, match=r"picture 1 of images: the mask is 90x30 but the picture is 60x40: their shapes differ"):
        score(coarse(1), dino="s16", references=[coarse(1)], masks=[torch.ones(1, 30, 90)])
    with pytest.raises(ValueError, match="their shapes differ"):
        against(coarse(1), references=[coarse(1, seed=1)], masks=[torch.ones(1, 30, 90)])
