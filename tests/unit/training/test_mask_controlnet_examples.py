"""What Mask-ControlNet learns from: which pictures, texts and objects are drawn, and how they are cropped and paired."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from maskprompt.images.masks import bounding_box
from maskprompt.training.data.objects import Example, Given, pair
from maskprompt.training.engine import loop
from maskprompt.training.mask_controlnet.examples import Source, bucket, cropped
from torch import Tensor

from ...support.mask_controlnet_training import source_of, squares


def plans(source: Source, count: int) -> list[Any]:
    return [source.plan(loop.random_numbers(0, step)) for step in range(count)]


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_as_many_texts_are_dropped_as_were_asked_for(dropout: float) -> None:
    source = Source(squares(), 4, 64, dropout)
    drawn = [(row, text) for plan in plans(source, 500) for row, text in zip(plan.rows, plan.texts, strict=True)]
    assert sum(text == "" for _, text in drawn) / len(drawn) == pytest.approx(dropout, abs=0.04 if 0 < dropout < 1 else 0)
    assert all(text in ("", f"square {row}") for row, text in drawn)


def test_the_same_random_numbers_draw_the_same_batch() -> None:
    source = source_of()
    other = source_of()
    for step in range(5):
        one = source.plan(loop.random_numbers(4, step))
        two = other.plan(loop.random_numbers(4, step))
        assert one == two
        first = source.load(one)
        second = other.load(two)
        assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("reference", "mask", "image"))
    assert len({source.plan(loop.random_numbers(4, step)).objects for step in range(5)}) == 5


def test_each_of_several_objects_is_drawn_about_equally_often_and_with_its_mask() -> None:
    """Three objects side by side, too far from each other for one square: each has its colour and its window."""
    image = torch.zeros(64, 256, 3)
    marks = torch.zeros(3, 64, 256)
    for number, left in enumerate((10, 110, 210)):
        marks[number, 20:50, left : left + 30] = 1
        image[20:50, left : left + 30] = (number + 1) / 4
    source = Source(Given([Example(image, marks, "three things")]), 2, 64)
    seen: Counter[int] = Counter()
    for plan in plans(source, 450):
        batch = source.load(plan)
        for row in range(2):
            inside = batch.image[row, 0][batch.mask[row, 0] > 0.5]
            number = round(inside[0].item() * 4) - 1
            assert len(inside) == 900
            assert torch.equal(batch.image[row], batch.mask[row].expand(3, -1, -1) * (number + 1) / 4)
            seen[number] += 1
    assert sorted(seen) == [0, 1, 2]
    assert all(250 < count < 350 for count in seen.values())


def test_every_picture_is_drawn_about_equally_often_in_batches_of_one_bucket() -> None:
    """Whatever shapes there are, and however many of each."""
    sizes = [(64, 64)] * 3 + [(128, 256)] * 2 + [(256, 128)] + [(130, 250)] + [(512, 60)]
    examples = Given([Example(torch.zeros(*size, 3), torch.ones(1, *size), f"{number}") for number, size in enumerate(sizes)])
    source = Source(examples, 2, 128)
    seen = Counter[int]()
    assert examples.sizes == sizes
    for plan in plans(source, 1200):
        assert len({bucket(*sizes[row], 128) for row in plan.rows}) == 1
        seen.update(plan.rows)
    assert all(count == pytest.approx(300, rel=0.25) for count in seen.values())
    assert sorted(seen) == list(range(len(sizes)))
    batch = source.load(next(plan for plan in plans(source, 100) if plan.rows[0] == 6))
    assert batch.image.shape == (2, 3, 64, 192)
    assert batch.mask.shape == (2, 1, 64, 192)


SIDES = st.integers(16, 4000)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(8, 256).map(lambda eighths: eighths * 8))
@example(64, 128, 64)
@example(500, 1000, 512)
def test_buckets(height: int, width: int, size: int) -> None:
    rows, columns = bucket(height, width, size)
    square = max(64, round(size / 64) * 64)
    assert rows % 64 == columns % 64 == 0
    assert 0.74 < rows * columns / square**2 <= 1.15
    assert bucket(width, height, size) == (columns, rows)
    assert bucket(height, height, size) == (square, square)
    assert (height - width) * (rows - columns) >= 0
    ratio = min(2.0, max(0.5, height / width))
    if square >= 512:
        assert 1 / 1.15 < rows / columns / ratio < 1.15
    # Of all shapes whose area is no further from the square's, none is closer to the picture's proportions.
    off = abs(math.log(rows / columns / ratio))
    for other in range(64, 3 * square, 64):
        across = max(64, round(square**2 / other / 64) * 64)
        assert other * across > 1.15 * square**2 or abs(math.log(other / across / ratio)) >= off - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 300), st.integers(40, 300), st.sampled_from([64, 128, 192]), st.tuples(*[st.floats(0, 1)] * 4))
@example(40, 300, 64, (0.9, 0.99, 0.1, 0.3))
def test_picture_and_mask_are_cropped_alike_around_the_object(
    height: int, width: int, size: int, place: tuple[float, float, float, float]
) -> None:
    """The picture's colour is its mask; the reference tells where each of its pixels is from."""
    tall, wide = (max(4, round(part * side)) for part, side in zip(place[2:], (height, width), strict=True))
    top, left = round(place[0] * (height - tall)), round(place[1] * (width - wide))
    marks = torch.zeros(1, height, width)
    marks[0, top : top + tall, left : left + wide] = 1
    down, right = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    where = torch.stack([down[:, None].expand(height, width), right.expand(height, width), torch.zeros(height, width)], -1)
    rows, columns = bucket(height, width, size)
    reference, mask, image = cropped(Example(marks[0, ..., None].expand(-1, -1, 3), marks, "", where), 0.5, rows, columns)
    assert (reference.shape, mask.shape, image.shape) == ((3, rows, columns), (1, rows, columns), (3, rows, columns))
    torch.testing.assert_close(image, mask.expand(3, -1, -1), atol=1e-5, rtol=0)
    scale = max(rows / height, columns / width)
    for axis, (begin, extent, whole, seen) in enumerate([(top, tall, height, rows), (left, wide, width, columns)]):
        first, last = (reference[axis].select(axis, end).mean().item() * whole for end in (0, -1))
        pixel = 1 / scale
        assert (last - first) / (seen - 1) == pytest.approx(pixel, rel=0.05)  # in proportion: no picture is stretched
        assert first - pixel <= begin + extent / 2 <= last + pixel
        if extent * scale <= seen:
            assert first - 1.5 * pixel <= begin + 0.5
            assert last + 1.5 * pixel >= begin + extent - 0.5


def test_an_object_that_grows_too_small_to_be_seen_is_still_in_the_window() -> None:
    marks = torch.zeros(1, 400, 800)
    marks[0, 300:304, 780:784] = 1
    _, mask, _ = cropped(Example(torch.zeros(400, 800, 3), marks, ""), 0.0, 64, 64)
    assert mask.max() > 0
    assert bounding_box((mask[0] > 0).float()) is not None


def test_a_picture_of_the_buckets_size_is_taken_as_it_is() -> None:
    example_of = squares(1, 64, 192).examples[0]
    reference, mask, image = cropped(example_of, 0.0, 64, 192)
    assert torch.equal(image, example_of.image.movedim(-1, 0))
    assert torch.equal(mask, example_of.marks)
    assert torch.equal(reference, image)


def test_masks_come_in_one_batch_or_as_many_for_each_picture_as_there_are() -> None:
    images = torch.rand(2, 32, 40, 4)
    marks = torch.zeros(3, 32, 40)
    marks[0, :10] = 1
    marks[1, 10:] = 1
    marks[2, 5:20] = 1
    single = pair([images], ["one\ntwo"], [marks[:2]])
    assert [one.marks.shape[0] for one in single.examples] == [1, 1]
    assert torch.equal(single[1].marks, marks[1:2])
    assert (single.captions, single.sizes, len(single)) == (["one", "two"], [(32, 40)] * 2, 2)
    assert torch.equal(single[0].image, images[0, ..., :3])
    several = pair([images[:1], images[1:]], ["one", "two"], [marks[:2], marks[2:]])
    assert [one.marks.shape[0] for one in several.examples] == [2, 1]
    assert torch.equal(several[0].marks, marks[:2])
    spread = pair([images], ["one"], [marks[:1], marks[2:, None]])
    assert [torch.equal(one.marks[0], wanted) for one, wanted in zip(spread.examples, (marks[0], marks[2]), strict=True)] == [True, True]
    empty = torch.cat([marks[:2], torch.zeros(1, 32, 40)])
    assert pair([images[:1]], ["one"], [empty])[0].marks.shape[0] == 2


def test_a_pictures_fingerprint_is_of_all_that_matters() -> None:
    images = torch.rand(2, 32, 40, 3)
    marks = torch.ones(2, 32, 40)
    first = pair([images], ["one"], [marks]).fingerprint()
    assert pair([images.clone()], ["one"], [marks.clone()]).fingerprint() == first
    less = marks.clone()
    less[1, :4] = 0
    own = pair([images], ["one"], [marks])
    referring = Given([own[0]._replace(reference=images[1]), own[1]])
    others = [pair([images.flip(1)], ["one"], [marks]), pair([images], ["two"], [marks]), pair([images], ["one"], [less]), referring]
    assert len({first, *(one.fingerprint() for one in others)}) == 5


def with_nan() -> Tensor:
    images = torch.rand(2, 32, 40, 3)
    images[1, 3, 4] = torch.nan
    return images


@pytest.mark.parametrize(
    ("images", "marks", "captions", "message"),
    [
        ([], [], "a", "no picture was given: wire the pictures to learn from"),
        ([torch.rand(0, 32, 40, 3)], [torch.ones(1, 32, 40)], "a", "no picture was given"),
        ([with_nan()], [torch.ones(2, 32, 40)], "a", r"picture 2 holds values that are no numbers \(NaN\)"),
        ([torch.rand(2, 32, 40, 3)], [torch.ones(2, 40, 32)], "a", "picture 1 is 40 x 32 pixels but its mask 32 x 40"),
        ([torch.rand(2, 32, 40, 3)], [torch.ones(1, 32, 40), torch.ones(2, 9, 9)], "a", "picture 2 is 40 x 32 pixels but its mask 9 x 9"),
        ([torch.rand(1, 32, 40, 3)], [torch.zeros(1, 64, 64)], "a", "the mask of picture 1 marks nothing: point SAM Mask"),
        ([torch.rand(1, 32, 40, 3)], [torch.full((3, 32, 40), 0.5)], "a", "the mask of picture 1 marks nothing"),
        ([torch.rand(1, 32, 40, 3)], [torch.full((1, 32, 40), torch.nan)], "a", "the mask of picture 1 marks nothing"),
        ([torch.rand(3, 32, 40, 3)], [torch.ones(2, 32, 40)], "a", "3 pictures but 2 masks: give one mask for each picture in one batch"),
        ([torch.rand(3, 32, 40, 3)], [torch.ones(2, 32, 40)] * 2, "a", "3 pictures but 4 masks"),
        ([torch.rand(2, 32, 40, 3)], [], "a", "2 pictures but 0 masks"),
        ([torch.rand(2, 32, 40, 3)], [torch.ones(2, 32, 40, 3)], "a", "masks: a mask has the shape"),
        ([torch.rand(2, 32, 40, 3)], [torch.ones(2, 32, 40)], "a\nb\nc", "2 pictures but 3 lines of captions"),
        ([torch.rand(2, 32, 40, 3)], [torch.ones(2, 32, 40)], " \n ", "captions is empty"),
    ],
)
def test_what_does_not_match_is_said_in_words(images: Sequence[Tensor], marks: Sequence[Tensor], captions: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair(images, [captions], marks)
