"""tiny-edit's table: a row says of which pictures it is, those that are guided to their reference or those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cache import Kept
from benchmarks.tables import tiny_edit
from benchmarks.tables.viewer import BY, Viewer
from demo.tiny_edit import things, world

SMALL = tiny_edit.Size(boxes=3, subjects=14, size=64)


def both(eye: Any) -> list[tiny_edit.Witness]:
    """The eye as the judge, and as a second one."""
    return [tiny_edit.Witness(eye), tiny_edit.Witness(eye, ", by another", barred=False)]


class MadeUp:
    """Painter and judge in one: guided to its first reference, it paints what is asked for, else the next thing."""

    def __init__(self) -> None:
        self.asked: list[list[Tensor]] = []

    def paint(self, texts: Sequence[str], references: Sequence[Tensor], seed: int, size: int, guided: int) -> Tensor:
        self.asked.append([*references])
        pictures = torch.zeros(len(texts), 3, size, size)
        pictures[:, 0] = torch.arange(len(texts))[:, None, None] + 10.0
        pictures[:, 1] = guided
        return pictures

    def look(self, picture: Tensor, codes: Sequence[str]) -> list[Any]:
        number = int(picture[0, 0, 0]) - 10 + int(picture[1, 0, 0] == 0)
        return [SimpleNamespace(code=codes[number % len(codes)])]

    def likeness(self, picture: Tensor, code: str) -> Any:
        inside = (0.4, 0.4, 0.01, 0.01) if picture[1, 32, 32] else (0.0, 0.0, 1.0, 1.0)
        return SimpleNamespace(box=inside)

    def things(self, picture: Tensor, count: int, codes: Sequence[str]) -> list[Any]:
        return [SimpleNamespace(code="nothing")]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tiny_edit, "photographs", lambda place, rng, count, size: torch.full((count, 3, size, size), 0.25))
    return MadeUp()


def test_subjects_are_counted_for_the_prompts_that_the_row_names(place: world.World, made: Any) -> None:
    rows = {one.name: one for one in tiny_edit.subjects(place, made, both(made), SMALL)}
    guided = rows["subject never seen: most like itself, its portrait not in the negative"]
    plain = rows["subject never seen: most like itself, its portrait in the negative too"]
    assert (guided.value, plain.value) == (1.0, 0.0)
    assert guided.cases == plain.cases == 14 > len(things.HELD_OUT)
    for portraits, photographs in made.asked:
        assert torch.equal(photographs, torch.full_like(photographs, 0.25))
        assert not torch.equal(portraits[0], portraits[1])
    assert torch.equal(made.asked[0][0], made.asked[1][0])


def test_boxes_are_counted_for_the_prompts_that_the_row_names(place: world.World, made: Any) -> None:
    """A thing of a hundredth of the side in the middle of the picture is inside of every box that holds the middle; a whole one of none."""
    rows = {one.name: one for one in tiny_edit.boxes(place, made, both(made), SMALL)}
    assert rows["box: the thing inside it, the picture in the negative too"].value == 0
    ((pictures,), again) = made.asked
    holds = (pictures[:, :, 26, 26] == 128 / 255).all(1)
    assert holds.any()
    assert rows["box: the thing inside it, the picture not in the negative"].value == pytest.approx(holds.float().mean().item())
    assert torch.equal(pictures, again[0])


def test_bars_are_held_against_the_judge_alone(place: world.World, made: Any) -> None:
    rows = tiny_edit.subjects(place, made, both(made), SMALL)
    assert all((one.met is None) == (", by another" in one.name or "without it" in one.name) for one in rows)
    assert {one.name.removesuffix(", by another") for one in rows} == {one.name for one in rows if ", by another" not in one.name}


def test_a_viewer_is_asked_about_the_pictures_that_the_row_names(place: world.World, made: Any) -> None:
    wrong, right = [False] * SMALL.boxes, [True] * SMALL.boxes
    seen = Viewer([], {"0": wrong, "1": right}, {"0": ["fox"] * SMALL.boxes, "1": ["none"] * SMALL.boxes}, {})
    rows = {one.name: one.value for one in tiny_edit.boxes(place, made, both(made), SMALL, seen)}
    assert rows[f"box: the thing inside it, the picture not in the negative{BY}"] == 1
    assert rows[f"box: the thing inside it, the picture in the negative too{BY}"] == 0
    assert rows["box: the thing inside it, the picture in the negative too: the judge agrees with the viewer"] == 1


def test_the_same_pictures_are_painted_once(tmp_path: Path) -> None:
    made = MadeUp()
    painter = tiny_edit.KeptPainter(made, Kept(tmp_path / "kept", {"weights": "a"}))
    portraits = torch.zeros(2, 3, 32, 32)

    def paint(**changes: Any) -> Tensor:
        return painter.paint(["one", "two"], [portraits], **{"seed": 1, "size": 32, "guided": 1, **changes})

    first = paint()
    assert torch.equal(paint(), first)
    assert len(made.asked) == 1
    paint(guided=0)
    paint(seed=2)
    portraits[0] = 1
    paint()
    assert len(made.asked) == 4


def test_a_bent_render_is_the_same_for_the_same_number() -> None:
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny_edit.bent(picture, 3), tiny_edit.bent(picture, 3))
    assert not torch.allclose(tiny_edit.bent(picture, 3), tiny_edit.bent(picture, 4))
