"""The trial of tiny-edit's things: its sentences are those of training, and its figures are each thing's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.tables import tiny_things
from demo.tiny_edit import records, things, world

SMALL = tiny_things.Size(each=2, size=64, steps=1)
KNOWN = things.NAMED[3]


class MadeUp:
    """Painter and judge in one, which sees `KNOWN` in each second picture of everything."""

    def paint(self, code: str, ground: str, size: Any, seed: int) -> Tensor:
        assert not records.held_out(code, ground)
        return torch.full((3, 8, 8), float(seed))

    def things(self, picture: Tensor, count: int, codes: Any) -> list[Any]:
        return [SimpleNamespace(code=KNOWN if int(picture[0, 0, 0]) % 2 else "nothing")]


def test_grounds_are_those_of_training_and_none_comes_twice(place: world.World) -> None:
    for code in things.NAMED[:8]:
        names = tiny_things.grounds_for(place, code, 4)
        assert len(set(names)) == len(names) > 0
        assert names == tiny_things.grounds_for(place, code, 4)
        assert not any(records.held_out(code, name) for name in names)


def test_each_thing_has_its_own_rate_and_the_least_known_come_first(place: world.World) -> None:
    made: Any = MadeUp()
    whole, *each = tiny_things.measure(made, made, place, SMALL)
    assert [one.value for one in each] == [0.0] * (len(things.NAMED) - 1) + [0.5]
    assert each[-1].name == things.words_of(KNOWN)
    assert whole.value == pytest.approx(0.5 / len(things.NAMED))


@pytest.mark.usefixtures("kept_apart")
def test_a_sentence_is_painted_once_by_all_painters_of_the_same_weights(
    place: world.World, tiny_edit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = tiny_things.Painter(tiny_edit)
    ground = tiny_things.grounds_for(place, KNOWN, 1)[0]
    picture = painter.paint(KNOWN, ground, SMALL, 1)
    assert picture.shape == (3, 64, 64)
    assert not torch.equal(picture, painter.paint(KNOWN, ground, SMALL, 2))
    for again in (painter, tiny_things.Painter(tiny_edit), tiny_things.Painter(tiny_edit)):
        monkeypatch.setattr(again, "sample", lambda *_: pytest.fail("a picture that is kept was painted again"))
        assert torch.equal(again.paint(KNOWN, ground, SMALL, 1), picture)
