"""The papers' data sets as their folders are published, their own figures, and the table that stands them beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.papers import data, make_folder, published, table


@pytest.fixture
def murecom(tmp_path: Path) -> Path:
    make_folder.main(["murecom", str(tmp_path / "MureCom")])
    return tmp_path / "MureCom"


@pytest.fixture
def dreambooth(tmp_path: Path) -> Path:
    make_folder.main(["dreambooth", str(tmp_path / "dreambooth")])
    return tmp_path / "dreambooth"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    make_folder.main(["coco", str(tmp_path / "coco")])
    return tmp_path / "coco"


def test_murecom_is_every_subject_in_every_place_of_its_category(murecom: Path) -> None:
    found = data.murecom(murecom)
    assert [(one.subject.name, one.subject.noun, one.place.picture.name, one.place.box) for one in found] == [
        ("Big_heart/fg1", "big heart", "0.jpg", (30, 40, 80, 100)),
        ("Big_heart/fg1", "big heart", "1.jpg", (31, 40, 81, 100)),
        ("Big_heart/fg2", "big heart", "0.jpg", (30, 40, 80, 100)),
        ("Big_heart/fg2", "big heart", "1.jpg", (31, 40, 81, 100)),
        ("Star/fg1", "star", "0.jpg", (30, 40, 80, 100)),
        ("Star/fg1", "star", "1.jpg", (31, 40, 81, 100)),
    ]
    subject = found[0].subject
    assert [one.name for one in subject.pictures] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [one.name if one else None for one in subject.masks] == ["0.png", "1.png", "2.png"]


def test_a_picture_may_lack_its_mask_and_ten_comes_after_two(murecom: Path) -> None:
    folder = murecom / "Star" / "fg1"
    (folder / "1.png").unlink()
    (folder / "0.jpg").rename(folder / "10.jpg")
    subject = data.murecom(murecom)[-1].subject
    assert [one.name for one in subject.pictures] == ["0.png", "1.jpg", "2.jpg", "10.jpg"]
    assert [one.name if one else None for one in subject.masks] == [None, None, "2.png", None]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Star 0.jpg 1 2 3", "line 1: 'Star 0.jpg 1 2 3' is not a picture's name and four whole numbers"),
        ("Star 9.jpg 1 2 3 4", "line 1 names 9.jpg, which is not there"),
        ("Star 0.jpg 500 2 600 9", "the box of 0.jpg is empty in its 128 x 128 pixels"),
    ],
)
def test_a_wrong_box_is_told(murecom: Path, line: str, said: str) -> None:
    (murecom / "Star" / "bg" / "bbox.txt").write_text(line)
    with pytest.raises(ValueError, match=said):
        data.murecom(murecom)


def test_the_dreambooth_set_has_prompts_by_kind(dreambooth: Path) -> None:
    found = data.dreambooth(dreambooth)
    assert [(one.subject.name, one.text("sks")) for one in found] == [
        ("striped_heart", "a sks heart on the beach"), ("striped_heart", "a red sks heart"), ("dog", "a sks dog wearing a red hat"),
    ]  # fmt: skip
    assert found[1].text() == "a red heart"
    assert found[0].subject.masks == (None, None, None)
    assert data.dreambooth(dreambooth / "dataset") == found


def test_coco_is_its_outlines_without_crowds(coco: Path) -> None:
    found = data.coco(coco)
    assert [(one.picture.name, one.category) for one in found] == [
        ("000000000000.jpg", "heart"), ("000000000001.jpg", "star"), ("000000000002.jpg", "heart"),
    ]  # fmt: skip
    mask = found[0].mask()
    rows, columns = np.nonzero(mask)
    outline = np.asarray(found[0].polygons[0])
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (*outline.min(0), *outline.max(0))
    assert mask.sum() / mask.size == pytest.approx(found[0].area, rel=0.05)
    with pytest.raises(ValueError, match=r"no thing that takes 0.9 to 1 of a picture"):
        data.coco(coco, smallest=0.9, largest=1)


@pytest.mark.parametrize("read", [data.murecom, data.dreambooth, data.coco])
def test_another_folder_is_told(read: object, tmp_path: Path) -> None:
    assert callable(read)
    with pytest.raises(ValueError, match=r"bg/bbox.txt|prompts_and_classes.txt|instances_val2017.json"):
        read(tmp_path)


def test_what_is_published_is_what_the_papers_say() -> None:
    """Differences that the papers themselves put into words, and the best of each column that they print bold or call the best."""
    rows = published.DREAMCOM_MURECOM.rows
    assert rows["DreamCom"]["DINO"] - rows["DreamCom without masked cross-attention"]["DINO"] == pytest.approx(0.018)
    assert rows["DreamCom"]["DINO"] - rows["DreamCom without masked self-attention"]["DINO"] == pytest.approx(0.011)
    assert rows["DreamCom"]["DINO"] - rows["DreamCom without both"]["DINO"] == pytest.approx(0.038)
    assert rows["DreamCom"]["CLIP-I"] - rows["DreamCom without both"]["CLIP-I"] == pytest.approx(0.014)
    for one in (published.DREAMCOM_MURECOM, published.DREAMCOM_DREAMEDIT):
        assert max(one.rows, key=lambda name: one.rows[name]["DINO"]) == "DreamCom"
    assert min(published.MECA.rows, key=lambda name: published.MECA.rows[name]["FID"]) == "Ours, image and text"
    assert set(published.TABLES) == {"dreamcom", "mcgm", "mask-controlnet", "meca"}


def test_the_table_stands_both_side_by_side(tmp_path: Path) -> None:
    values = {"masked": {"DINO": [0.5, 0.6, 0.7], "CLIP-I": [0.8, 0.8, 0.8]}, "plain": {"DINO": [0.4]}}
    text = table.write(published.DREAMCOM_DREAMEDIT, values, "python -m benchmarks.papers dreamcom", tmp_path / "out" / "dreamcom")
    lines = text.splitlines()
    assert lines[2] == "| method | DINO \u2191 | CLIP-I \u2191 | SSIM \u2191 | LPIPS \u2193 |"
    assert "| DreamCom (published) | 0.669 | 0.805 | 0.776 | 0.154 |" in lines
    assert any(
        line.startswith("| **masked (here)** | 0.600 (0.5") and "3 cases) | 0.800 (0.800 to 0.800, 3 cases) |  |  |" in line
        for line in lines
    )
    assert "| **plain (here)** | 0.400 |  |  |  |" in lines
    assert (tmp_path / "out" / "dreamcom.md").read_text("utf-8") == text + "\n"
    kept = json.loads((tmp_path / "out" / "dreamcom.json").read_text("utf-8"))
    assert kept["here"]["masked"]["DINO"]["value"] == pytest.approx(0.6)


def test_a_folder_that_is_there_is_left_alone(murecom: Path) -> None:
    with pytest.raises(SystemExit, match="is there already"):
        make_folder.main(["murecom", str(murecom)])


def test_masks_show_the_subject(murecom: Path) -> None:
    """What the script draws is what the layout says: white where the subject is."""
    subject = data.murecom(murecom)[0].subject
    assert subject.masks[0] is not None
    with Image.open(subject.masks[0]) as opened:
        mask = np.asarray(opened.convert("L")) > 127
    with Image.open(subject.pictures[0]) as opened:
        picture = np.asarray(opened.convert("RGB"), np.float32)
    assert 0.05 < mask.mean() < 0.5
    assert np.abs(picture[mask].mean(0) - picture[~mask].mean(0)).max() > 30


def test_a_pose_stands_in_the_place_of_a_thing_of_its_kind() -> None:
    dog, frisbee, cat = (data.Instance(Path(f"{name}.jpg"), name, (), 1.0) for name in ("dog", "frisbee", "cat"))
    assert data.in_order_of((dog, frisbee), (frisbee, dog)) == (dog, frisbee)
    assert data.in_order_of((dog, frisbee), (cat, dog)) == (dog, cat)
    assert data.in_order_of((dog, frisbee), (cat, frisbee)) == (cat, frisbee)
    assert data.in_order_of((dog, frisbee), (frisbee, cat)) == (cat, frisbee)
