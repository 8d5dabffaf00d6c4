"""Folders as people have them: tags of cameras that are damaged, masks mended in the cache, a stray transparent pixel, other endings."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.training.command.mcgm import marked
from maskprompt.training.data import folder, object_folder
from maskprompt.training.data.object_folder import ObjectFolder
from PIL import Image, ImageOps

WIDTH, HEIGHT = 64, 48


def picture(number: int = 0) -> Image.Image:
    """Noise, so that turned or mirrored it is another picture."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def mask(left: int, top: int, right: int, bottom: int) -> Image.Image:
    """White in a box."""
    drawn = Image.new("L", (WIDTH, HEIGHT))
    drawn.paste(255, (left, top, right, bottom))
    return drawn


SHORT, WORDS, RATIONAL = 3, 2, 5
"""Kinds of values in EXIF."""
RESOLUTION = 0x011A


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with those entries: tag, kind, count, and the four bytes that hold the value or say where it lies."""
    parts = [struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(parts) + bytes(4)


def turned(value: int) -> bytes:
    return exif((folder.ORIENTATION, SHORT, 1, struct.pack("<H", value)))


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_camera_is_brought_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    picture().save(path, exif=turned(orientation))
    with Image.open(path) as opened:
        wanted = ImageOps.exif_transpose(opened)
    assert folder.open_picture(path).tobytes() == wanted.tobytes()
    path.with_suffix(".txt").write_text("noise", "utf-8")
    assert folder.captioned(tmp_path).sizes == [(wanted.height, wanted.width)]


UPRIGHT, ON_ITS_SIDE = (WIDTH, HEIGHT), (HEIGHT, WIDTH)
QUARTER = (folder.ORIENTATION, SHORT, 1, struct.pack("<H", 6))


@pytest.mark.parametrize(
    ("tags", "size"),
    [
        (exif((folder.ORIENTATION, WORDS, 2, b"6")), UPRIGHT),
        (exif((folder.ORIENTATION, SHORT, 2, struct.pack("<HH", 6, 6))), ON_ITS_SIDE),
        (turned(0), UPRIGHT),
        (turned(9), UPRIGHT),
        (turned(6)[:-9], UPRIGHT),
        (b"Exif\0\0II*\0\xff", UPRIGHT),
        (exif(QUARTER, (RESOLUTION, WORDS, 3, b"300")), ON_ITS_SIDE),
        (exif(QUARTER, (RESOLUTION, RATIONAL, 1, struct.pack("<I", 9999))), ON_ITS_SIDE),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_tags_are_no_obstacle(tmp_path: Path, tags: bytes, size: tuple[int, int]) -> None:
    """Pillow reads most of them, with a warning, and cannot write some of them again."""
    path = tmp_path / "a.jpg"
    picture().save(path, exif=tags)
    path.with_suffix(".txt").write_text("noise", "utf-8")
    assert folder.open_picture(path).size == size
    assert folder.captioned(tmp_path).sizes == [size[::-1]], "the head says what the whole file does"


@pytest.mark.parametrize("error", [TypeError("bad operand"), KeyError("decoder"), IndexError("tile")])
def test_whatever_pillow_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    picture().save(tmp_path / "a.png")

    def load(_image: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        folder.open_picture(tmp_path / "a.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three pictures with captions; each mask is in the cache."""
    cache = tmp_path / object_folder.CACHE
    cache.mkdir()
    for number, name in enumerate("abc"):
        picture(number).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"noise {number}", "utf-8")
        mask(8, 8, 40, 40).save(cache / f"{name}.mask.png")
    return tmp_path


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def blackened(path: Path) -> None:
    mask(0, 0, 0, 0).save(path)


def enlarged(path: Path) -> None:
    mask(8, 8, 40, 40).resize((WIDTH + 1, HEIGHT)).save(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(emptied, "b.mask.png cannot be read"), (blackened, "the mask of b.png marks nothing"), (enlarged, "its mask b.mask.png 65 x 48")],
)
def test_a_mask_that_was_spoilt_in_the_cache_is_named_before_anything_begins(
    place: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], said: str
) -> None:
    assert len(ObjectFolder(place).finished()) == 3
    path = place / object_folder.CACHE / "b.mask.png"
    spoil(path)
    with pytest.raises(ValueError, match="1 of 3 pictures cannot be used") as raised:
        ObjectFolder(place)
    assert said in str(raised.value)
    assert f"Deleted from {path.parent}, it is made anew" in str(raised.value)
    with caplog.at_level(logging.WARNING):
        found = ObjectFolder(place, skip_broken=True).finished()
    assert said in caplog.text
    assert [one.path.name for one in found.pictures] == ["a.png", "c.png"]
    assert all(found[number].marks.any() for number in range(2))
    path.unlink()
    assert [one.path.name for one in ObjectFolder(place).without_mask] == ["b.png"]


@pytest.mark.parametrize(("corner", "cut_out"), [(1, False), (4, False), (8, True)])
def test_a_stray_transparent_pixel_or_a_rounded_corner_is_no_mask(tmp_path: Path, corner: int, cut_out: bool) -> None:
    """8 x 8 of 64 x 48 pixels is 2 %, 4 x 4 a half."""
    shown = picture()
    alpha = Image.new("L", shown.size, 255)
    alpha.paste(0, (0, 0, corner, corner))
    shown.putalpha(alpha)
    shown.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("noise", "utf-8")
    assert [one.cut_out for one in ObjectFolder(tmp_path).pictures] == [cut_out]
    drawn = folder.captioned(tmp_path)[0].mask
    if not cut_out:
        assert drawn is None
        for read in (lambda: folder.load(tmp_path), lambda: marked(tmp_path / "a.png")):
            with pytest.raises(ValueError, match=r"a\.png has no mask"):
                read()
        return
    (one,) = folder.load(tmp_path)
    assert int((one.mask < 0.5).sum()) == corner**2
    assert torch.equal(marked(tmp_path / "a.png")[1][0], one.mask)
    assert drawn is not None
    assert torch.equal(drawn, one.mask)


def test_two_pictures_of_one_name_are_refused_as_one_mask_would_be_both(tmp_path: Path) -> None:
    for name in ("B.jpg", "b.png"):
        picture().save(tmp_path / name)
    mask(8, 8, 40, 40).save(tmp_path / "b.mask.png")
    (tmp_path / "b.txt").write_text("noise", "utf-8")
    for read in (folder.load, folder.captioned):
        with pytest.raises(ValueError, match=r"B\.jpg and b\.png have one name"):
            read(tmp_path)


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "webp", "bmp"])
def test_a_mask_of_another_ending_is_a_mask_and_no_picture(tmp_path: Path, ending: str) -> None:
    picture().save(tmp_path / "A.jpg")
    mask(8, 8, 40, 40).save(tmp_path / f"a.mask.{ending}")
    (one,) = folder.load(tmp_path)
    assert one.mask[20, 20] > 0.9
    assert one.mask[2, 2] < 0.1
    (tmp_path / "A.txt").write_text("noise", "utf-8")
    assert [found.path.name for found in ObjectFolder(tmp_path).finished().pictures] == ["A.jpg"]


def test_of_two_endings_the_png_is_the_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture().save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("noise", "utf-8")
    mask(8, 8, 40, 40).save(tmp_path / "a.mask.png")
    mask(0, 0, 20, 20).save(tmp_path / "a.mask.bmp")
    mask(0, 0, 20, 20).save(tmp_path / "a.mask-2.bmp")
    with caplog.at_level(logging.WARNING):
        (one,) = folder.load(tmp_path)
    assert torch.equal(one.mask, folder.colours(mask(8, 8, 40, 40))[..., 0])
    assert "a.mask.bmp is left out: the mask of that object is a.mask.png" in caplog.text
    assert [path.name for path in ObjectFolder(tmp_path).finished().pictures[0].masks] == ["a.mask.png", "a.mask-2.bmp"]


def test_pictures_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.heic", "c.gif", "d.AVIF"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"b\.heic, c\.gif, d\.AVIF: of a kind that is not read, save as PNG or JPEG"):
        folder.captioned(tmp_path)
    picture().save(tmp_path / "a.jfif", "JPEG")
    (tmp_path / "a.TXT").write_text("noise in capitals", "utf-8")
    with caplog.at_level(logging.WARNING):
        found = folder.captioned(tmp_path)
    assert found.captions == ["noise in capitals"]
    assert "b.heic, c.gif, d.AVIF: left out, as this kind of picture is not read" in caplog.text
    assert torch.equal(found[0].image, folder.colours(Image.open(tmp_path / "a.jfif")))


def test_all_that_is_wrong_with_captions_and_pictures_is_named_at_once(tmp_path: Path) -> None:
    for name in "abc":
        picture().save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_bytes(b"\xff\xff")
    (tmp_path / "c.txt").write_text("noise", "utf-8")
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png has no caption(.|\n)*b\.txt cannot be read(.|\n)*c\.png cannot be read"):
        folder.captioned(tmp_path)


def test_pictures_too_small_for_the_crops_are_named_together(tmp_path: Path) -> None:
    for name, side in (("a", 40), ("b", 20), ("c", 300)):
        picture().resize((64, side)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("noise", "utf-8")
    found = folder.captioned(tmp_path)
    found.check_size(40)
    with pytest.raises(ValueError, match=r"^a\.png is 64 x 40 pixels, too small for crops of 88: .* at most 80\.\nb\.png .* at most 40\.$"):
        found.check_size(88)
