"""Mask-ControlNet learns from pairs: the reference shows the object on another ground than the picture that is painted."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from maskprompt.training.data.objects import Example, Given, pair
from maskprompt.training.engine.loop import random_numbers
from maskprompt.training.mask_controlnet.checks import check_pairs
from maskprompt.training.mask_controlnet.examples import Source, covering
from maskprompt.training.mask_controlnet.options import Options, Pairs
from torch import Tensor

from ...support.dreamcom import box_masks


def grey(value: float, height: int = 64, width: int = 64) -> Tensor:
    return torch.full((height, width, 3), value)


def grounds_of(count: int = 5, soft: bool = False) -> Given:
    """Pictures of grounds 0.1, 0.2 and so on, each with an object of the colour 1 in a place of its own."""
    found = []
    for number in range(count):
        mark = torch.zeros(1, 64, 64)
        mark[0, 4 + 6 * number : 24 + 6 * number, 10:40] = 0.75 if soft else 1.0
        image = torch.where(mark[0, ..., None] > 0, torch.ones(3), grey(0.1 * (number + 1)))
        found.append(Example(image, mark, f"picture {number}"))
    return Given(found)


def test_each_object_stands_on_the_ground_of_another_picture_and_its_own_is_painted() -> None:
    examples = grounds_of()
    source = Source(examples, 2, 64, pairs="grounds")
    same = Source(examples, 2, 64)
    drawn = Counter[tuple[int, int]]()
    for step in range(200):
        plan = source.plan(random_numbers(3, step))
        plain = same.plan(random_numbers(3, step))
        assert (plan.rows, plan.objects, plan.texts) == (plain.rows, plain.objects, plain.texts)
        batch = source.load(plan)
        alone = same.load(plain)
        assert torch.equal(batch.image, alone.image)
        assert torch.equal(batch.mask, alone.mask)
        assert torch.equal(alone.reference, alone.image)
        for row, number in enumerate(plan.rows):
            inside = batch.mask[row, 0] == 1
            assert torch.equal(batch.reference[row][:, inside], batch.image[row][:, inside])
            # The other picture's object is a part of its ground.
            ground = round(batch.reference[row, 0][~inside].min().item() * 10) - 1
            wanted = examples[ground].image.movedim(-1, 0)
            assert torch.equal(batch.reference[row][:, ~inside], wanted[:, ~inside])
            drawn[number, ground] += 1
    assert sorted(drawn) == [(one, other) for one in range(5) for other in range(5) if one != other]
    assert min(drawn.values()) > 5


def test_a_soft_edge_mixes_object_and_ground() -> None:
    examples = grounds_of(2, soft=True)
    source = Source(examples, 1, 64, pairs="grounds")
    plan = source.plan(random_numbers(0, 0))
    batch = source.load(plan)
    own = examples[plan.rows[0]]
    other = examples[1 - plan.rows[0]]
    wanted = 0.75 * own.image + 0.25 * other.image
    inside = own.marks[0] > 0
    torch.testing.assert_close(batch.reference[0].movedim(0, -1)[inside], wanted[inside])


def test_a_ground_of_another_shape_covers_the_picture_in_proportion() -> None:
    across = (torch.arange(300) + 0.5) / 300
    down = (torch.arange(100) + 0.5) / 100
    ramp = torch.stack([down[:, None].expand(100, 300), across.expand(100, 300), torch.zeros(100, 300)], -1)
    found = covering(ramp, 64, 128)
    assert found.shape == (3, 64, 128)
    rows = found[0].mean(1) * 100
    columns = found[1].mean(0) * 300
    pixel = 100 / 64
    assert (rows[-1] - rows[0]).item() / 63 == pytest.approx(pixel, rel=0.03)
    assert (columns[-1] - columns[0]).item() / 127 == pytest.approx(pixel, rel=0.03)
    assert rows.mean().item() == pytest.approx(50, abs=0.5)
    assert columns.mean().item() == pytest.approx(150, abs=1.0)
    assert torch.equal(covering(ramp, 100, 300), ramp.movedim(-1, 0))


def with_references() -> Given:
    return Given([one._replace(reference=one.image.flip(-1) * 0.5) for one in grounds_of(3).examples])


@pytest.mark.parametrize("pairs", ["given", "none", "grounds"])
def test_references_of_ones_own_are_taken_where_they_are_asked_for(pairs: Pairs) -> None:
    examples = with_references()
    source = Source(examples, 1, 64, pairs=pairs)
    plan = source.plan(random_numbers(0, 0))
    batch = source.load(plan)
    own = examples[plan.rows[0]].reference
    assert own is not None
    assert torch.equal(batch.image[0], examples[plan.rows[0]].image.movedim(-1, 0))
    assert torch.equal(batch.reference[0], own.movedim(-1, 0)) is (pairs == "given")
    assert torch.equal(batch.reference, batch.image) is (pairs == "none")


def test_references_come_in_the_order_of_the_pictures() -> None:
    images = torch.rand(3, 64, 64, 3)
    beside = torch.rand(3, 64, 64, 4)
    found = pair([images], ["a"], [box_masks(3)], [beside[:1], beside[1:]])
    assert found.have_references
    for number in range(3):
        assert torch.equal(found[number].reference, beside[number, ..., :3])  # pyright: ignore[reportArgumentType]
    alone = pair([images], ["a"], [box_masks(3)])
    assert not alone.have_references
    assert alone.fingerprint() != found.fingerprint()


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([torch.rand(2, 64, 64, 3)], "3 pictures but 2 references: give one reference for each picture"),
        ([torch.rand(3, 64, 80, 3)], "picture 1 is 64 x 64 pixels but its reference 80 x 64: the object has to stand in the same place"),
        ([torch.full((3, 64, 64, 3), torch.nan)], r"the reference of picture 1 holds values that are no numbers \(NaN\)"),
        ([torch.rand(0, 64, 64, 3)], "no picture was given: wire a reference for each picture"),
    ],
)
def test_references_that_do_not_match_are_refused(references: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair([torch.rand(3, 64, 64, 3)], ["a"], [box_masks(3)], references)


def test_pairs_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs is grounds.*there is one picture: give at least two"):
        check_pairs(Options(pairs="grounds"), grounds_of(1))
    with pytest.raises(ValueError, match="pairs is given, but not every picture has a reference"):
        check_pairs(Options(pairs="given"), grounds_of(3))
    check_pairs(Options(pairs="grounds"), grounds_of(2))
    check_pairs(Options(pairs="given"), with_references())
    check_pairs(Options(), grounds_of(1))


def test_the_fingerprint_tells_pairs_apart_and_knows_trainings_from_before_there_were_any() -> None:
    marks = {Options(pairs=pairs).fingerprint("pictures") for pairs in ("none", "grounds", "given")}
    assert len(marks) == 3
    assert Options(steps=3).fingerprint("pictures") == (
        "mask-controlnet 1 Options(steps=0, rate=None, weight_decay=0.01, batch=4, accumulate=1, size=512, masked=True, text_dropout=0.1, "
        "seed=0, average=0.0, checkpointing=True) pictures"
    )
