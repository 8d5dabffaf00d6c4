"""How DreamCom's table paints: the variants of masked attention, on a small model of random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from maskprompt.attention.moment import Moment

from benchmarks.tables import dreamcom, dreamcom_methods
from benchmarks.tables.dreamcom_methods import CAUSES, NEITHER, NO_SELF, WHOLE, Method, patched
from benchmarks.tables.dreamcom_scores import Score, beside_by_subject
from benchmarks.tables.settings import beside_defaults
from demo.subjects import Subject

from ...support.models import Sample

EMPTY = torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(7))
SPOKEN = replace(NO_SELF, name="", outside="empty words")


def box(side: int = 128) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, 32:96, 32:96] = 1
    return mask


def test_where_all_is_inside_the_empty_words_are_never_heard(model: Any, sample: Sample) -> None:
    assert torch.equal(sample(patched(model, SPOKEN, torch.ones(1, 128, 128), EMPTY)), sample(model))


def test_the_empty_words_outside_are_a_dense_choice_between_two_texts() -> None:
    """Against two whole attentions of the same layer, of which each cell takes one."""
    from maskprompt.attention import chain, grid

    torch.manual_seed(0)
    to_k, to_v = torch.nn.Linear(12, 8), torch.nn.Linear(12, 8)
    layer = type("", (), {"attn2": type("", (), {"to_k": to_k, "to_v": to_v})})
    block = type("", (), {"transformer_blocks": [layer]})
    unet = type("", (), {"input_blocks": [[block]], "middle_block": None, "output_blocks": []})
    q, prompt, empty = torch.randn(2, 16, 8), torch.randn(2, 5, 12), torch.randn(1, 5, 12)
    rows = tuple(chain.Row(half, 0, (0, 0, 4, 4)) for half in (0, 1))
    call = chain.Call("cross", ("input", 0, 0), 2, (4, 4), (4, 4), rows, Moment(1.0), True)
    mask = torch.zeros(1, 4, 4)
    mask[:, 1:3, 1:3] = 1
    patch = dreamcom_methods.EmptyWordsOutside(grid.RegionMask(mask), unet, empty, chain.EVERYWHERE)

    def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = [part.unflatten(2, (2, 4)).transpose(1, 2) for part in (q, k, v)]
        return ((heads[0] @ heads[1].mT / 2).softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)

    found = patch.attend(q, to_k(prompt), to_v(prompt), call, dense)
    both = empty.expand(2, -1, -1)
    inside = mask.flatten().bool()[None, :, None]
    wanted = torch.where(inside, dense(q, to_k(prompt), to_v(prompt)), dense(q, to_k(both), to_v(both)))
    torch.testing.assert_close(found, wanted)


def test_every_variant_paints_another_picture(model: Any, sample: Sample) -> None:
    """All that act while painting: those which differ in training alone paint as others do."""
    acting = {(m.cross, m.layers, m.cross_layers, m.outside): m for m in (WHOLE, NO_SELF, NEITHER, *CAUSES)}
    pictures = [sample(patched(model, method, box(), EMPTY)) for method in acting.values()]
    for number, one in enumerate(pictures):
        assert not any(torch.equal(one, other) for other in pictures[number + 1 :])


def test_a_method_without_masks_leaves_the_model_as_it_is(model: Any) -> None:
    assert patched(model, NEITHER, box(), EMPTY) is model


def test_pictures_that_were_kept_before_there_were_variants_are_still_found(tmp_path: Any) -> None:
    """The key of a method that all had before is as it was; a variant has its own."""
    bench = object.__new__(dreamcom.Bench)
    bench.size = dreamcom.Size(backgrounds=1)
    bench.kept = dreamcom.Kept(tmp_path, {})
    subject = dreamcom.SUBJECTS[0]
    before = replace(WHOLE, references=0)
    same = replace(before, name="another name", masked=False)
    others = [replace(before, cross_layers="paper"), replace(before, outside="empty words"), Method("", 0, cross=False)]
    assert bench.page(subject, before, 0) == bench.page(subject, same, 0)
    assert len({bench.page(subject, one, 0) for one in (before, *others)}) == 4


def test_settings_are_told_beside_the_nodes_defaults_and_the_papers() -> None:
    class Node:
        @staticmethod
        def define_schema() -> Any:
            inputs = [type("", (), {"id": name, "default": value}) for name, value in (("steps", 400), ("rate", 0.0), ("move", True))]
            return type("", (), {"inputs": inputs})

    told = beside_defaults({"steps": 400, "rate": 5e-4, "move": True}, Node, {"steps": 400, "move": False})
    assert told == "rate 0.0005 (node 0); move on (node on, paper off)"
    with pytest.raises(KeyError):
        beside_defaults({"stpes": 1}, Node, {})


def test_beside_a_similar_object_the_subject_that_fails_is_told_from_the_others() -> None:
    """The whole method fails with one subject wherever a similar object stands; where none stands another fails, which must not count."""
    chosen = dreamcom.SUBJECTS[:3]

    def scores(method: Method, subject: Subject) -> list[Score]:
        fails = method == WHOLE and subject == chosen[1]
        similar = [Score(True, not fails, True, 0.5, None, 1.0, similar=True)] * 4
        return [*similar, *[Score(True, subject != chosen[2], True, 0.5, None, 1.0, similar=False)] * 4]

    figures = {figure.name: figure for figure in beside_by_subject(chosen, scores)}
    for method in dreamcom_methods.BESIDE:
        name = f"a similar object beside the box, {method.name}"
        for subject in chosen:
            own = figures[f"{name}, {subject.name}: appears in the box"]
            assert (own.value, own.cases) == (0 if method == WHOLE and subject == chosen[1] else 1, 4)
        rest = figures[f"{name}, all but the {chosen[1].name}"]
        assert (rest.value, rest.cases) == (1, 8)
