"""Box Mask, called as ComfyUI calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.images.masks import Box
from maskprompt.nodes.box_mask import MaskPromptBoxMask

NOTHING: Box = {"x": 0, "y": 0, "width": 0, "height": 0}


def test_box_mask_from_numbers_and_from_boxes() -> None:
    mask, box = MaskPromptBoxMask.execute(x=3, y=5, width=10, height=4, image_width=40, image_height=30).args
    expected = torch.zeros(1, 30, 40)
    expected[:, 5:9, 3:13] = 1
    assert torch.equal(mask, expected)
    assert box == {"x": 3, "y": 5, "width": 10, "height": 4}
    wired, same = MaskPromptBoxMask.execute(bboxes=box, image=torch.zeros(2, 30, 40, 3)).args
    assert torch.equal(wired, expected.repeat(2, 1, 1))
    assert same == [[box], [box]]
    other: Box = {"x": 30, "y": 20, "width": 100, "height": 100}
    union, used = MaskPromptBoxMask.execute(bboxes=[box, other], image_width=40, image_height=30).args
    expected[:, 20:, 30:] = 1
    assert torch.equal(union, expected)
    assert used == [[box, {"x": 30, "y": 20, "width": 10, "height": 10}]]
    per_picture, _ = MaskPromptBoxMask.execute(bboxes=[[box], [], [other]], image_width=40, image_height=30).args
    assert [int(one.sum()) for one in per_picture] == [40, 0, 100]


def test_box_mask_feathers_inside_its_box() -> None:
    mask, _ = MaskPromptBoxMask.execute(x=4, y=4, width=12, height=12, image_width=20, image_height=20, feather=4).args
    hard, _ = MaskPromptBoxMask.execute(x=4, y=4, width=12, height=12, image_width=20, image_height=20).args
    assert torch.equal((mask > 0).float(), hard)
    assert mask[0, 9, 4:10].tolist() == [0.125, 0.375, 0.625, 0.875, 1.0, 1.0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": 600, "y": 0}, "Box Mask: the box x=600.*lies outside of the picture, which is 512 x 512 pixels"),
        ({"width": 0}, "has no area"),
        ({"bboxes": NOTHING}, "has no area"),
        ({"bboxes": []}, "the list of boxes is empty"),
        ({"bboxes": [[], []]}, "the list of boxes is empty"),
        ({"bboxes": "x"}, "a list of boxes"),
    ],
)
def test_box_mask_explains_bad_boxes(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskPromptBoxMask.execute(**inputs)
