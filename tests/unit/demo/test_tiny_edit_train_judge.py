"""How the judge of tiny-edit's world learns: it is shown what is there, it gets better at it, and its file gives the same network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from demo.tiny_edit import eye, judge, things, train_judge, world

from ...support import tiny_edit_world

COUNT = 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return tiny_edit_world.make(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def examples(place: world.World) -> train_judge.Examples:
    return train_judge.drawn(place, COUNT, 0)


def test_examples_are_of_things_that_training_shows(examples: train_judge.Examples) -> None:
    assert examples.things.max() < len(things.TRAINING)
    assert examples.owners.amax((1, 2)).tolist() == (examples.things >= 0).sum(1).tolist()
    assert {int(count) for count in (examples.things >= 0).sum(1)} >= {1, 2}


def test_what_is_hidden_is_not_asked_for(examples: train_judge.Examples) -> None:
    hidden = train_judge.Examples(examples.pictures, torch.zeros_like(examples.owners), examples.things)
    rows = torch.arange(COUNT)
    pictures, boxes, numbers = train_judge.shown(hidden, rows, torch.Generator().manual_seed(0))
    assert (numbers == -1).all()
    assert pictures.shape == (COUNT, 3, eye.SIDE, eye.SIDE)
    _, boxes, numbers = train_judge.shown(examples, rows, torch.Generator().manual_seed(0))
    assert (numbers == examples.things).float().mean() > 0.9
    there = boxes[numbers >= 0]
    assert (there[:, 2:] > 0.05).all()
    assert (there[:, :2] >= 0).all()
    assert (there[:, :2] + there[:, 2:] <= 1).all()


def test_it_learns_and_its_file_is_the_same_network(examples: train_judge.Examples, place: world.World, tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = train_judge.Learner()
    optimizer = torch.optim.AdamW(learner.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = [train_judge.learn(learner, examples, 8, generator, optimizer)[0] for _ in range(40)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    file = tmp_path / "judge.safetensors"
    train_judge.write(learner, file, steps="40")
    read = judge.Judge(place, things.NAMED[:3], file)
    pictures = torch.rand(2, 3, eye.SIDE, eye.SIDE, generator=generator)
    with torch.no_grad():
        own, other = learner.eye(pictures), read.eye(pictures)
    assert F.cosine_similarity(own.embedded, other.embedded).min() > 0.98
    assert torch.allclose(own.boxes, other.boxes, atol=0.03)


def test_the_middle_of_a_cells_box_lies_in_the_cell() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        seen = eye.Eye()(torch.rand(1, 3, eye.SIDE, eye.SIDE))
    rows, columns = eye.middle_of(seen.boxes[0].permute(1, 2, 0))
    even = torch.arange(eye.CELLS)
    assert torch.equal(rows, even[:, None].expand(eye.CELLS, eye.CELLS))
    assert torch.equal(columns, even[None].expand(eye.CELLS, eye.CELLS))
    assert torch.allclose(seen.embedded.norm(dim=1), torch.ones(1, eye.CELLS, eye.CELLS))


def test_a_judge_that_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / judge.FILE.name).write_bytes(b"trained")
    monkeypatch.setattr(sys, "argv", ["train_judge", "--folder", str(tmp_path)])
    train_judge.main()
    assert (tmp_path / judge.FILE.name).read_bytes() == b"trained"
    assert "--again trains one anew" in capsys.readouterr().out
