"""Inputs are checked by a node's schema, before the node sees them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from maskprompt.nodes.checked import checked
from typing_extensions import override


class Probe(io.ComfyNode):
    """A node with one input of each kind; it returns what it was given."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Probe",
            display_name="Probe",
            inputs=[
                io.Image.Input("image"),
                io.Mask.Input("mask", optional=True),
                io.Int.Input("count", default=3, min=0, max=9),
                io.Float.Input("part", default=0.5, min=0.0, max=1.0),
                io.String.Input("text", default=""),
                io.Boolean.Input("flag", default=False),
                io.Combo.Input("mode", options=["one", "two"]),
                io.Combo.Input("model_name", options=["a file"], optional=True),
                io.Latent.Input("latent", optional=True),
                io.Conditioning.Input("positive", optional=True),
                io.Clip.Input("clip", optional=True),
                io.Float.Input("late", default=0.7, optional=True),
            ],
            outputs=[],
        )

    @classmethod
    @override
    @checked
    def execute(cls, image: Any, mask: Any = None, count: int = 3, part: float = 0.5, text: str = "", **more: Any) -> io.NodeOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        return io.NodeOutput({"image": image, "mask": mask, "count": count, "part": part, "text": text, **more})


PICTURE = torch.rand(1, 4, 5, 3)


def given(**inputs: Any) -> dict[str, Any]:
    return Probe.execute(**{"image": PICTURE, **inputs}).args[0]


def test_good_values_are_handed_on_as_they_are() -> None:
    latent = {"samples": torch.zeros(1, 4, 2, 2), "batch_index": [0]}
    prompt = [[torch.zeros(1, 77, 8), {"area": 1}]]
    clip = SimpleNamespace(tokenize=1, encode_from_tokens_scheduled=1, cond_stage_model=1)
    found = given(latent=latent, positive=prompt, clip=clip, count=9, part=1, text="embedding:fox, a cat", flag=True, mode="two")
    assert found["image"] is PICTURE
    assert found["latent"] is latent
    assert found["positive"] is prompt
    assert found["clip"] is clip
    assert (found["count"], found["part"], found["flag"], found["mode"]) == (9, 1.0, True, "two")
    assert found["mask"] is None


def test_nothing_in_an_optional_number_is_its_default() -> None:
    assert given(late=None)["late"] == 0.7
    assert given(mask=None)["mask"] is None


def test_no_masks_at_all_are_the_nodes_own_matter_where_a_mask_is_optional() -> None:
    none = torch.zeros(0, 3, 3)
    assert given(mask=none)["mask"] is none


def test_positional_values_are_checked_too() -> None:
    with pytest.raises(ValueError, match="Probe: count must be from 0 to 9, got 12"):
        Probe.execute(PICTURE, None, 12)


def test_grey_pictures_get_their_colours() -> None:
    assert torch.equal(given(image=PICTURE[..., :1])["image"], PICTURE[..., :1].expand(-1, -1, -1, 3))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"image": PICTURE[:0]}, "a batch of no pictures"), ({"image": PICTURE * math.nan}, "are no numbers"),
        ({"image": None}, "must be a picture"),
        ({"mask": "white"}, "a mask was expected"),
        ({"count": math.nan}, "count must be from 0 to 9"), ({"count": 2.5}, "whole number"), 
        ({"count": 10**400}, "more than 20 digits"),
        ({"part": math.inf}, r"part is inf\. A number from 0 to 1"), 
        ({"part": -0.5}, r"part is -0\.5\. A number"), ({"part": "a"}, "must be a number"),
        ({"text": 3}, "text must be a text, got int"),
        ({"text": "a embedding:"}, "embedding: without a name"), ({"text": "(embedding:) b"}, "embedding: without a name"),
        ({"text": "a\0"}, "a character that is none"), ({"model_name": "a\ud800"}, "model_name holds a character that is none"),
        ({"image": "\ud83d"}, "image holds a character that is none"),
        ({"flag": "yes"}, "is a switch"), ({"mode": "three"}, "must be one of one, two"),
        ({"latent": PICTURE}, "must be a latent"), ({"latent": {"samples": torch.zeros(0, 4, 2, 2)}}, "of the shape"),
        ({"latent": {"samples": torch.full((1, 4, 2, 2), math.nan)}}, "are no numbers"), ({"positive": []}, "got an empty one"),
        ({"positive": [[torch.zeros(77), {}]]}, "of the shape"), ({"positive": [[None, None]]}, "no whole prompt"),
        ({"positive": [[torch.full((1, 7, 8), math.nan), {}]]}, "are no numbers"),
        ({"clip": 3}, "int was given, but Probe needs a text encoder"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_in_words(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        given(**inputs)


def test_of_an_optional_list_what_brings_nothing_is_left_out() -> None:
    """A switch that is off hands on None."""
    from maskprompt.nodes.checked import _each  # pyright: ignore[reportPrivateUsage]

    pictures = io.Image.Input("references", optional=True)
    assert _each([None], pictures, "Probe", True) == []
    (kept,) = _each([None, PICTURE], pictures, "Probe", True)
    assert torch.equal(kept, PICTURE)
    assert _each([None], io.Float.Input("late", default=0.7, optional=True), "Probe", True) == [0.7]
