"""References beside a prompt's area (Conditioning Set Area), for which ComfyUI gives the other prompt a copy of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.attention import reference_regions

from ...support.reference_masks import SIZE, latents, prompt, said_of, sample, takers
from ...support.tiny_transformers import Tiny

AREA = {"area": (*SIZE, 0, 0), "strength": 1.0}
"""All of the picture: nothing is cropped, so that the picture is the one without an area."""


def with_area(conditioning: list[Any]) -> list[Any]:
    return [[words, {**options, **AREA}] for words, options in conditioning]


def other(tiny: Tiny) -> list[Any]:
    """A negative prompt without references."""
    return [[tiny.words(7, 90), dict(tiny.options)]]


@takers
@pytest.mark.parametrize("where", ["positive", "negative", "both"])
@pytest.mark.parametrize("references", ["positive", "negative", "both"])
def test_an_area_over_all_of_the_picture_changes_nothing(tiny: Tiny, where: str, references: str) -> None:
    """Each half reads its own references, by its own regions, also where ComfyUI made it of the other's copy."""
    pictures = latents(tiny)
    one, two = (said_of(tiny, pictures, case)[0] for case in ("both", "hidden"))
    positive = prompt(tiny, pictures, one) if references != "negative" else prompt(tiny, [])
    negative = prompt(tiny, pictures[::-1], two[::-1]) if references != "positive" else other(tiny)
    model = reference_regions.install(tiny.model())
    wanted = sample(model, tiny, positive, 1, 3.0, negative)
    given = (with_area(half) if where in (name, "both") else half for name, half in (("positive", positive), ("negative", negative)))
    result = sample(model, tiny, next(given), 1, 3.0, next(given))
    torch.testing.assert_close(result, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)


@takers
def test_a_reference_that_a_node_lost_is_still_refused_beside_an_area(tiny: Tiny) -> None:
    pictures = latents(tiny)
    (words, options), = with_area(prompt(tiny, pictures, said_of(tiny, pictures, "both")[0]))  # fmt: skip
    lost = [[words, {**options, reference_regions.REFERENCES: [picture.clone() for picture in pictures]}]]
    with pytest.raises(RuntimeError, match="no longer in it as they were"):
        sample(reference_regions.install(tiny.model()), tiny, lost, 1, 3.0, other(tiny))
