"""Masked Attention, Crop Around Box and Paste Back, called as ComfyUI calls them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from maskprompt.attention import chain, layers, masked_attention
from maskprompt.images import crops
from maskprompt.nodes.crop import CropAroundBox
from maskprompt.nodes.paste_back import PasteBack

from ...support.masked_sampling import confined, corner, small_sdxl
from ...support.models import Sample


def cropped(
    image: torch.Tensor, mask: torch.Tensor, context: float = 0.5, resolution: int = 64, **more: Any
) -> tuple[torch.Tensor, torch.Tensor, crops.Crop]:
    """(image, mask, crop) of Crop Around Box."""
    piece, cut_mask, crop = CropAroundBox.execute(image, mask, context, resolution, **more).args
    return piece, cut_mask, crop


def pasted(image: torch.Tensor, painted: torch.Tensor, crop: Any, feather: int = 4) -> torch.Tensor:
    (result,) = PasteBack.execute(image, painted, crop, feather).args
    return result


def box(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "width": width, "height": height}


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_with_both_off_the_model_is_the_very_one_given(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert confined(model, corner(), cross=False, self_attention="off") is model
    assert confined(model, torch.zeros(1, 8, 8), cross=False, self_attention="off") is model
    assert not caplog.records


@pytest.mark.parametrize("size", [(64, 64), (128, 192)], ids=["Load Image's empty mask", "the picture's size"])
def test_an_empty_mask_is_plain_sampling_and_a_warning(
    model: Any, sample: Sample, caplog: pytest.LogCaptureFixture, size: tuple[int, int]
) -> None:
    with caplog.at_level(logging.WARNING):
        result = sample(confined(model, torch.zeros(1, *size)), size=(16, 24))
    assert torch.equal(result, sample(model, size=(16, 24)))
    assert "empty" in caplog.text


def test_a_full_mask_is_plain_sampling(model: Any, sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
    assert torch.equal(sample(confined(model, torch.ones(1, 128, 128))), sample(model))
    assert "empty" not in caplog.text


def test_an_empty_mask_in_a_batch_leaves_its_picture_as_it_is(model: Any, sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
    masks = torch.cat([corner(), torch.zeros(1, 128, 128)])
    result = sample(confined(model, masks), batch=2)
    plain = sample(model, batch=2)
    torch.testing.assert_close(result[1], plain[1], atol=1e-5, rtol=1e-5)
    assert (result[0] - plain[0]).abs().max() > 1e-3
    assert "1 of 2 masks are empty" in caplog.text


def test_every_form_of_a_mask_is_taken(model: Any, sample: Sample) -> None:
    wanted = sample(confined(model, corner()))
    assert not torch.equal(wanted, sample(model))
    for form in (corner()[0], corner()[None], corner()[..., None], corner(256, 256), corner() * 255, (corner() * 255).byte()):
        assert torch.equal(sample(confined(model, form)), wanted)


def test_what_is_no_mask_is_refused_in_words(model: Any) -> None:
    for wrong in (None, torch.zeros(1, 8, 8, 3), torch.zeros(0, 8, 8)):
        with pytest.raises(ValueError, match="mask"):
            confined(model, wrong)  # pyright: ignore[reportArgumentType]


def test_a_mask_of_another_shape_is_refused_before_it_lands_wrong(model: Any, sample: Sample) -> None:
    with pytest.raises(ValueError, match=r"the mask is 192x128 but the picture .* about 128x128: their shapes differ"):
        sample(confined(model, corner(128, 192)))


def test_a_model_that_is_not_known_is_refused_in_words() -> None:
    class Unknown:
        def get_model_object(self, name: str) -> torch.nn.Module:
            return torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"neither a UNet nor a transformer.*SD 1.5, SD 2.1 and SDXL.*Flux"):
        confined(Unknown(), corner())


def test_a_list_of_layers(model: Any, sample: Sample) -> None:
    listed = sample(confined(model, corner(), which="list", layer_list="input 1, input 2, input 4, input 5, input 7, input 8, middle 0, "
                             "output 3, output 4, output 5"))  # fmt: skip
    assert torch.equal(listed, sample(confined(model, corner())))
    for wrong, message in (("encoder", "no attention layer 'encoder'.*It has: input 1"), ("", "list of layers is empty")):
        with pytest.raises(ValueError, match=message):
            confined(model, corner(), which="list", layer_list=wrong)
    confined(model, corner(), self_attention="off", which="list", layer_list="encoder")


def test_each_choice_makes_a_picture_of_its_own(model: Any, sample: Sample) -> None:
    choices: list[dict[str, Any]] = [
        {"self_attention": "off"}, {"cross": False}, {}, {"which": "reference code"}, {"which": "all"}, {"self_attention": "renormalised"},
        {"apply_to": "positive"}, {"apply_to": "negative"}, {"end_percent": 0.5},
    ]  # fmt: skip
    found = [sample(model)] + [sample(confined(model, corner(), **choice)) for choice in choices]
    for index, one in enumerate(found):
        assert torch.isfinite(one).all()
        assert not any(torch.equal(one, other) for other in found[:index]), index


def test_which_layers_each_choice_masks(model: Any, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-attention everywhere (section 4.2), self-attention where it was asked for (section 4.3)."""
    seen: dict[str, set[layers.Layer]] = {}
    for kind in (masked_attention.MaskedCrossAttention, masked_attention.MaskedSelfAttention):

        def attend(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: chain.Call, inner: chain.Inner) -> torch.Tensor:
            seen.setdefault(call.kind, set()).add(call.layer)
            return inner(q, k, v)

        monkeypatch.setattr(kind, "attend", attend)
    known = layers.layers_of(model.get_model_object("diffusion_model"))
    for which, wanted in (
        ("paper", {"input": 6, "middle": 1, "output": 3}),
        ("reference code", {"output": 5}),
        ("all", {"input": 6, "middle": 1, "output": 9}),
    ):
        seen.clear()
        sample(confined(model, corner(), which=which), steps=1)
        assert seen["cross"] == set(known)
        parts = [layer[0] for layer in seen["self"]]
        assert {part: parts.count(part) for part in set(parts)} == wanted


@pytest.mark.parametrize(("start", "end", "steps"), [(0.0, 1.0, [0, 1, 2, 3]), (0.0, 0.5, [0, 1]), (0.5, 1.0, [2, 3]), (0.3, 0.4, [1]),
                                                     (1.0, 1.0, []), (0.0, 0.0, [])])  # fmt: skip
def test_start_and_end_are_parts_of_the_sampling(
    model: Any, sample: Sample, monkeypatch: pytest.MonkeyPatch, start: float, end: float, steps: list[int]
) -> None:
    """Four steps of the normal schedule begin at 0, a third, two thirds and all of the 1000 timesteps."""
    seen: list[float] = []

    def attend(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: chain.Call, inner: chain.Inner) -> torch.Tensor:
        seen.append(call.moment.sigma)
        return inner(q, k, v)

    monkeypatch.setattr(masked_attention.MaskedCrossAttention, "attend", attend)
    result = sample(confined(model, corner(), self_attention="off", start_percent=start, end_percent=end), steps=4)
    sampling = model.get_model_object("model_sampling")
    wanted = [float(sampling.sigma(torch.tensor(999 * (1 - step / 3)))) for step in steps]
    assert list(dict.fromkeys(seen)) == pytest.approx(wanted, rel=1e-3)
    assert torch.equal(result, sample(model, steps=4))


def test_the_half_that_does_not_run_changes_nothing(model: Any, sample: Sample) -> None:
    """At CFG 1 only the positive prompt runs."""
    plain = sample(model, cfg=1.0)
    both = sample(confined(model, corner()), cfg=1.0)
    assert torch.equal(sample(confined(model, corner(), apply_to="negative"), cfg=1.0), plain)
    assert torch.equal(sample(confined(model, corner(), apply_to="positive"), cfg=1.0), both)
    assert not torch.equal(both, plain)


def test_the_same_graph_gives_the_same_picture(model: Any, sample: Sample) -> None:
    plain = sample(model)
    first = sample(confined(model, corner()))
    assert torch.equal(sample(confined(model, corner())), first)
    twice = confined(confined(model, corner()), torch.flip(corner(), (2,)))
    assert not torch.equal(sample(twice), first)
    assert torch.equal(sample(confined(model, corner())), first)
    assert torch.equal(sample(model), plain)


def test_sdxls_blocks_are_served(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[chain.Call] = []
    attend = masked_attention.MaskedSelfAttention.attend

    def noted(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: chain.Call, inner: chain.Inner) -> torch.Tensor:
        seen.append(call)
        return attend(self, q, k, v, call, inner)

    monkeypatch.setattr(masked_attention.MaskedSelfAttention, "attend", noted)
    model = small_sdxl()
    pooled = {"pooled_output": torch.randn(1, 16)}
    plain = sample(model, size=(13, 22), steps=2, positive=pooled, negative=pooled)
    result = sample(confined(model, corner(104, 176)), size=(13, 22), steps=2, positive=pooled, negative=pooled)
    assert torch.isfinite(result).all()
    assert (result - plain).abs().max() > 1e-4
    names = {f"{call.layer[0]} {call.layer[1]}": call.grid for call in seen}
    wide = dict.fromkeys(("input 4", "input 5"), (7, 11))
    narrow = ("input 7", "input 8", "middle 0", "output 0", "output 1")
    assert names == wide | dict.fromkeys(narrow, (4, 6))
    again = sample(model, size=(13, 22), steps=2, positive=pooled, negative=pooled)
    assert torch.equal(again, plain)


def test_the_crop_is_the_masks_box_with_its_surroundings() -> None:
    image = pictures(1, 200, 300, 3)
    mask = torch.zeros(1, 200, 300)
    mask[:, 80:110, 100:140] = 1
    piece, cut_mask, crop = cropped(image, mask, 0.5, 0)
    assert crop.place == box(80, 55, 80, 80)
    assert torch.equal(piece, image[:, 55:135, 80:160])
    assert torch.equal(cut_mask, mask[:, 55:135, 80:160])
    piece, cut_mask, crop = cropped(image, mask, 0.5, 128)
    assert piece.shape == (1, 128, 128, 3)
    assert cut_mask.shape == (1, 128, 128)
    assert cut_mask.mean() == pytest.approx(30 * 40 / 80**2, abs=0.01)
    assert torch.equal(crop.mask, mask[:, 55:135, 80:160])


def test_a_box_is_cropped_around_instead_of_the_mask() -> None:
    image = pictures(2, 200, 300, 3)
    mask = torch.zeros(1, 200, 300)
    mask[:, 80:110, 100:140] = 1
    around = box(100, 80, 60, 30)
    for boxes in (around, [around], [[around], [around]], [box(100, 80, 10, 10), box(150, 100, 10, 10)]):
        assert cropped(image, mask, 0.0, 0, bboxes=boxes)[2].place == box(100, 65, 60, 60)
    assert cropped(image, mask, 0.0, 0, bboxes=[])[2].place == cropped(image, mask, 0.0, 0)[2].place


def test_a_box_over_the_edge_is_cut_off_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    image = pictures(1, 64, 64, 3)
    mask = torch.ones(1, 64, 64)
    with caplog.at_level(logging.WARNING):
        assert cropped(image, mask, 0.0, 0, bboxes=box(-10, 40, 26, 100))[2].place["x"] == 0
    assert "reaches over the edge" in caplog.text


@pytest.mark.parametrize(
    ("mask", "boxes", "message"),
    [
        (torch.zeros(1, 200, 300), None, r"mask \(300x200\) is empty.*nothing to crop around"),
        (torch.zeros(1, 64, 64), None, "is empty.*nothing to crop around"),
        (torch.zeros(1, 64, 64), box(10, 10, 20, 20), "is empty"),
        (torch.ones(1, 200, 300), box(300, 10, 20, 20), "lies outside of the picture, which is 300 x 200"),
        (torch.ones(1, 200, 300), box(10, 10, 0, 20), "has no area"),
        (torch.ones(1, 200, 300), box(0, 0, 0, 0), "has no area"),
        (torch.ones(1, 200, 300), "here", "a box, a list of boxes"),
        (torch.ones(1, 200, 200), None, "the mask is 200x200 but the picture is 300x200: their shapes differ"),
        (torch.nn.functional.pad(torch.ones(1, 20, 20), (280, 0, 180, 0)), box(10, 10, 20, 20), "mask lies outside of the box x=10"),
    ],
)
def test_what_cannot_be_cropped_is_refused_in_words(mask: torch.Tensor, boxes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cropped(pictures(1, 200, 300, 3), mask, bboxes=boxes)


def test_a_mask_of_another_size_but_the_same_shape_is_taken() -> None:
    image = pictures(1, 200, 300, 3)
    mask = torch.zeros(1, 200, 300)
    mask[:, 80:120, 100:140] = 1
    for size in ((400, 600), (100, 150), (25, 37)):
        scaled = torch.nn.functional.interpolate(mask[None], size=size, mode="area")[0]
        found = cropped(image, scaled, 0.5, 0)[2].place
        wanted = cropped(image, mask, 0.5, 0)[2].place
        assert all(abs(found[key] - wanted[key]) <= 24 for key in ("x", "y", "width", "height"))


def test_small_boxes_only_leaves_large_ones_in_the_whole_picture() -> None:
    """DreamCom's code crops where the box is under a quarter of the picture."""
    image = pictures(1, 80, 80, 3)
    for side, whole in ((40, True), (39, False)):
        mask = torch.zeros(1, 80, 80)
        mask[:, :side, :side] = 1
        assert (cropped(image, mask, 0.0, 0, crop="small boxes only")[2].place == box(0, 0, 80, 80)) == whole
        assert cropped(image, mask, 0.0, 0, crop="always")[2].place == box(0, 0, side, side)


def test_more_masks_than_pictures_and_fewer(caplog: pytest.LogCaptureFixture) -> None:
    masks = torch.zeros(3, 64, 64)
    masks[0, :16, :16] = 1
    masks[1, 40:, :16] = 1
    masks[2, :16, 40:] = 1
    with caplog.at_level(logging.WARNING):
        piece, cut_mask, crop = cropped(pictures(1, 64, 64, 3), masks, 0.0, 0)
    assert "3 masks for 1 images" in caplog.text
    assert crop.place == box(0, 0, 16, 16)
    assert (len(piece), len(cut_mask)) == (1, 1)
    image = pictures(3, 64, 64, 3)
    piece, cut_mask, crop = cropped(image, masks[:2], 0.0, 0)
    assert crop.place == box(0, 0, 64, 64)
    result = pasted(image, torch.full_like(piece, 2), crop, 0)
    for index in range(3):
        assert torch.equal((result[index] != image[index]).all(-1), masks[index % 2] == 1)


@pytest.mark.parametrize("size", [(61, 83), (72, 104), (200, 300)])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("feather", [0, 4, 50])
def test_cropped_painted_and_pasted_back(size: tuple[int, int], channels: int, feather: int) -> None:
    image = pictures(2, *size, channels)
    mask = torch.zeros(1, *size)
    mask[:, 20:37, 30:51] = 1
    before = image.clone()
    piece, _, crop = cropped(image, mask, 0.5, 64)
    result = pasted(image, torch.ones_like(piece[..., :3]) * 2, crop, feather)
    assert result.shape == image.shape
    assert torch.equal(image, before)
    outside = mask[0] == 0
    assert torch.equal(result[:, outside], image[:, outside])
    assert (result[:, ~outside, :3] > image[:, ~outside, :3]).all()
    if channels == 4:
        assert torch.equal(result[..., 3], image[..., 3])


def test_another_picture_than_the_cropped_one_is_refused_in_words() -> None:
    piece, _, crop = cropped(pictures(1, 64, 96, 3), torch.ones(1, 64, 96))
    with pytest.raises(ValueError, match=r"cut from a picture of 96x64 pixels, but this one is 64x64.*Wire the same picture"):
        pasted(pictures(1, 64, 64, 3), piece, crop)


def test_a_start_after_the_end_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="is after end_percent"):
        confined(model, corner(), start_percent=0.6, end_percent=0.5)


def test_a_painted_piece_of_another_shape_is_refused() -> None:
    image = torch.rand(1, 64, 96, 3)
    _, _, crop = cropped(image, corner(64, 96))
    with pytest.raises(ValueError, match="their shapes differ"):
        PasteBack.execute(image, torch.rand(1, 64, 128, 3), crop, 0)
