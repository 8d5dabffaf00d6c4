"""Load SAM Model and SAM Mask, called as ComfyUI calls them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.images.masks import Box
from maskprompt.models.sam import model as sam
from maskprompt.models.sam import prompts as sam_prompts
from maskprompt.nodes.segment import ADVICE, MaskPromptLoadSAM, MaskPromptSAMMask
from scipy import ndimage

from ...support.sam import ACCURACY, drawn, iou, loaded, mobile, mobile_sam_file, photo, small_sam

__all__ = ["mobile"]  # the fixture
distance_inside: Any = ndimage.distance_transform_edt
NOTHING: Box = {"x": 0, "y": 0, "width": 0, "height": 0}


def points(*pairs: tuple[float, float]) -> str:
    return json.dumps([{"x": x, "y": y} for x, y in pairs])


def sam_mask(model: Any, image: torch.Tensor, **inputs: Any) -> Any:
    """(mask, object image, bbox, score) of SAM Mask."""
    return MaskPromptSAMMask.execute(model, image, **inputs).args


def offered() -> list[str]:
    """The files that Load SAM Model lists."""
    combo: Any = MaskPromptLoadSAM.GET_SCHEMA().inputs[0]
    return combo.options


@pytest.fixture(scope="module")
def random_sam() -> sam.LoadedSam:
    return loaded(small_sam())


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(1, 60, 80, 3, generator=torch.Generator().manual_seed(0))


def test_load_sam_reads_the_folder_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"sams": ([str(tmp_path)], {".pth"})})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (placeholder,) = offered()
    for name in (placeholder, "sam.pth", "../secret.pth"):
        message = MaskPromptLoadSAM.validate_inputs(name)
        assert isinstance(message, str)
        assert str(tmp_path) in message
        assert ADVICE in message
        with pytest.raises(ValueError, match="There is no file"):
            MaskPromptLoadSAM.execute(name)
    (tmp_path / "sub").mkdir()
    torch.save(small_sam().state_dict(), tmp_path / "sub" / "sam.pth")
    (name,) = offered()
    assert MaskPromptLoadSAM.validate_inputs(name) is True
    (model,) = MaskPromptLoadSAM.execute(name).args
    assert isinstance(model, sam.LoadedSam)


def test_boxes_picture_by_picture(mobile: sam.LoadedSam) -> None:
    batch = torch.stack([photo("rocket"), photo("flower")])
    mask, image, boxes, score = sam_mask(mobile, batch, bboxes=[[ACCURACY["rocket"][0]], [ACCURACY["flower"][0]]])
    assert mask.shape == (2, 427, 640)
    assert image.shape == (2, 427, 640, 3)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    for index, name in enumerate(("rocket", "flower")):
        assert iou(mask[index] > 0, drawn(name)) >= 0.75
        rows, columns = torch.where(mask[index] > 0)
        expected = {"x": int(columns.min()), "y": int(rows.min())}
        expected |= {"width": int(columns.max() - columns.min()) + 1, "height": int(rows.max() - rows.min()) + 1}
        assert boxes[index] == [expected]
    assert 0.8 < score < 1.1
    # The same two, each alone, and the flower's box for both.
    alone, _, box, _ = sam_mask(mobile, batch[1:], bboxes=ACCURACY["flower"][0])
    assert torch.equal(alone[0], mask[1])
    assert box == boxes[1][0]
    both = sam_mask(mobile, batch, bboxes=[ACCURACY["flower"][0]])[0]
    assert torch.equal(both[1], mask[1])
    assert not torch.equal(both[0], mask[0])


def test_several_boxes_are_united_and_points_go_to_their_box(mobile: sam.LoadedSam) -> None:
    image = photo("flower")[None]
    one = ACCURACY["flower"][0]
    two = Box(x=285, y=370, width=185, height=57)
    parts = [sam_mask(mobile, image, bboxes=box)[0] for box in (one, two)]
    union, _, around, _ = sam_mask(mobile, image, bboxes=[one, two])
    assert torch.equal(union, torch.maximum(*parts))
    assert around["y"] + around["height"] > 400
    inside = (310.0, 220.0)
    beside = (20.0, 20.0)
    request = sam_prompts.Request(positive=(inside, beside), negative=((600.0, 400.0),), boxes=(one, two))
    prompts = [prompt for prompt, _ in sam_prompts.prompts_for(request, 427, 640)]
    assert [prompt.box for prompt in prompts] == [one, two, None]
    assert [[(x, y) for x, y, positive in prompt.points if positive] for prompt in prompts] == [[inside], [], [beside]]
    assert all((600.0, 400.0, False) in prompt.points for prompt in prompts)


def test_a_negative_point_takes_a_part_away(mobile: sam.LoadedSam) -> None:
    image = photo("coffee")[None]
    whole = sam_mask(mobile, image, positive_coords=points((300, 350)), choice="largest")[0]
    without = sam_mask(mobile, image, positive_coords=points((300, 350)), negative_coords=points((280, 150)), choice="best score")[0]
    assert whole[0, 150, 280] == 1
    assert without[0, 150, 280] == 0
    assert without[0, 350, 300] == 1


def test_the_choice_among_three_masks(mobile: sam.LoadedSam) -> None:
    image = photo("coffee")[None]
    where = points((300, 350))
    three, images, boxes, _ = sam_mask(mobile, image, positive_coords=where, choice="all")
    assert three.shape == (3, 400, 600)
    assert images.shape == (3, 400, 600, 3)
    assert [len(frame) for frame in boxes] == [1, 1, 1]
    areas = three.sum(dim=(1, 2)).tolist()
    assert areas[0] < areas[1] < areas[2]
    for choice, expected in {"smallest": three[0], "largest": three[2]}.items():
        assert torch.equal(sam_mask(mobile, image, positive_coords=where, choice=choice)[0][0], expected)
    best, _, _, score = sam_mask(mobile, image, positive_coords=where, choice="best score")
    scores = mobile.ask(image[0], sam.Prompt(points=((300.0, 350.0, True),))).scores
    assert score == pytest.approx(float(scores.max()))
    assert any(torch.equal(best[0], mask) for mask in three)


def scribbles(shape: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sloppy paintings of an object: a shifted and swollen cover, and a zigzag stroke over its middle."""
    inside = shape.numpy()
    side = inside.sum() ** 0.5
    cover = ndimage.shift(distance_inside(~inside) < 0.06 * side, (0.06 * side, -0.06 * side), order=0)
    rows, columns = torch.where(shape)
    middle = inside & (distance_inside(inside) > 0.05 * side)
    height, width = inside.shape
    zigzag = torch.zeros_like(shape)
    for step in range(400):
        y = int(rows.min() + (rows.max() - rows.min()) * (0.15 + 0.7 * step / 400))
        swing = abs((step / 50) % 2 - 1) * 0.5 + 0.25
        x = int(columns.min() + (columns.max() - columns.min()) * swing)
        zigzag[max(y - 3, 0) : min(y + 4, height), max(x - 3, 0) : min(x + 4, width)] = True
    return {"cover": torch.from_numpy(cover), "zigzag": zigzag & torch.from_numpy(middle)}


@pytest.mark.parametrize("name", ["chelsea", "astronaut", "flower"])
def test_a_rough_painting_becomes_the_object(mobile: sam.LoadedSam, name: str) -> None:
    target = drawn(name)
    for kind, painted in scribbles(target).items():
        before = iou(painted, target)
        assert before < 0.9, kind
        mask, _, _, _ = sam_mask(mobile, photo(name)[None], rough_mask=painted.float()[None])
        assert iou(mask[0] > 0, target) >= max(0.85, before + 0.05), (name, kind)


def test_a_painting_of_any_shape_and_size_means_the_same(mobile: sam.LoadedSam) -> None:
    painted = scribbles(drawn("flower"))["cover"].float()
    expected = sam_mask(mobile, photo("flower")[None], rough_mask=painted[None])[0]
    for form in (painted, painted[None, None], painted[None, ..., None], torch.stack([painted, 1 - painted])):
        assert torch.equal(sam_mask(mobile, photo("flower")[None], rough_mask=form)[0], expected)
    half = torch.nn.functional.interpolate(painted[None, None], scale_factor=0.5)[0]
    assert iou(sam_mask(mobile, photo("flower")[None], rough_mask=half)[0] > 0, expected > 0) > 0.97


@given(st.integers(3, 60), st.integers(3, 60), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_inner_points_are_painted_and_the_first_is_the_deepest(height: int, width: int, seed: int) -> None:
    noise = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)).numpy()
    painted = ndimage.gaussian_filter(noise, 2) > 0.5
    found = sam_prompts.inner_points(torch.from_numpy(painted))
    depth = distance_inside(torch.nn.functional.pad(torch.from_numpy(painted), (1, 1, 1, 1)).numpy())[1:-1, 1:-1]
    assert len(found) == min(3, int(painted.sum()))
    assert len(set(found)) == len(found)
    for x, y in found:
        assert painted[int(y), int(x)]
    if found:
        assert depth[int(found[0][1]), int(found[0][0])] == pytest.approx(depth.max())


def test_a_thin_stroke_on_a_large_picture_is_not_lost() -> None:
    painted = torch.zeros(1500, 2000, dtype=torch.bool)
    painted[700, 100:1900] = True
    found = sam_prompts.inner_points(painted)
    assert len(found) == 3
    assert all(int(y) == 700 and 100 <= x <= 1900 for x, y in found)


def test_a_thin_stroke_on_a_larger_mask_is_not_lost_and_another_aspect_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    mask = torch.zeros(1, 600, 800)
    mask[:, 300, 200:600] = 1
    (request,) = sam_prompts.requests(torch.zeros(1, 60, 80, 3), "", "", None, mask)
    assert request.painted is not None
    assert request.painted.nonzero().tolist() == [[30, column] for column in range(20, 60)]
    assert not caplog.records
    sam_prompts.requests(torch.zeros(1, 80, 80, 3), "", "", None, mask)
    assert "800 x 600 pixels are stretched to 80 x 80" in caplog.text


@pytest.mark.parametrize(
    ("fill", "outside"),
    [("white", [1, 1, 1]), ("black", [0, 0, 0]), ("grey", [0.5, 0.5, 0.5]), ("green", [0, 1, 0]), ("transparent", [0, 0, 0, 0])],
)
def test_the_object_image(random_sam: sam.LoadedSam, picture: torch.Tensor, fill: str, outside: list[float]) -> None:
    mask, image, _, _ = sam_mask(random_sam, picture, positive_coords=points((40, 30)), fill=fill)
    inside = mask[0] > 0
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(image[0][inside][:, :3], picture[0][inside])
    assert (image[0][~inside] == torch.tensor(outside).float()).all()
    if fill == "transparent":
        assert torch.equal(image[..., 3], mask)


def test_a_picture_with_alpha_and_a_grey_one(random_sam: sam.LoadedSam, picture: torch.Tensor) -> None:
    plain = sam_mask(random_sam, picture, positive_coords=points((40, 30)))
    alpha = sam_mask(random_sam, torch.cat((picture, torch.ones_like(picture[..., :1])), dim=-1), positive_coords=points((40, 30)))
    assert torch.equal(plain[0], alpha[0])
    assert torch.equal(plain[1], alpha[1])
    assert sam_mask(random_sam, picture[..., :1], positive_coords=points((40, 30)))[1].shape == (1, 60, 80, 3)


@pytest.mark.parametrize(
    "inputs",
    [
        {"bboxes": []},
        {"bboxes": [[]]},
        {"bboxes": NOTHING},
        {"rough_mask": torch.zeros(1, 60, 80)},
        {"rough_mask": torch.zeros(1, 48, 64), "negative_coords": points((1, 1))},
        {"positive_coords": points((40, 30)), "min_score": 1.0},
    ],
)
def test_nothing_found_is_an_empty_mask_and_a_warning(
    random_sam: sam.LoadedSam, picture: torch.Tensor, caplog: pytest.LogCaptureFixture, inputs: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        mask, image, box, score = sam_mask(random_sam, picture, **inputs)
    assert mask.shape == (1, 60, 80)
    assert not mask.any()
    assert (image == 1).all()
    assert box == NOTHING
    assert score == 0
    assert "nothing was found on picture 1 of 1" in caplog.text


def test_nothing_found_on_one_picture_of_a_batch(random_sam: sam.LoadedSam, picture: torch.Tensor) -> None:
    mask, _, boxes, score = sam_mask(random_sam, picture.repeat(3, 1, 1, 1), bboxes=[[Box(x=5, y=5, width=50, height=40)], [], [NOTHING]])
    assert mask[0].any()
    assert not mask[1:].any()
    assert [len(frame) for frame in boxes] == [1, 0, 0]
    assert score <= 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "got no prompt"),
        ({"positive_coords": "  "}, "got no prompt"),
        ({"positive_coords": "[]"}, "got no prompt"),
        ({"negative_coords": points((1, 1))}, "got only negative points"),
        ({"rough_mask": torch.zeros(1, 64, 64)}, "got no prompt"),
        ({"rough_mask": torch.zeros(64, 64), "negative_coords": points((1, 1))}, "got only negative points"),
        ({"positive_coords": "[120, 80"}, r"positive_coords: write the points as .*This is not JSON: '\[120, 80'"),
        ({"positive_coords": "12"}, "positive_coords: write the points as .*This is not a point: '12'"),
        ({"positive_coords": "1,2; 3"}, "This is not a point: '3'"),
        ({"positive_coords": "1,2,3"}, "This is not a point: '1,2,3'"),
        ({"positive_coords": "1.2.3,4"}, "This is not a point: '1.2.3,4'"),
        ({"positive_coords": "1e999,4"}, "This is not a point"),
        ({"positive_coords": "1,2;" * 30_000}, "has 120000 characters"),
        ({"positive_coords": "90,2"}, "the point x=90, y=2 lies outside of the picture, which is 80 x 60 pixels"),
        ({"positive_coords": '{"x": 1, "y": 2}'}, "A list was expected"),
        ({"positive_coords": "[[1, 2]]"}, r"This is not a point: '\[1, 2\]'"),
        ({"positive_coords": '[{"x": "a", "y": 2}]'}, "This is not a point"),
        ({"positive_coords": '[{"x": NaN, "y": 2}]'}, "This is not a point"),
        ({"positive_coords": '[{"x": true, "y": 2}]'}, "This is not a point"),
        ({"positive_coords": f'[{{"x": 1{"0" * 400}, "y": 2}}]'}, "This is not a point"),
        ({"positive_coords": "[" * 100_000}, "This is not JSON"),
        ({"positive_coords": points((81, 2))}, "the point x=81, y=2 lies outside of the picture, which is 80 x 60 pixels"),
        ({"positive_coords": points((1, 1)), "negative_coords": points((1, -1))}, "negative_coords: the point x=1, y=-1 lies outside"),
        ({"box": "1,2,3"}, "box: write a box as left,top,width,height .*This is not a box: '1,2,3'"),
        ({"box": "80,0,5,5"}, r"\bbox: .*x=80.*lies outside of the picture, which is 80 x 60 pixels"),
        ({"box": '{"x": 1}'}, "This is not a box"),
        ({"box": "1,2,1e8,0"}, "has no area"),
        ({"bboxes": {"x": 80, "y": 0, "width": 5, "height": 5}}, "x=80.*lies outside of the picture, which is 80 x 60 pixels"),
        ({"bboxes": {"x": 8, "y": 0, "width": 0, "height": 5}}, "has no area"),
        ({"bboxes": "box"}, "bboxes: a box, a list of boxes"),
        ({"rough_mask": torch.zeros(1, 4, 4, 3)}, r"rough_mask: a mask has the shape .*\[1, 4, 4, 3\]"),
    ],
)
def test_bad_prompts_are_explained(random_sam: sam.LoadedSam, picture: torch.Tensor, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sam_mask(random_sam, picture, **inputs)


def test_a_box_over_the_edge_is_cut_off_with_a_warning(
    random_sam: sam.LoadedSam, picture: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    over = sam_mask(random_sam, picture, bboxes=Box(x=40, y=-10, width=400, height=50))[0]
    assert "reaches over the edge" in caplog.text
    assert torch.equal(over, sam_mask(random_sam, picture, bboxes=Box(x=40, y=0, width=40, height=40))[0])


def test_a_picture_of_a_wrong_shape_is_refused(random_sam: sam.LoadedSam) -> None:
    with pytest.raises(ValueError, match=r"image must be pictures of the shape .*, this one is \[60, 80, 3\]"):
        sam_mask(random_sam, torch.zeros(60, 80, 3), positive_coords=points((1, 1)))


def test_a_wired_mask_that_nobody_painted_changes_nothing(random_sam: sam.LoadedSam, picture: torch.Tensor) -> None:
    """Load Image gives a black mask of 64 x 64 for a picture without alpha, and ones of the picture's size, as painted, else."""
    for prompt in ({"positive_coords": points((40, 30))}, {"bboxes": Box(x=5, y=5, width=50, height=40)}):
        alone, wired, blank = (
            sam_mask(random_sam, picture, **prompt, **more)
            for more in ({}, {"rough_mask": torch.zeros(1, 64, 64)}, {"rough_mask": torch.zeros(1, 60, 80)})
        )
        assert torch.equal(alone[0], wired[0])
        assert torch.equal(alone[0], blank[0])
        assert alone[0].any()


def test_a_cut_outs_transparent_ground_is_left_out_where_a_mark_says_what_is_meant(
    random_sam: sam.LoadedSam, picture: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """What Load Image gives for a cut-out is white around it; a stroke that a point lies in, or without another mark, is a painting."""
    around = torch.ones(1, 60, 80)
    around[:, 10:50, 20:60] = 0
    marked: list[dict[str, Any]] = [{"positive_coords": points((40, 30))}, {"box": "20,10,40,40"}]
    for prompt in marked:
        caplog.clear()
        output: Any = MaskPromptSAMMask.execute(random_sam, picture, rough_mask=around, **prompt)
        assert torch.equal(output.args[0], sam_mask(random_sam, picture, **prompt)[0])
        assert "rough_mask was left out" in output.ui["text"][0]
        assert "rough_mask was left out" in caplog.text
    within = torch.zeros(1, 60, 80)
    within[:, :40] = 1
    for painted, prompt in (
        (around, {"positive_coords": points((5, 5), (80, 60))}), (around, {"bboxes": NOTHING}), (around, {}),
        (within, {"positive_coords": points((40, 50))}),
    ):  # fmt: skip
        (request,) = sam_prompts.requests(picture, prompt.get("positive_coords"), "", prompt.get("bboxes"), painted)
        assert request.painted is not None
        assert not request.left_out


def test_the_same_prompt_twice_gives_the_same_mask(random_sam: sam.LoadedSam, picture: torch.Tensor) -> None:
    one, other = (sam_mask(random_sam, picture, positive_coords=points((40, 30))) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_load_sam_takes_mobile_sam_from_a_safetensors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mobile: sam.LoadedSam) -> None:
    import safetensors.torch

    safetensors.torch.save_file(torch.load(mobile_sam_file(), weights_only=True), tmp_path / "m.safetensors")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"sams": ([str(tmp_path)], set())})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (model,) = MaskPromptLoadSAM.execute("m.safetensors").args
    assert model.name == "MobileSAM"
    for key, value in mobile.encoder.model.state_dict().items():
        assert torch.equal(model.encoder.model.state_dict()[key], value)
