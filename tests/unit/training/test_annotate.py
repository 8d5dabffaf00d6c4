"""What pictures lack, made once: objects among the masks that SAM offers, captions, and files that are whole whatever happens."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.images.masks import bounding_box
from maskprompt.models.sam import model as sam
from maskprompt.training.data import annotate, folder, object_folder, scan_cache
from maskprompt.training.data.annotate import Choice, make_captions, make_masks, objects
from maskprompt.training.data.folder_scan import PictureFiles, scan
from maskprompt.training.data.object_folder import ObjectFolder
from PIL import Image
from torch import Tensor

from ...support.objects import ONE, SQUARE, SURE, TWO, Sam, Writer, box, draw, place, scene
from ...support.sam import loaded, small_sam

__all__ = ["place"]  # fixtures


class Scripted(Sam):
    """Offers these masks (bool [h, w] of the picture's size, which is its own at a quarter) with these scores, three for each point."""

    def __init__(self, offers: Sequence[tuple[Tensor, float]], soft: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.offers = list(offers)
        self.soft = soft

    def ask(self, image: Tensor, prompt: sam.Prompt) -> sam.Answer:
        logits = torch.full((3, SQUARE // 4, SQUARE // 4), -SURE)
        scores = torch.zeros(3)
        for choice in range(3):
            if self.offers:
                mask, scores[choice] = self.offers.pop(0)
                logits[choice, : mask.shape[0], : mask.shape[1]] = torch.where(mask, SURE, -SURE)
        return sam.Answer(logits, scores)


STRIP = (0, 45, 64, 3)


def test_each_object_of_a_picture_is_found_once_the_largest_first() -> None:
    model = Sam()
    image = scene(TWO, ONE)
    found = objects(model, image)
    assert torch.equal(found, torch.stack([box(*ONE), box(*TWO)]))
    assert len(model.asked) == 64
    points = torch.tensor([point for _, point in model.asked])
    assert points.unique(dim=0).shape == (64, 2)
    assert points.amin(0).tolist() == [4.0, 3.0]
    assert points.amax(0).tolist() == [60.0, 45.0]
    assert objects(Sam(), torch.zeros(48, 64, 3)).shape == (0, 48, 64)
    assert len(objects(Sam(), image, Choice(grid=1))) == 0  # its only point lies between the objects


def test_a_large_picture_is_shown_to_sam_at_its_own_size_and_its_masks_are_the_pictures() -> None:
    model = Sam()
    image = scene((200, 300, 800, 600), (1400, 200, 300, 900), height=1300, width=2000)
    found = objects(model, image)
    assert {size for size, _ in model.asked} == {sam.fit(1300, 2000, annotate.LONGEST)}
    assert found.shape == (2, 1300, 2000)
    for mask, drawn in zip(found, ((200, 300, 800, 600), (1400, 200, 300, 900)), strict=True):
        around = bounding_box(mask.float())
        assert around is not None
        left, top, across, down = drawn
        found_at = (around["x"], around["y"], around["x"] + around["width"], around["y"] + around["height"])
        cell = 2000 / (SQUARE // 4)
        assert np.abs(np.subtract(found_at, (left, top, left + across, top + down))).max() <= cell


def test_a_picture_is_shrunk_as_sam_shrinks_it() -> None:
    image = torch.randint(0, 256, (700, 1500, 3), generator=torch.Generator().manual_seed(0)).float() / 255
    shrunk = annotate._shrunk(image)
    assert shrunk.shape == (478, 1024, 3)
    assert torch.equal(sam.prepare(shrunk, 1024), sam.prepare(image, 1024))


def dense(offers: Sequence[tuple[Tensor, float]], how: Choice) -> list[int]:
    """The selection, one mask and one pixel at a time."""
    ranked: list[tuple[float, int]] = []
    for number, (mask, score) in enumerate(offers):
        height, width = mask.shape
        inside = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
        edge = {(y, x) for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)}
        part = len(inside) / (height * width)
        border = len(inside & edge) / len(edge)
        if score >= how.score and how.smallest <= part <= how.largest and border <= how.border:
            ranked.append((-score * part**0.5 * (1 - border), number))
    kept: list[tuple[int, set[tuple[int, int]]]] = []
    for _, number in sorted(ranked):
        mask = offers[number][0]
        inside = {(int(y), int(x)) for y, x in mask.nonzero()}
        if all(len(inside & other) / len(inside | other) <= how.same for _, other in kept):
            kept.append((number, inside))
    return [number for number, _ in kept][: how.most]


rectangles = st.tuples(st.integers(0, 50), st.integers(0, 36), st.integers(1, 64), st.integers(1, 48))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(rectangles, st.sampled_from([0.5, 0.87, 0.89, 0.9, 0.95, 1.02])), max_size=14))
def test_the_selection_is_as_it_would_be_by_hand(offers: list[tuple[tuple[int, int, int, int], float]]) -> None:
    given = [(box(*drawn), score + 1e-4 * number) for number, (drawn, score) in enumerate(offers)]  # no two rank alike
    found = objects(Scripted(given), torch.zeros(48, 64, 3))
    wanted = [given[number][0] for number in dense(given, Choice())]
    assert len(found) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("offer", "kept"),
    [
        ((box(*ONE), 0.89), True),
        ((box(*ONE), 0.87), False),
        ((box(0, 0, 5, 5), 1.0), False),  # 0.8 % of the picture
        ((box(0, 0, 6, 6), 1.0), True),
        ((box(8, 4, 46, 40), 1.0), True),  # 59.9 %
        ((box(8, 4, 47, 40), 1.0), False),
        ((box(0, 0, 64, 24), 1.0), True),  # a half, and less of the border than that
        ((box(0, 0, 64, 28) & ~box(8, 8, 40, 12), 1.0), False),
    ],
)
def test_what_is_an_object(offer: tuple[Tensor, float], kept: bool) -> None:
    assert len(objects(Scripted([offer]), torch.zeros(48, 64, 3))) == kept


def test_masks_that_are_alike_count_once_and_four_are_enough() -> None:
    tiles = [box(2 + 14 * number, 4, 12, 40 - 4 * number) for number in range(4)]
    alike = box(2, 4, 12, 35)
    assert len(objects(Scripted([(alike, 0.9), *((tile, 0.95) for tile in tiles)]), torch.zeros(48, 64, 3))) == 4
    found = objects(Scripted([(tile, 0.95) for tile in [*tiles, box(0, 0, 64, 3), box(58, 10, 5, 20)]]), torch.zeros(48, 64, 3))
    assert torch.equal(found, torch.stack(tiles))
    assert len(objects(Scripted([(tile, 0.95) for tile in tiles]), torch.zeros(48, 64, 3), Choice(most=2))) == 2


def test_a_mask_without_a_firm_edge_is_none() -> None:
    class Soft(Scripted):
        def ask(self, image: Tensor, prompt: sam.Prompt) -> sam.Answer:
            answer = super().ask(image, prompt)
            answer.logits[:, 16:24] = answer.logits[:, 16:24].clamp(-0.5, 0.5)  # unsure, by and by, of a third of it
            return answer

    offer = (box(*ONE), 1.0)
    assert len(objects(Scripted([offer]), torch.zeros(48, 64, 3))) == 1
    assert len(objects(Soft([offer]), torch.zeros(48, 64, 3))) == 0
    assert len(objects(Soft([offer]), torch.zeros(48, 64, 3), Choice(firm=0))) == 1


def test_specks_and_pinholes_are_removed() -> None:
    mask = box(8, 8, 40, 30)
    mask[20, 20] = False
    mask[2, 60] = True
    assert torch.equal(objects(Scripted([(mask, 1.0)]), torch.zeros(48, 64, 3)), box(8, 8, 40, 30)[None])


def test_the_packs_own_sam_is_asked_as_its_stand_in() -> None:
    """With random weights: whatever it offers passes."""
    anything = Choice(grid=1, score=-9.0, smallest=0.0, largest=1.0, border=1.0, firm=0.0, same=1.0)
    found = objects(loaded(small_sam()), torch.rand(40, 60, 3, generator=torch.Generator().manual_seed(1)), anything)
    assert found.shape[1:] == (40, 60)
    assert found.dtype == torch.bool


@pytest.fixture
def cache(place: Path) -> Path:
    return place / object_folder.CACHE


def nothing(done: int, of: int) -> None:
    pass


def everything(place: Path, cache: Path, model: Any, write: Any, told: Callable[[int, int], None] = nothing) -> None:
    """As the command does it."""
    found = ObjectFolder(place, cache)
    found.find_objects(model, told)
    found.write_captions(write, told)
    again = ObjectFolder(place, cache)
    assert found.pictures == again.pictures, "what was made is what a new scan finds"


def files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.name != scan_cache.NAME}


def test_what_is_missing_is_made_once(place: Path, cache: Path) -> None:
    (place / "c.txt").write_text("by hand", "utf-8")
    model = Sam()
    write = Writer()
    told = list[tuple[int, int]]()
    everything(place, cache, model, write, lambda *count: told.append(count))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4), (2, 2)]
    assert sorted(files(cache)) == [
        "a.mask.png",
        "a.txt",
        "b.mask-2.png",
        "b.mask.png",
        "b.txt",
        "c.mask-2.png",
        "c.mask.png",
        "x.no-object",
    ]
    assert files(cache)["x.no-object"] == b""
    found = ObjectFolder(place).finished()
    assert found.captions == ["64 x 48 pixels", "64 x 48 pixels", "by hand"]
    assert torch.equal(found[1].marks, torch.stack([box(*ONE), box(*TWO)]).float())
    everything(place, cache, model, write)
    assert len(model.asked) == 4 * 64
    assert write.groups == [2]


def test_an_interrupted_work_goes_on_where_it_stopped(place: Path, cache: Path, tmp_path: Path) -> None:
    def stop_at(at: int) -> Callable[[int, int], None]:
        def told(done: int, of: int) -> None:
            if done == at:
                raise KeyboardInterrupt

        return told

    model = Sam()
    write = Writer()
    with pytest.raises(KeyboardInterrupt):
        ObjectFolder(place, cache).find_objects(model, stop_at(2))
    assert sorted(files(cache)) == ["a.mask.png", "b.mask-2.png", "b.mask.png"]
    with pytest.raises(KeyboardInterrupt):
        ObjectFolder(place, cache).find_objects(model, stop_at(2))
    assert "x.no-object" in files(cache)
    everything(place, cache, model, write)
    assert len(model.asked) == 4 * 64
    whole = tmp_path / "whole"
    everything(place, whole, Sam(), Writer())
    assert files(whole) == files(cache)


def test_masks_that_were_just_made_are_not_read_to_be_known(place: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes scan the folder when the first has annotated it, and all wait for the last."""
    ObjectFolder(place, cache).find_objects(Sam(), nothing)
    opened: list[str] = []
    read = folder.open_picture
    monkeypatch.setattr(folder, "open_picture", lambda path: opened.append(path.name) or read(path))
    known = (cache / scan_cache.NAME).read_bytes()
    assert [len(one.masks) for one in ObjectFolder(place, cache).pictures] == [1, 2, 2, 0]
    assert opened == []
    assert (cache / scan_cache.NAME).read_bytes() == known


def test_captions_are_written_group_by_group(tmp_path: Path) -> None:
    place = draw(tmp_path / "pictures", "abcdefghijk")
    cache = tmp_path / "cache"
    write = Writer()
    make_masks(scan(place, cache), cache, Sam(), nothing)

    def stop(done: int, of: int) -> None:
        assert (done, of) == (8, 11)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ObjectFolder(place, cache).write_captions(write, stop)
    assert len(list(cache.glob("*.txt"))) == 8
    ObjectFolder(place, cache).write_captions(write, nothing)
    assert write.groups == [8, 3]
    assert len(ObjectFolder(place, cache).finished()) == 11


@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_a_file_is_there_wholly_or_not_at_all(place: Path, cache: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up with the second picture's second mask."""
    plain = getattr(Path, method)
    left = [2]

    def failing(self: Path, *given: Any) -> Any:
        if "mask" in self.name:
            left[0] -= 1
            if left[0] < 0:
                if method == "write_bytes":
                    plain(self, b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, *given)

    found = ObjectFolder(place, cache)
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, failing)
        with pytest.raises(ValueError, match=r"nothing can be written into .*No space left.*--cache"):
            found.find_objects(Sam(), nothing)
    kept = files(cache)
    assert set(kept) == ({"a.mask.png"} if method == "write_bytes" else {"a.mask.png", "b.mask.png"})
    for content in kept.values():
        assert content.endswith(b"IEND\xaeB`\x82")
    assert not list(cache.glob(".*"))


def test_a_cache_that_cannot_be_made(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"nothing can be written into .*--cache"):
        make_captions([PictureFiles(place / "a.png")], tmp_path / "file" / "cache", Writer(), nothing)


def test_masks_are_plain_pictures_that_can_be_mended(place: Path, cache: Path) -> None:
    make_masks([PictureFiles(place / "a.png")], cache, Sam(), nothing)
    with Image.open(cache / "a.mask.png") as image:
        assert (image.mode, image.size) == ("L", (64, 48))
        assert np.array_equal(np.asarray(image), box(*ONE).numpy() * np.uint8(255))


def test_a_picture_on_its_side_is_shown_upright(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    upright = Image.fromarray((scene(ONE) * 255).byte().numpy())
    upright.rotate(90, expand=True).save(tmp_path / "a.png", exif=tag)
    model = Sam()
    make_masks(scan(tmp_path, tmp_path / "cache"), tmp_path / "cache", model, nothing)
    assert {size for size, _ in model.asked} == {(48, 64)}
    (tmp_path / "a.txt").write_text("a box", "utf-8")
    assert torch.equal(ObjectFolder(tmp_path, tmp_path / "cache").finished()[0].marks, box(*ONE)[None].float())
