"""Crop Around Box and Paste Back with what other packs' users have: grown masks, context masks, exact sizes, outpainting; and mending."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.images import crops, mend
from maskprompt.images.masks import grown, without_holes
from maskprompt.nodes import paste_back
from maskprompt.nodes.crop import CropAroundBox
from maskprompt.nodes.paste_back import PasteBack
from scipy import ndimage

from benchmarks.tables.paste_back import case


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def marked(height: int, width: int, top: int, left: int, rows: int, columns: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, top : top + rows, left : left + columns] = 1
    return mask


def cropped(
    image: torch.Tensor, mask: torch.Tensor, context: float = 0.5, resolution: int = 64, **more: Any
) -> tuple[Any, Any, crops.Crop]:
    piece, cut_mask, crop = CropAroundBox.execute(image, mask, context, resolution, **more).args
    return piece, cut_mask, crop


def pasted(image: torch.Tensor, painted: torch.Tensor, crop: Any, feather: int = 4, **more: Any) -> torch.Tensor:
    (result,) = PasteBack.execute(image, painted, crop, feather, **more).args
    return result


def drawn(seed: int) -> dict[str, Any]:
    """A picture, a mask, and settings of both nodes, at random."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(24, 90, 2))
    batch, count = (int(number) for number in rng.integers(1, 3, 2))
    masks = torch.zeros(count, height, width)
    for mask in masks:
        rows, columns = int(rng.integers(1, height // 2 + 1)), int(rng.integers(1, width // 2 + 1))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        mask[top : top + rows, left : left + columns] = float(rng.choice([1.0, 0.7, 0.3]))
    asked: dict[str, Any] = {"context": float(rng.uniform(0, 1.5)), "resolution": int(rng.choice([0, 64, 96]))}
    if rng.random() < 0.5:
        asked |= {"output_width": int(rng.integers(2, 16)) * 8, "output_height": int(rng.integers(2, 16)) * 8}
    if rng.random() < 0.4:
        asked |= {f"extend_{side}": int(rng.integers(0, 30)) for side in ("left", "top", "right", "bottom")}
    if rng.random() < 0.4:
        asked["grow"] = int(rng.integers(1, 12))
    if rng.random() < 0.3:
        asked["fill_holes"] = True
    if rng.random() < 0.3:
        asked["context_mask"] = torch.from_numpy(rng.random((1, height, width)) > 0.999).float()
    if rng.random() < 0.2:
        asked["crop"] = "small boxes only"
    back = {"undo": str(rng.choice(["off", "shift and zoom", "shift, zoom and tint"])), "match_colour": bool(rng.random() < 0.5)}
    return {
        "image": random(batch, height, width, int(rng.choice([3, 4])), seed=seed),
        "mask": masks, "asked": asked, "back": back, "feather": int(rng.choice([0, 3, 20])),
    }  # fmt: skip


@pytest.mark.parametrize("block", [0, 1, *(pytest.param(block, marks=pytest.mark.thorough) for block in range(2, 10))])
def test_in_random_cases_what_is_outside_stays_to_the_bit(block: int) -> None:
    """Cropped, handed back as it is or painted wildly, mended and pasted: not a bit outside of the mask is another."""
    for seed in range(20 * block, 20 * block + 20):
        given = drawn(seed)
        image = given["image"]
        before = image.clone()
        piece, _, crop = cropped(image, given["mask"], **given["asked"])
        painted = piece if seed % 2 else random(*piece.shape[:3], 3, seed=seed + 1)
        result = pasted(image, painted, crop, given["feather"], **given["back"])
        assert torch.equal(image, before)
        asked = given["asked"]
        left, top, right, bottom = (asked.get(f"extend_{side}", 0) for side in ("left", "top", "right", "bottom"))
        batch, height, width = image.shape[:3]
        assert result.shape == (batch, height + top + bottom, width + left + right, image.shape[3])
        kept = result[:, top : top + height, left : left + width]
        masks = given["mask"][:batch]
        masks = without_holes(masks) if asked.get("fill_holes") else masks
        for index in range(batch):
            mask = masks[index % len(masks)]
            if asked.get("grow") or any((left, top, right, bottom)):
                around = torch.ones(height + top + bottom, width + left + right)
                around[top : top + height, left : left + width] = mask
                inside = around.numpy() >= 0.5
                inside = inside if inside.any() else around.numpy() > 0
                near = np.asarray(ndimage.distance_transform_edt(~inside))[top : top + height, left : left + width] <= asked.get("grow", 0)
                mask = torch.maximum(mask, torch.from_numpy(near).float())
            outside = mask == 0
            assert torch.equal(kept[index][outside], image[index][outside])
            if image.shape[3] == 4:
                assert torch.equal(kept[index, ..., 3], image[index, ..., 3])
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("seed", range(6))
def test_by_default_the_node_pastes_as_it_always_did(seed: int) -> None:
    """Against the plain paste without any mending, to the bit."""
    given = drawn(seed)
    piece, _, crop = cropped(given["image"], given["mask"], 0.5, 64)
    painted = random(*piece.shape[:3], 3, seed=seed + 1)
    assert torch.equal(pasted(given["image"], painted, crop, 3), crops.paste(given["image"], painted, crop, 3))


@pytest.mark.parametrize("pixels", [1, 4, 9])
def test_a_grown_mask_reaches_so_far_and_no_further(pixels: int) -> None:
    mask = (random(2, 40, 50) > 0.995).float()
    found = grown(mask, pixels)
    rows, columns = np.mgrid[-pixels : pixels + 1, -pixels : pixels + 1]
    disk = rows**2 + columns**2 <= pixels**2
    for one, result in zip(mask, found, strict=True):
        assert np.array_equal(result.numpy() == 1, ndimage.binary_dilation(one.numpy() == 1, disk))


def test_growing_keeps_soft_values_and_empty_masks() -> None:
    soft = torch.zeros(2, 20, 20)
    soft[0, 10, 10], soft[0, 10, 12] = 1.0, 0.25
    found = grown(soft, 1)
    assert found[0, 10, 12] == 0.25
    assert found[0].sum() == 5.25
    assert not found[1].any()
    assert grown(soft, 0) is soft
    assert grown(torch.full((1, 4, 4), 0.2), 2).min() == 1


def test_holes_are_filled_and_bays_are_not() -> None:
    mask = marked(30, 30, 5, 5, 20, 20)
    mask[:, 10:14, 10:14] = 0
    mask[:, 20:, 8:10] = 0
    assert torch.equal(without_holes(mask) - mask, marked(30, 30, 10, 10, 4, 4))
    piece, cut_mask, _ = cropped(random(1, 30, 30, 3), mask, 0.0, 0, fill_holes=True)
    assert piece.shape[1:3] == cut_mask.shape[1:]
    assert cut_mask[0, 6, 6] == 1


@pytest.mark.parametrize("size", [(512, 512), (1024, 576), (128, 1024), (64, 64)])
@pytest.mark.parametrize("at", [(0, 0), (70, 20), (10, 110)])
def test_an_exact_size_is_exact_and_undistorted(size: tuple[int, int], at: tuple[int, int]) -> None:
    image, mask = random(1, 100, 150, 3), marked(100, 150, *at, 30, 40)
    piece, cut_mask, crop = cropped(image, mask, 0.25, 64, output_width=size[0], output_height=size[1])
    assert piece.shape == (1, size[1], size[0], 3)
    assert cut_mask.shape == (1, size[1], size[0])
    place = crop.place
    assert abs(place["width"] / place["height"] - size[0] / size[1]) < size[0] / size[1] * 1.01 / min(place["width"], place["height"])
    assert place["x"] <= at[1] - 10 or place["x"] == 0 or place["width"] > 150
    assert crop.inner["x"] >= 0
    assert crop.inner["x"] + crop.inner["width"] <= 150
    assert crop.mask.sum() == 30 * 40


def test_a_crop_over_the_edge_repeats_the_edges_pixels() -> None:
    image, mask = random(1, 40, 100, 3), marked(40, 100, 5, 40, 30, 20)
    piece, _, crop = cropped(image, mask, 0.0, 0, output_width=64, output_height=128)
    assert (crop.place["width"], crop.place["height"]) == (20, 40)
    tall, _, high = cropped(image, mask, 0.5, 0, output_width=32, output_height=128)
    assert high.place["height"] > 40
    top = -high.place["y"]
    plain = crops.cut(image, high.place)
    assert torch.equal(plain[:, 0], plain[:, top])
    assert tall.shape == (1, 128, 32, 3)
    assert piece.shape == (1, 128, 64, 3)


def test_a_context_mask_is_seen_and_not_painted() -> None:
    image, mask, also = random(1, 200, 200, 3), marked(200, 200, 20, 20, 20, 20), marked(200, 200, 150, 130, 10, 40)
    piece, cut_mask, crop = cropped(image, mask, 0.1, 0, context_mask=also)
    plain = cropped(image, mask, 0.1, 0)[2].place
    place = crop.place
    assert plain["width"] < 30
    assert place["x"] <= 18
    assert place["y"] <= 18
    assert place["x"] + place["width"] >= 170
    assert place["y"] + place["height"] >= 160
    assert cut_mask.sum() == pytest.approx(400, rel=0.1)
    result = pasted(image, torch.zeros_like(piece), crop, 0)
    assert torch.equal(result[:, 150:160, 130:170], image[:, 150:160, 130:170])


def test_an_empty_context_mask_says_nothing() -> None:
    image, mask = random(1, 80, 80, 3), marked(80, 80, 20, 20, 20, 20)
    assert cropped(image, mask, context_mask=torch.zeros(1, 64, 64))[2].place == cropped(image, mask)[2].place


def test_outpainting_gives_a_larger_picture_whose_old_part_is_untouched() -> None:
    image = random(2, 40, 60, 4)
    piece, cut_mask, crop = cropped(image, torch.zeros(1, 40, 60), 0.0, 0, extend_left=10, extend_bottom=20)
    assert piece.shape[1:3] == cut_mask.shape[1:] == (64, 72)
    assert (crop.place["width"], crop.place["height"]) == (70, 60)
    assert torch.equal(crop.mask[0, :40, 10:], torch.zeros(40, 60))
    assert crop.mask.sum() == 70 * 60 - 40 * 60
    result = pasted(image, torch.ones_like(piece[..., :3]), crop, 0)
    assert result.shape == (2, 60, 70, 4)
    assert torch.equal(result[:, :40, 10:], image)
    assert (result[:, 40:] > 0.999).all()  # white, scaled from 72 x 64 to 70 x 60
    assert (result[:, :40, :10] > 0.999).all()


def test_outpainting_with_a_grown_mask_paints_a_seam_into_the_picture() -> None:
    image = random(1, 40, 60, 3)
    piece, _, crop = cropped(image, torch.zeros(1, 40, 60), 0.0, 0, extend_right=16, grow=6)
    result = pasted(image, torch.full_like(piece, 2.0), crop, 0)
    assert torch.equal(result[:, :, :54], image[:, :, :54])
    assert (result[:, :, 54:] == 2).all()


def test_a_box_is_in_the_pictures_own_pixels_when_it_is_extended() -> None:
    image, mask = random(1, 100, 100, 3), marked(100, 100, 60, 60, 20, 20)
    crop = cropped(image, mask, 0.0, 0, bboxes={"x": 60, "y": 60, "width": 20, "height": 20}, extend_left=8)[2]
    assert crop.place["x"] == 0
    assert crop.place["x"] + crop.place["width"] >= 88


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_undo_brings_the_surroundings_and_the_object_back(seed: int) -> None:
    one = case(seed)
    crop = crops.Crop(crops.whole(*one.mask.shape), one.mask.shape[0], one.mask.shape[1], one.mask[None])
    original, painted = one.original[None], one.painted[None]
    before, after = (pasted(original, painted, crop, 0, undo=undo) for undo in ("off", "shift, zoom and tint"))
    outside = one.mask == 0
    for result in (before, after):
        assert torch.equal(result[0][outside], one.original[outside])
    wanted, (report,) = mend.mended(original, painted, outside[None], True, True, False)
    assert report.moved
    assert report.tinted
    assert torch.equal(after[0][~outside], wanted[0][~outside])
    assert not torch.equal(before, after)


def test_the_node_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case(1)
    said: list[str] = []
    monkeypatch.setattr(paste_back, "say", lambda node, text: said.append(text))
    crop = crops.Crop(crops.whole(*one.mask.shape), one.mask.shape[0], one.mask.shape[1], one.mask[None])
    for undo, end in (
        ("off", "undo can take this back."),
        ("shift and zoom", "Shift and zoom are taken back. shift, zoom and tint would take the colours back too."),
        ("shift, zoom and tint", "larger. Taken back."),
    ):
        output = PasteBack.execute(one.original[None], one.painted[None], crop, 4, undo=undo)
        assert output.ui is not None
        (text,) = output.ui.as_dict()["text"] if not isinstance(output.ui, dict) else output.ui["text"]
        assert text == said[-1]
        assert "px to the left, 5.4 px down" in text
        assert text.endswith(end) or end == "larger. Taken back."
    two = PasteBack.execute(one.original[None], torch.cat([one.painted[None]] * 2), crop, 4).ui
    assert two is not None
    assert said[-1].startswith("Picture 1: The surroundings")
    assert "\nPicture 2: The surroundings" in said[-1]


def test_matching_colours_takes_a_seam_away() -> None:
    original = random(1, 96, 96, 3) * 0.3 + 0.3
    mask = marked(96, 96, 30, 30, 36, 36)
    piece, _, crop = cropped(original, mask, 0.5, 0)
    tinted = piece + torch.tensor([0.1, -0.06, 0.0])
    inside = mask[0] == 1
    off, on = ((pasted(original, tinted, crop, 0, match_colour=match)[0] - original[0])[inside].abs().mean() for match in (False, True))
    assert on < 0.1 * off


GOOD: dict[str, Any] = {"image": random(1, 64, 64, 3), "mask": marked(64, 64, 10, 10, 20, 20), "context": 0.5, "resolution": 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(0, 64, 64, 3)}, "Crop Around Box: image is a batch of no pictures"),
        ({"image": None}, "image must be a picture, got nothing"),
        ({"image": torch.full((1, 64, 64, 3), math.nan)}, r"4096 of its 4096 pixels are no numbers.*--fp32-vae"),
        ({"mask": torch.zeros(0, 64, 64)}, "mask is a batch of no masks"),
        ({"context": math.nan}, "context must be from 0 to 1000, got nan"),
        ({"context": math.inf}, "context must be from 0 to 1000, got inf"),
        ({"resolution": 10**400}, "resolution must be from 0 to 8192, got a number of more than 20 digits"),
        ({"resolution": -8}, "resolution must be from 0 to 8192, got -8"),
        ({"grow": 1e9}, "grow must be from 0 to 4096"),
        ({"crop": "sometimes"}, "crop must be one of always, small boxes only"),
        ({"output_width": 512}, "output_width is 512 but output_height is 0. Give both"),
        ({"output_width": 500, "output_height": 512}, "500x512 would be cut by the VAE.*496x512 would do|504x512 would do"),
        ({"extend_left": -1}, "extend_left must be from 0 to 4096, got -1"),
        ({"bboxes": {"x": math.inf, "y": 0, "width": 4, "height": 4}}, "Crop Around Box: bboxes: every number of a box must be finite"),
        ({"bboxes": {"x": 10**400, "y": 0, "width": 4, "height": 4}}, "must be finite"),
        ({"context_mask": torch.ones(1, 20, 90)}, "their shapes differ"),
    ],
)
def test_crop_refuses_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CropAroundBox.execute(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"painted": torch.zeros(0, 64, 64, 3)}, "Paste Back: painted is a batch of no pictures"),
        ({"image": torch.zeros(0, 64, 64, 3)}, "Paste Back: image is a batch of no pictures"),
        ({"painted": torch.full((1, 64, 64, 3), math.nan)}, "painted: 4096 of its 4096 pixels are no numbers"),
        ({"painted": {"samples": torch.zeros(1, 4, 8, 8)}}, "painted must be a picture, but this is a latent"),
        ({"crop": {"x": 0}}, "crop must come from Crop Around Box, got dict"),
        ({"feather": math.nan}, "feather must be from 0 to 4096, got nan"),
        ({"painted": random(3, 64, 64, 3), "image": random(2, 64, 64, 3)}, "3 painted pieces for 2 pictures"),
        ({"image": random(7, 64, 64, 3), "painted": random(5, 64, 64, 3)}, r"5 painted pieces for 7 pictures.*4n \+ 1 frames \(here 5\)"),
        ({"undo": "everything"}, "undo must be one of off, shift and zoom, shift, zoom and tint"),
    ],
)
def test_paste_back_refuses_in_words(changes: dict[str, Any], message: str) -> None:
    piece, _, crop = cropped(**GOOD)
    with pytest.raises(ValueError, match=message):
        PasteBack.execute(**{"image": GOOD["image"], "painted": piece, "crop": crop, "feather": 2, **changes})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_kinds_of_pictures_go_through(kind: torch.dtype, channels: int) -> None:
    image = (random(1, 64, 64, channels) * (255 if kind == torch.uint8 else 1)).to(kind)
    piece, _, crop = cropped(image, GOOD["mask"])
    result = pasted(image, random(1, 64, 64, 3), crop, undo="shift, zoom and tint", match_colour=True)
    assert result.shape == (1, 64, 64, 3)
    plain = image.float() / 255 if kind == torch.uint8 else image
    outside = GOOD["mask"][0] == 0
    assert torch.equal(result[0][outside], plain.expand(-1, -1, -1, 3)[0][outside])
    assert torch.isfinite(piece).all()


def test_paste_back_says_that_it_took_back_only_what_it_did() -> None:
    alignment = mend.measure(random(64, 64, 3), random(64, 64, 3), torch.ones(64, 64, dtype=torch.bool))
    tinted, moved, neither = (mend.Report(alignment, "Found.", *seen) for seen in ((False, True), (True, False), (False, False)))
    assert paste_back._done(tinted, "shift and zoom") == " shift, zoom and tint would take the colours back too."
    assert paste_back._done(moved, "shift and zoom") == " Shift and zoom are taken back."
    assert [paste_back._done(neither, undo) for undo in ("off", "shift and zoom", "shift, zoom and tint")] == ["", "", ""]


def test_an_interrupt_ends_the_measuring_between_two_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management
    from comfy.model_management import InterruptProcessingException

    seen: list[int] = []

    def measured(*given: Any) -> Any:
        seen.append(1)
        return found(*given)

    def stop() -> None:
        raise InterruptProcessingException

    found = mend.measure
    monkeypatch.setattr(mend, "measure", measured)
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    piece, _, crop = cropped(**GOOD)
    with pytest.raises(InterruptProcessingException):
        PasteBack.execute(GOOD["image"].expand(4, -1, -1, -1), piece.expand(4, -1, -1, -1), crop, 2)
    assert len(seen) == 1


@pytest.mark.parametrize(("count", "wanted"), [(1, [0]), (2, [0, 1, 0, 1]), (3, [0, 1, 2, 0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3])])
def test_masks_go_to_the_pictures_in_turn(count: int, wanted: list[int]) -> None:
    """As InpaintModelConditioning takes them: one for all, or one for each."""
    image = random(4, 48, 64, 3)
    masks = torch.zeros(count, 48, 64)
    for number in range(count):
        masks[number, 8:40, 8 + number * 8 : 16 + number * 8] = 1
    piece, mask, crop = cropped(image, masks, 0.5, 0)
    assert len(piece) == 4
    assert torch.equal(crop.mask, crops.within(masks[wanted], crop.place))
    assert mask.shape == (len(wanted), *piece.shape[1:3])


def test_a_box_outside_is_named_in_the_pictures_own_pixels() -> None:
    with pytest.raises(ValueError, match="x=200"):
        CropAroundBox.execute(**GOOD, box="200,10,20,20")
    with pytest.raises(ValueError, match=r"x=200, .*from x=-32, y=0 to x=64, y=64"):
        CropAroundBox.execute(**GOOD, box="200,10,20,20", extend_left=32)
    assert CropAroundBox.execute(**GOOD, box="-30,10,20,20", extend_left=32).args[2].place["x"] == 0
