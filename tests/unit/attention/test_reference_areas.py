"""References beside a prompt's area (Conditioning Set Area), for which ComfyUI gives the other prompt a copy of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy.samplers import create_cond_with_same_area_if_none
from maskprompt.attention import reference_regions, rows
from maskprompt.attention.reference_regions import REFERENCES, REGIONS, ReferenceRegion

from ...support.reference_masks import SIZE, latents, prompt, said_of, sample, takers
from ...support.tiny_transformers import Tiny

AREA = {"area": (*SIZE, 0, 0), "strength": 1.0}
"""All of the picture: nothing is cropped, so that the picture is the one without an area."""


class Executor:
    """Stands for ComfyUI's: a call, and the object whose method it is."""

    def __init__(self, class_obj: Any, call: Callable[..., Any]) -> None:
        self.class_obj = class_obj
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


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


def test_a_copy_alone_is_known_by_the_list_that_it_came_from() -> None:
    """As context windows hand a prompt's entries on: one of them, without the one that it was copied from."""
    latent = torch.zeros(1, 4, 8, 8)
    region = ReferenceRegion(latent, torch.ones(1, 16, dtype=torch.bool))
    brings = {REFERENCES: [latent], REGIONS: [region]}
    positive = {"uuid": "p", "model_conds": {"c_crossattn": object()}, **brings}
    negative = {"uuid": "n", "model_conds": {"c_crossattn": object()}, "area": (4, 4, 0, 0)}
    conds = {"negative": [negative], "positive": [positive]}
    create_cond_with_same_area_if_none(conds["positive"], negative)
    create_cond_with_same_area_if_none(conds["negative"], positive)
    _, copy = conds["positive"]
    told: dict[str, Any] = {}

    def predict(_x: Any, _timestep: Any, options: dict[str, Any], _seed: Any) -> None:
        told.update(options["transformer_options"])

    rows.remember_halves(Executor(SimpleNamespace(conds=conds), predict), latent, torch.ones(1), {})
    assert told[rows.HALVES] == {"p": 0, copy["uuid"]: 0, negative["uuid"]: 1}
    assert len(told[rows.HALVES]) == 3

    def calc(_model: Any, _conds: Any, _x: Any, _timestep: Any, options: dict[str, Any]) -> Any:
        return options["transformer_options"][rows.VIEW].references

    seen = rows.remember_view(calc, None, [[copy], [negative]], latent, torch.ones(1), {"transformer_options": told})
    assert seen == {copy["uuid"]: (region,)}, "the copy brings the positive prompt's reference, the negative nothing"
