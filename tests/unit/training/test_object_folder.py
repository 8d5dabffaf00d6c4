"""Pictures with captions and masks of their objects from a folder and its cache; `train.py mask-controlnet` reads them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.training.data import folder, object_folder, scan_cache
from maskprompt.training.data.folder_scan import PictureFiles, scan
from maskprompt.training.data.object_folder import ObjectFolder, usable
from PIL import Image

HEIGHT = 48
WIDTH = 64


def rectangle(left: int, top: int, width: int, height: int) -> np.ndarray[Any, Any]:
    """White in a picture of 64 x 48 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 255
    return mask


BOXES = {"a": [(2, 2, 20, 20)], "b": [(40, 8, 12, 30), (4, 4, 9, 9)], "c": [(10, 10, 30, 20)], "d": [(0, 0, 5, 48)]}
"""The objects in `draw`'s pictures."""


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


def draw(place: Path) -> Path:
    """Four pictures: a mask beside the first, two in the cache for the second, an alpha channel, and one lying on its side; the second's
    and the third's captions are in the cache."""
    cache = place / object_folder.CACHE
    cache.mkdir(parents=True)
    for number, name in enumerate("abcd"):
        image = picture(number)
        masks = [Image.fromarray(rectangle(*box)) for box in BOXES[name]]
        tag = Image.Exif()
        if name == "c":
            image.putalpha(masks[0])
        if name == "d":
            tag[0x0112] = 6  # shown after a quarter turn clockwise
            image = image.rotate(90, expand=True)
        image.save(place / f"{name}.png", exif=tag)
        ((place if name in "ad" else cache) / f"{name}.txt").write_text(f"\ufeffpicture  {number},\na thing\n", "utf-8")
        for count, mask in enumerate(masks, 1):
            if name != "c":
                mask.save((cache if name == "b" else place) / f"{name}.mask{'' if count == 1 else '-10'}.png")
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return draw(tmp_path / "pictures")


def masked(place: Path, cache: Path | None = None, **how: Any) -> ObjectFolder:
    """The folder, ready to learn from."""
    return ObjectFolder(place, cache, **how).finished()


def shorten(path: Path) -> None:
    """A file that is a picture no more."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_lies_beside_a_picture_or_in_the_cache_is_read_when_it_is_asked_for(place: Path) -> None:
    found = masked(place)
    assert len(found) == 4
    assert found.captions == [f"picture {number}, a thing" for number in range(4)]
    assert found.sizes == [(HEIGHT, WIDTH)] * 4
    for number, name in enumerate("abcd"):
        image, marks, caption, reference = found[number]
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(np.array(picture(number))))
        assert torch.equal(marks, torch.stack([torch.from_numpy(rectangle(*box)) / 255 for box in BOXES[name]]))
        assert caption == found.captions[number]
        assert reference is None


def test_masks_come_in_the_order_of_their_numbers(place: Path) -> None:
    for number, left in ((10, 50), (9, 30), (2, 40)):
        Image.fromarray(rectangle(left, 0, 9, 9)).save(place / f"A.Mask-{number}.PNG")
    assert [int(mark.nonzero()[0, 1]) for mark in masked(place)[0].marks] == [2, 40, 30, 50]


def test_another_cache_and_what_is_beside_a_picture_comes_first(place: Path, tmp_path: Path) -> None:
    shutil.move(place / object_folder.CACHE, tmp_path / "elsewhere")
    cache = tmp_path / "elsewhere"
    with pytest.raises(ValueError, match=r"1 picture \(b\.png\): no mask says"):
        masked(place)
    shutil.rmtree(place / object_folder.CACHE)
    (cache / "a.txt").write_text("another", "utf-8")
    Image.fromarray(rectangle(30, 30, 10, 10)).save(cache / "a.mask.png")
    found = masked(place, cache)
    assert found.captions[:2] == ["picture 0, a thing", "picture 1, a thing"]
    assert int(found[0].marks.sum()) == 400
    assert not (place / object_folder.CACHE).exists()
    Image.fromarray(rectangle(30, 30, 10, 10)).save(place / "b.mask.png")
    assert masked(place, cache)[1].marks.shape[0] == 1


def test_the_pictures_own_folder_may_be_the_cache(place: Path) -> None:
    for file in (place / object_folder.CACHE).iterdir():
        shutil.move(file, place / file.name)
    (place / "b.png").replace(place / "b.jpg")  # another file for the records
    found = masked(place, place)
    assert len(found) == 4
    picture(9).save(place / "b.jpg", "PNG")
    assert masked(place, place)[1].marks.shape[0] == 2, "what lies beside a picture is the artist's"


def test_the_fingerprint_is_of_pictures_masks_and_captions_not_of_names(place: Path) -> None:
    first = masked(place).fingerprint()
    cache = place / object_folder.CACHE
    for file in (place / "a.png", place / "a.txt", place / "a.mask.png"):
        file.rename(file.with_name(file.name.replace("a.", "aa.", 1)))
    assert masked(place).fingerprint() == first
    seen = {first}
    for change in (
        lambda: (cache / "b.txt").write_text("another", "utf-8"),
        lambda: (cache / "b.mask-10.png").unlink(),
        lambda: Image.fromarray(rectangle(0, 0, 21, 20)).save(place / "aa.mask.png"),
        lambda: picture(7).save(place / "d.png"),
    ):
        change()
        seen.add(masked(place).fingerprint())
    assert len(seen) == 5


def test_all_that_cannot_be_used_is_named_up_front_and_left_out_where_that_is_wanted(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    shorten(place / "a.png")
    Image.new("L", (WIDTH, HEIGHT)).save(place / "d.mask.png")
    (place / "e.jpg").write_text("no picture", "utf-8")
    picture(4).save(place / "f.png")
    (place / "f.txt").write_bytes(b"\xff\xfe\xfa")
    Image.new("L", (WIDTH + 1, HEIGHT), 255).save(place / "f.mask.png")
    picture(5).save(place / "g.png")
    (place / "g.txt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ValueError, match=r"^5 of 7 pictures cannot be used\. .*--skip-broken\.\n") as raised:
        masked(place)
    told = str(raised.value).splitlines()[1:]
    reasons = (
        "a.png cannot be read",
        "mask of d.png marks nothing",
        "e.jpg cannot be read",
        "f.png is 64 x 48 pixels but its mask f.mask.png",
        "caption g.txt cannot be read",
    )
    for line, said in zip(told, reasons, strict=True):
        assert said in line
    with caplog.at_level(logging.WARNING):
        found = masked(place, skip_broken=True)
    assert [one.path.name for one in found.pictures] == ["b.png", "c.png"]
    assert "5 of 7 pictures cannot be used and are left out" in caplog.text
    assert "a.png cannot be read" in caplog.text


def test_many_broken_pictures_make_no_endless_message() -> None:
    entries = [PictureFiles(Path(f"{number}.png"), problem=f"{number}.png is broken") for number in range(9)]
    with pytest.raises(ValueError, match=r"^9 of 10 pictures") as raised:
        usable([*entries, PictureFiles(Path("whole.png"))])
    assert str(raised.value).splitlines()[-1] == "  and 4 more"
    with pytest.raises(ValueError, match=r"^9 of 9 pictures cannot be used\.\n"):
        usable(entries, skip_broken=True)


def test_pictures_too_small_for_the_crops(place: Path) -> None:
    assert len(masked(place, size=2 * HEIGHT)) == 4
    with pytest.raises(ValueError, match=r"4 of 4 .*\n *a\.png is 64 x 48 pixels, too small for crops of 104: .*--size of at most 96"):
        masked(place, size=104)
    Image.new("RGB", (200, 200)).save(place / "big.png")
    large = np.zeros((200, 200), rectangle(0, 0, 9, 9).dtype)
    large[:HEIGHT, :WIDTH] = rectangle(0, 0, 9, 9)
    Image.fromarray(large).save(place / "big.mask.png")
    (place / "big.txt").write_text("a big one", "utf-8")
    assert masked(place, size=104, skip_broken=True).captions == ["a big one"]


def test_missing_masks_and_captions_are_named(place: Path) -> None:
    (place / object_folder.CACHE / "c.txt").unlink()
    with pytest.raises(ValueError, match=r"1 picture \(c\.png\): there is no caption\. .*--blip.*c\.txt"):
        masked(place)
    (place / "a.mask.png").unlink()
    (place / "d.mask.png").unlink()
    with pytest.raises(ValueError, match=r"2 pictures \(a\.png, d\.png\): no mask .*--sam.*a\.mask\.png"):
        masked(place)


def test_a_picture_without_an_object_is_left_out(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "a.mask.png").unlink()
    (place / object_folder.CACHE / "a.no-object").touch()
    (place / "a.txt").unlink()  # nor does it need a caption
    with caplog.at_level(logging.WARNING):
        found = masked(place, quiet=True)
    assert [one.path.name for one in found.pictures] == ["b.png", "c.png", "d.png"]
    assert "No object was found in 1 picture (a.png)" in caplog.text
    Image.fromarray(rectangle(2, 2, 20, 20)).save(place / object_folder.CACHE / "a.mask.png")
    (place / "a.txt").write_text("painted by hand", "utf-8")
    assert len(masked(place)) == 4


def test_no_object_in_any_picture(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a", "utf-8")
    (tmp_path / object_folder.CACHE).mkdir()
    (tmp_path / object_folder.CACHE / "a.no-object").touch()
    with pytest.raises(ValueError, match=r"in none of the 1 pictures .*a\.mask\.png"):
        masked(tmp_path)


def test_folders_that_are_no_use(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        masked(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    Image.fromarray(rectangle(0, 0, 9, 9)).save(tmp_path / "empty" / "a.mask-2.png")
    with pytest.raises(ValueError, match="no picture in"):
        masked(tmp_path / "empty")
    for name in "ad":
        (place / f"{name}.txt").write_text(" ", "utf-8")
    for name in "bc":
        (place / object_folder.CACHE / f"{name}.txt").write_text("", "utf-8")
    with pytest.raises(ValueError, match=r"every caption of .* is empty"):
        masked(place)
    picture(0).save(place / "B.jpg")
    with pytest.raises(ValueError, match=r"B\.jpg and b\.png have one name"):
        masked(place)


def test_pictures_are_read_wholly_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    first = scan(place, place / object_folder.CACHE, lambda *count: told.append(count))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    read = folder.open_picture
    opened = []
    monkeypatch.setattr(folder, "open_picture", lambda path: opened.append(path.name) or read(path))
    assert scan(place, place / object_folder.CACHE) == first
    assert opened == []
    Image.fromarray(rectangle(9, 9, 9, 9)).save(place / "a.mask.png")
    assert scan(place, place / object_folder.CACHE) == first
    assert opened == ["a.png", "a.mask.png"]


def test_an_interrupted_scan_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(place, place / object_folder.CACHE, stop)
    read = folder.open_picture
    opened = []
    monkeypatch.setattr(folder, "open_picture", lambda path: opened.append(path.name) or read(path))
    assert len(scan(place, place / object_folder.CACHE)) == 4
    assert opened == ["c.png", "d.png", "d.mask.png"]


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_made_for_another_picture_is_not_taken(place: Path, broken: bool) -> None:
    cache = place / object_folder.CACHE
    (cache / "b.no-object").touch()
    masked(place)
    os.utime(place / "b.png", (1, 1))  # copied, but the same
    assert masked(place)[1].marks.shape[0] == 2
    if broken:
        (place / "b.png").write_text("no picture", "utf-8")
        with pytest.raises(ValueError, match=r"b\.png cannot be read"):
            masked(place)
    picture(11).save(place / "b.png")
    with pytest.raises(ValueError, match=r"1 picture \(b\.png\): no mask"):
        masked(place)
    assert sorted(path.name for path in cache.iterdir()) == ["c.txt", scan_cache.NAME]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": 2, "pictures": {"a.png": {}}}', b'{"version": 2, "pictures": []}', b"\xff"])
def test_damaged_records_are_made_anew(place: Path, content: bytes) -> None:
    path = place / object_folder.CACHE / scan_cache.NAME
    path.write_bytes(content)
    assert len(masked(place)) == 4
    assert set(json.loads(path.read_bytes())["pictures"]) == {"a.png", "b.png", "b.mask.png", "c.png", "d.png"}


def test_a_cache_that_cannot_be_written_is_no_obstacle_where_nothing_is_missing(place: Path, tmp_path: Path) -> None:
    for file in (place / object_folder.CACHE).iterdir():
        shutil.move(file, place / file.name)
    (tmp_path / "file").touch()
    assert len(masked(place, tmp_path / "file" / "cache")) == 4


def test_numbered_masks_are_no_pictures_to_other_trainings(place: Path) -> None:
    shutil.move(place / object_folder.CACHE / "b.txt", place)
    shutil.move(place / object_folder.CACHE / "c.txt", place)
    Image.fromarray(rectangle(9, 9, 9, 9)).save(place / "a.mask-2.png")
    found = folder.captioned(place)
    assert len(found) == 4
    mask = found[0].mask
    assert mask is not None
    assert int(mask.sum()) == 400
    (place / "b.png").unlink()
    assert [one.box["width"] for one in folder.load(place)] == [20, 30, 5]


def test_a_reference_lies_beside_its_picture_in_a_folder(place: Path) -> None:
    before = masked(place)
    fingerprint = before.fingerprint()
    assert not before.have_references
    for number, name in enumerate("abcd"):
        picture(20 + number).save(place / f"{name}.Reference.png")
    found = masked(place)
    assert [one.path.name for one in found.pictures] == ["a.png", "b.png", "c.png", "d.png"]
    assert found.have_references
    found.check_references()
    for number in range(4):
        own = found[number].reference
        assert own is not None
        assert torch.equal((own * 255).round().byte(), torch.from_numpy(np.array(picture(20 + number))))
        assert torch.equal(found[number].image, before[number].image)
    paired = found.fingerprint()
    assert paired != fingerprint
    picture(30).save(place / "a.Reference.png")
    assert masked(place).fingerprint() not in (paired, fingerprint)
    (place / "b.Reference.png").unlink()
    (place / "c.Reference.png").unlink()
    with pytest.raises(ValueError, match=r"2 pictures \(b\.png, c\.png\): there is no reference.*b\.reference\.png.*--pairs"):
        ObjectFolder(place).check_references()


def test_references_in_a_folder_that_are_of_no_use(place: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(place / "a.reference.png")
    (place / "b.reference.jpg").write_text("no picture", "utf-8")
    with pytest.raises(ValueError, match=r"2 of 4 pictures cannot be used") as raised:
        masked(place)
    assert "a.png is 64 x 48 pixels but its reference a.reference.png 64 x 49" in str(raised.value)
    assert "b.reference.jpg cannot be read" in str(raised.value)
    picture(1).save(place / "a.reference.webp", lossless=True)
    with pytest.raises(ValueError, match=r"a\.reference\.png and a\.reference\.webp have one name"):
        masked(place)


def test_the_name_of_a_reference_without_its_picture_is_a_picture(place: Path) -> None:
    picture(9).save(place / "e.reference.png")
    Image.fromarray(rectangle(9, 9, 9, 9)).save(place / "e.reference.mask.png")
    (place / "e.reference.txt").write_text("alone", "utf-8")
    assert masked(place).captions[-1] == "alone"
