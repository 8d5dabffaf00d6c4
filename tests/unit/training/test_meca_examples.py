"""What MECA learns from: pictures with captions, random regions, and what the encoders make of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from maskprompt.conditioning.texts import Texts
from maskprompt.models.clip_vision import patch_visibility
from maskprompt.training.data import captions, folder
from maskprompt.training.data.captions import Given, Picture
from maskprompt.training.engine.checkpoint import signature_of
from maskprompt.training.meca import random_masks
from maskprompt.training.meca.examples import Examples, Plan, Sample, Source, encode, square, width_of
from maskprompt.training.meca.options import Options
from PIL import Image
from torch import Tensor

from ...support.adapters import small_clip_vision
from ...support.meca_samples import Vae, draw

SIZE = 64
WIDTH = 48


class Clip:
    """Its conditioning is the text itself."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> Any:
        self.encoded.append(text)
        return [[torch.zeros(1, 77, 8), {"text": text}]]


@pytest.fixture(scope="module")
def clip_vision() -> Any:
    return small_clip_vision(WIDTH)


def pictures(count: int = 5, masked: bool = False) -> Given:
    """Flat greys of several shapes, each with its number for a caption; a mask on the left half.

    Whole 255ths, which the vision model's preprocessing keeps.
    """
    found = []
    for number in range(count):
        image = torch.full((70 + 10 * number, 90, 3), 20 * (number + 1) / 255)
        mask = torch.zeros(image.shape[:2])
        mask[:, :45] = 1
        found.append(Picture(image, f"picture {number}", mask if masked else None))
    return Given(found)


def source(clip_vision: Any, given: Any = None, process: int = 0, **options: Any) -> Source:
    return Source(given or pictures(), Clip(), Vae(), clip_vision, Options(**{"steps": 40, "batch": 4, "size": SIZE, **options}), process)


def texts_of(found: Examples) -> list[str]:
    return [text[0][1]["text"] for text in found.texts]


def same(one: Examples, two: Examples) -> bool:
    """But for rounding: what is encoded together is another group in a chunk of another length."""
    tensors = [(getattr(one, name).float(), getattr(two, name).float()) for name in ("latents", "regions", "masked")]
    pairs = [*tensors, *zip(one.features, two.features, strict=True)]
    return texts_of(one) == texts_of(two) and all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("size", [64, 97])
def test_random_masks_cover_what_they_should(size: int) -> None:
    """10 to 90 %, evenly; of many forms; the same for the same numbers."""
    rng = np.random.default_rng(0)
    masks = [random_masks.random_mask(size, rng) for _ in range(300)]
    parts = torch.stack(masks).float().mean((1, 2))
    assert masks[0].shape == (size, size)
    assert masks[0].dtype == torch.bool
    assert 0.09 <= float(parts.min()) < 0.13
    assert 0.87 < float(parts.max()) <= 0.92
    assert float(parts.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(parts.std()) == pytest.approx(0.8 / 12**0.5, abs=0.03)
    everywhere = torch.stack(masks).float().mean(0)
    assert float(everywhere.min()) > 0.35
    assert float(everywhere.max()) < 0.65
    assert torch.equal(random_masks.random_mask(size, np.random.default_rng(4)), random_masks.random_mask(size, np.random.default_rng(4)))


def test_a_chunk_is_the_same_whenever_it_is_asked_for(clip_vision: Any) -> None:
    """Also asked for again, and in a longer training; other seeds and processes get others."""
    one = source(clip_vision, steps=5)
    first = one(0)
    assert len(first) == 20
    assert same(first, source(clip_vision, steps=5)(0))
    assert same(first, one(0))
    assert same(first, source(clip_vision, steps=8)(0).part(slice(0, 20)))
    assert not same(first, source(clip_vision, steps=5, seed=1)(0))
    assert not same(first, source(clip_vision, steps=5, process=1)(0))


def test_chunks_follow_one_another(clip_vision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = source(clip_vision, steps=6)(0)
    monkeypatch.setattr("maskprompt.training.meca.options.CHUNK", 9)
    parts = source(clip_vision, steps=6)
    last = parts(2)
    assert same(last, parts(2))
    assert [len(parts(chunk)) for chunk in range(3)] == [8, 8, 8]
    assert all(same(whole.part(slice(8 * chunk, 8 * chunk + 8)), parts(chunk)) for chunk in range(3))


def test_every_picture_comes_once_in_a_round_and_in_another_order_in_the_next(clip_vision: Any) -> None:
    found = source(clip_vision, steps=5, text_dropout=0.0)
    told = texts_of(found(0))
    rounds = [told[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == [f"picture {number}" for number in range(5)] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    clip: Any = found.texts.clip
    assert sorted(clip.encoded) == sorted(rounds[0])


def test_the_samples_are_what_the_paper_says(clip_vision: Any) -> None:
    """5 % have text alone; of the others half have a region; and the two shares that are not the paper's."""
    options = Options(size=SIZE, masked=0.5, text_only=0.05, text_dropout=0.1, blank=0.2)
    maker = Source(pictures(), Clip(), Vae(), clip_vision, options)
    plans = [maker._plan(number) for number in range(8000)]
    alone = [plan for plan in plans if plan.blank and not plan.region]
    regions = [plan for plan in plans if plan.region]
    assert len(alone) / 8000 == pytest.approx(0.05, abs=0.01)
    assert all(plan.text for plan in alone)
    assert len(regions) / (8000 - len(alone)) == pytest.approx(0.5, abs=0.02)
    assert sum(plan.blank for plan in regions) / len(regions) == pytest.approx(0.2, abs=0.02)
    assert sum(not plan.text for plan in plans) / (8000 - len(alone)) == pytest.approx(0.1, abs=0.015)


def test_an_image_is_seen_in_its_region_alone(clip_vision: Any) -> None:
    """The features are those of the visible patches of the very picture; whole where there is no region; zeros where there is no image."""
    found = source(clip_vision, steps=10, text_only=0.2, masked=0.6, blank=0.3)(0)
    kinds = {"whole": 0, "region": 0, "none": 0}
    for row in range(len(found)):
        features = found.features[row]
        inside = found.regions[row]
        image = F.interpolate(found.latents[row : row + 1, :3], scale_factor=8)[0].movedim(0, -1)
        blank = features.shape == (1, WIDTH) and not features.any()
        kinds["none" if blank else "region" if found.masked[row] else "whole"] += 1
        assert inside.dtype == torch.bool
        assert bool(inside.all()) is not bool(found.masked[row])
        if not blank:
            seen = patch_visibility.encode(clip_vision, image[None], inside[None].float(), 0.5, "hide").output
            torch.testing.assert_close(features, patch_visibility.own_tokens(seen)[0], atol=1e-4, rtol=1e-4)
            assert len(features) == 17 if not found.masked[row] else len(features) < 17
    assert min(kinds.values()) >= 3


def test_hidden_patches_keep_their_places_as_in_equation_1(clip_vision: Any) -> None:
    image = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[:, : SIZE // 2] = True
    texts = Texts(Clip())
    texts.know(["a fox"])
    found = encode([Sample(image, "a fox", region)], texts, Vae(), clip_vision, visibility="paper").features[0]

    vision = clip_vision.model.vision_model
    patch = vision.embeddings.patch_embedding.kernel_size[0]
    edge = clip_vision.image_size
    scaled = F.interpolate(image.movedim(-1, 0)[None], (edge, edge), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (clip_vision.image_mean, clip_vision.image_std))
    shown = F.interpolate(region[None, None].float(), (edge, edge)) * ((scaled * 255).round() / 255 - mean) / std
    assert edge % (2 * patch) == 0  # the region ends between two patches
    with torch.no_grad():
        wanted = vision(shown, intermediate_output=-2)[1]
    torch.testing.assert_close(found, wanted[0], atol=2e-3, rtol=2e-3)  # another resampling of the pixels


def test_a_training_from_before_the_choice_goes_on() -> None:
    assert "visibility" not in Options().fingerprint("x")
    assert Options(visibility="paper").fingerprint("x") != Options().fingerprint("x")


def test_a_pictures_own_mask_is_its_region_or_all_but_it(clip_vision: Any) -> None:
    found = source(clip_vision, pictures(masked=True), masked=1.0, text_only=0.0, steps=10)(0)
    for region, latents in zip(found.regions, found.latents, strict=True):
        number = round(float(latents[0].mean()) * 255 / 20) - 1
        _, mask = square(pictures(masked=True)[number], SIZE)
        assert mask is not None
        assert torch.equal(region, mask) or torch.equal(region, ~mask)
    assert 8 < sum(bool(region[0, 0]) for region in found.regions) < 32


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_that_leaves_nothing_on_one_side_gives_way_to_a_random_one(value: float) -> None:
    image = torch.rand(80, 80, 3)
    plan = Plan(0, "", True, False, np.random.default_rng(0))
    region = plan.sample(Picture(image, "", torch.full((80, 80), value)), Options(size=SIZE)).region
    assert region is not None
    assert 0.05 < float(region.float().mean()) < 0.95


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 260), (333, 65), (30, 40)])
def test_squares_are_the_middle_of_the_picture(height: int, width: int) -> None:
    """A coordinate picture: the crop's middle is the picture's, its short side whole; the mask goes with it."""
    rows, columns = torch.linspace(0, 1, height)[:, None].expand(height, width), torch.linspace(0, 1, width)[None].expand(height, width)
    picture = Picture(torch.stack([rows, columns, torch.zeros(height, width)], -1), "", (columns > 0.5).float())
    image, mask = square(picture, SIZE)
    assert image.shape == (SIZE, SIZE, 3)
    assert mask is not None
    assert mask.shape == (SIZE, SIZE)
    assert float(image[..., 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert float(image[..., 1].mean()) == pytest.approx(0.5, abs=0.02)
    short, long = (0, 1) if height <= width else (1, 0)
    assert float(image[..., short].max() - image[..., short].min()) > 0.95
    seen = float(image[..., long].max() - image[..., long].min())
    assert seen == pytest.approx(min(height, width) / max(height, width), abs=0.05)
    assert float(((image[..., 1] > 0.5) == mask).float().mean()) > 0.95
    edge, _ = square(picture, SIZE, 0.0, 0.0)
    assert float(edge[0, 0].max()) < 0.05


def test_crops_and_mirrors_when_they_are_asked_for() -> None:
    columns = torch.linspace(0, 1, 256)[None].expand(64, 256)
    picture = Picture(columns[..., None].expand(-1, -1, 3), "", (columns > 0.5).float())
    for options, different in (
        (Options(size=SIZE), {1}),
        (Options(size=SIZE, flip=True), {2}),
        (Options(size=SIZE, random_crop=True), set(range(10, 21))),
    ):
        found = [Plan(0, "", True, False, np.random.default_rng(seed)).sample(picture, options) for seed in range(20)]
        assert len({round(float(one.image[0, 0, 0]), 4) for one in found}) in different
        for one in found:
            right = one.image[..., 0] > 0.5
            assert one.region is not None
            shares = [float((one.region == side).float().mean()) for side in (right, ~right)]
            assert max(shares) > 0.97 or not 0.01 < float(right.float().mean()) < 0.99


def test_the_first_picture_is_shown(clip_vision: Any) -> None:
    one = source(clip_vision)
    shown = one.shown()
    assert texts_of(shown) == ["picture 0"]
    assert shown.masked.tolist() == [True]
    assert bool(shown.features[0].any())
    assert same(shown, source(clip_vision, process=1).shown())


def test_few_pictures_are_encoded_at_a_time_and_progress_is_told(clip_vision: Any) -> None:
    told: list[tuple[int, int]] = []
    vae = Vae()
    Source(pictures(), Clip(), vae, clip_vision, Options(steps=5, batch=4, size=SIZE), 0, lambda done, of: told.append((done, of)))(0)
    assert vae.largest == 8
    assert told == [(8, 20), (16, 20), (20, 20)]


def test_a_region_without_a_visible_patch_is_shown_no_image(clip_vision: Any) -> None:
    """A SigLIP model could not encode it at all."""
    given = pictures(1)[0]
    texts = Texts(Clip())
    texts.know([given.caption])
    image = square(given, SIZE)[0]
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[:2, :2] = True
    found = encode([Sample(image, given.caption, region), Sample(image, given.caption)], texts, Vae(), clip_vision)
    assert torch.equal(found.features[0], torch.zeros(1, WIDTH))
    assert found.features[1].abs().max() > 0
    assert found.masked.tolist() == [True, False]


def test_a_vae_that_overflows_is_named(clip_vision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vae, "encode", lambda self, images: torch.full((len(images), 4, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"the VAE gives values that are no numbers \(NaN\)"):
        source(clip_vision)(0)


def test_a_vision_models_width_and_signature(clip_vision: Any) -> None:
    assert width_of(clip_vision) == WIDTH
    assert width_of(small_clip_vision(32)) == 32
    mark = signature_of(clip_vision.model)
    assert mark == signature_of(small_clip_vision(WIDTH).model)
    other = small_clip_vision(WIDTH)
    with torch.no_grad():
        other.model.vision_model.embeddings.patch_embedding.weight[0] += 0.1
    assert signature_of(other.model) != mark
    with pytest.raises(ValueError, match="clip_vision: nothing was given"):
        width_of(None)


def test_pictures_captions_and_masks_are_paired(caplog: pytest.LogCaptureFixture) -> None:
    images = [torch.rand(2, 64, 64, 3), torch.rand(1, 30, 40, 4)]
    masks = [torch.zeros(2, 64, 64), torch.ones(30, 40)]
    masks[0][1, :9] = 1
    with caplog.at_level(logging.WARNING):
        found = captions.pair(images, ["\na cat\n  a dog  \r\na  hat\n"], masks)
    assert "1 of 3 masks are empty" in caplog.text
    assert found.captions == ["a cat", "a dog", "a hat"]
    assert found.sizes == [(64, 64), (64, 64), (30, 40)]
    assert [one.mask is not None for one in found.pictures] == [False, True, True]
    assert found[2].image.shape == (30, 40, 3)
    assert captions.pair(images, ["a thing"]).captions == ["a thing"] * 3
    assert captions.pair(images, ["a cat", "two\nlines", "a hat"]).captions == ["a cat", "two lines", "a hat"]
    marks = {found.fingerprint(), *(captions.pair(images, ["a\nb\nc"], given).fingerprint() for given in ((), masks))}
    assert len(marks | {captions.pair([one + 0.1 for one in images], ["a\nb\nc"]).fingerprint()}) == 4


@pytest.mark.parametrize(
    ("images", "texts", "masks", "message"),
    [
        ([], ["a"], [], "no picture was given"),
        ([torch.rand(3, 64, 64, 3)], ["one\ntwo"], [], "3 pictures but 2 lines of captions: write one line for each"),
        ([torch.rand(3, 64, 64, 3)], [" \n "], [], "captions is empty"),
        ([torch.rand(3, 64, 64, 3)], ["a"], [torch.ones(2, 64, 64)], "3 pictures but 2 masks.*none at all"),
        ([torch.rand(1, 64, 64, 3)], ["a"], [torch.ones(1, 32, 64)], "picture 1 is 64 x 64 pixels but its mask 64 x 32"),
        ([torch.full((1, 64, 64, 3), torch.nan)], ["a"], [], r"picture 1 holds values that are no numbers \(NaN\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(images: list[Tensor], texts: list[str], masks: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        captions.pair(images, texts, masks)


def test_a_folder_of_captions(tmp_path: Path) -> None:
    found = folder.captioned(draw(tmp_path / "pictures"))
    assert found.captions == [f"picture {number}, a thing" for number in range(3)]
    assert found.sizes == [(40, 60), (40, 60), (60, 40)]
    read = [found[number] for number in range(3)]
    assert [one.image.shape for one in read] == [(40, 60, 3), (40, 60, 3), (60, 40, 3)]
    assert read[2].mask is None
    for one in read[:2]:
        assert one.mask is not None
        assert one.mask.sum() == 40 * 20
    mark = found.fingerprint()
    (tmp_path / "pictures" / "1.txt").write_text("other", "utf-8")
    assert folder.captioned(tmp_path / "pictures").fingerprint() != mark
    draw(tmp_path / "pictures")
    assert folder.captioned(tmp_path / "pictures").fingerprint() == mark
    (tmp_path / "pictures" / "0.mask.png").unlink()
    assert folder.captioned(tmp_path / "pictures").fingerprint() != mark


def test_a_folder_of_captions_that_is_no_use(tmp_path: Path) -> None:
    place = draw(tmp_path / "pictures")
    (place / "1.txt").unlink()
    with pytest.raises(ValueError, match=r"1\.png has no caption.*1\.txt"):
        folder.captioned(place)
    (place / "1.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(ValueError, match=r"1\.txt cannot be read.*UTF-8"):
        folder.captioned(place)
    for number in range(3):
        (place / f"{number}.txt").write_text("\n", "utf-8")
    with pytest.raises(ValueError, match=r"every caption in .* is empty"):
        folder.captioned(place)
    draw(place)
    (place / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
        folder.captioned(place)
    Image.new("L", (10, 10), 255).save(place / "0.mask.png")
    draw_again = Image.new("RGB", (60, 40))
    draw_again.save(place / "2.png")
    with pytest.raises(ValueError, match=r"0\.png is 60 x 40 pixels but its mask 0\.mask\.png 10 x 10"):
        folder.captioned(place)[0]


def test_pictures_that_are_of_no_use_are_named_before_the_training(tmp_path: Path) -> None:
    place = draw(tmp_path / "pictures")
    found = folder.captioned(place)
    told: list[tuple[int, int]] = []
    found.read_all(lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    whole = (place / "2.png").read_bytes()
    (place / "2.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (9, 9)).save(place / "0.mask.png")
    with pytest.raises(ValueError, match=r"(?s)0\.png is .* pixels but its mask.*2\.png cannot be read"):
        folder.captioned(place).read_all(lambda done, of: None)
