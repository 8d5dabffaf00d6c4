"""tiny-edit's records: what batches are drawn from, and what of it they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from demo.tiny_edit import bank, folders, records, shards, tasks, text

from ...support import tiny_edit_world
from ...support.tiny_edit_world import beside


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with records of 32 and 64 pixels."""
    return tiny_edit_world.with_records(tmp_path_factory.mktemp("records"))


def test_a_batch_shows_the_pictures_that_its_tasks_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one task of two references allowed, target and references are the record's very latents."""
    monkeypatch.setattr(bank, "WORDLESS", 0)
    held = bank.Bank(folder, 64, shards.SHARD, torch.device("cpu"))
    held.fill(1)
    compose = next(task for task in tasks.TASKS if task.name == "compose")
    number = next(one for one in held.suiting["compose"] if 0 < held.cells[one, 0].sum() < 16)
    held.suiting = {task.name: [] for task in tasks.TASKS} | {"compose": [number]}
    vocabulary = text.Vocabulary.load(folder)
    batch = held.batch(np.random.default_rng(0), 2, 3, vocabulary)
    assert len(held.about[number]["codes"]) == 1
    own = held.words[number, tasks.TASKS.index(compose)].tolist()
    assert all(words in own for words in batch.words.tolist())
    for sample in range(3):
        assert torch.equal(batch.target[sample], held.latents[number, compose.target].float())
        for place, slot in enumerate(compose.references):
            assert torch.equal(batch.references[place][sample], held.latents[number, slot].float())
        own_places = [held.places[number, slot].flatten(1).T for slot in (compose.target, *compose.references)]
        assert torch.equal(batch.places[sample], torch.cat(own_places))
    weights = batch.weights[0, 0]
    cells = held.cells[number, records.WEIGHTS[records.FULL]].bool()
    assert weights[cells].min() > 3 * weights.min()
    torch.testing.assert_close(batch.weights.mean((1, 2, 3)), torch.ones(3))


def test_a_record_has_sentences_for_the_tasks_that_it_suits(folder: Path) -> None:
    """Each as it is said of that record for that task: with the same numbers drawn, the same words."""
    vocabulary = text.Vocabulary.load(folder)
    about = records.numbered(folder, 64, 0, 5).about
    words = shards.sentences_for(np.random.default_rng(3), about, vocabulary)
    again = np.random.default_rng(3)
    for task, rows in zip(tasks.TASKS, words.tolist(), strict=True):
        if not task.suits(about):
            assert rows == np.zeros_like(rows).tolist()
            continue
        assert rows == [vocabulary.rows(tasks.sentence(again, task, about)) for _ in range(shards.SENTENCES)]
    held = bank.Bank(folder, 64, shards.SHARD, torch.device("cpu"))
    held.fill(1)
    assert np.array_equal(held.words[5], shards.numbered(folder, 64, 0, False, 5).words)


def test_halves_are_made_where_only_the_whole_ones_are_there(folder: Path, tmp_path: Path) -> None:
    place = beside(folder, tmp_path / "halves")
    (place / folders.SHARDS).unlink()
    (place / folders.SHARDS).mkdir()
    whole = shards.file_of(place, 64, 0)
    whole.symlink_to(shards.file_of(folder, 64, 0))
    assert list(shards.make(place, 64, shards.SHARD, device=torch.device("cpu"), halves=True)) == [1]
    assert shards.file_of(place, 32, 0).is_file()
    made, given = (torch.load(file, weights_only=True) for file in (whole, shards.file_of(folder, 64, 0)))
    assert torch.equal(made["words"], given["words"])


def test_samples_are_drawn_by_the_chances_of_their_tasks(folder: Path) -> None:
    """By the latents that they paint: two of the tasks without references, at 0.55 to 0.05, over 64 records."""
    held = bank.Bank(folder, 64, shards.SHARD, torch.device("cpu"))
    held.fill(1)
    kept = ("paint", "ground")
    held.suiting = {name: numbers if name in kept else [] for name, numbers in held.suiting.items()}
    batch = held.batch(np.random.default_rng(0), 0, 2000, text.Vocabulary.load(folder))
    grounds = held.latents[:, records.GROUND].float().flatten(1)
    painted = batch.target.flatten(1)
    of_ground = sum(bool((grounds == one).all(1).any()) for one in painted)
    assert of_ground / 2000 == pytest.approx(0.05 / 0.6, abs=0.02)


def test_cells_come_back_from_their_bits(folder: Path) -> None:
    held = bank.Bank(folder, 64, shards.SHARD, torch.device("cpu"))
    held.fill(1)
    for number in (0, 17, 63):
        one = records.numbered(folder, 64, 0, number)
        assert np.array_equal(held.cells[number].numpy().astype(bool), one.cells)
        assert held.about[number] == one.about


def test_a_tenth_of_a_batch_has_no_words(folder: Path) -> None:
    """Half of it as an empty prompt, half with words that are not heard."""
    held = bank.Bank(folder, 64, shards.SHARD, torch.device("cpu"))
    held.fill(1)
    vocabulary = text.Vocabulary.load(folder)
    batch = held.batch(np.random.default_rng(0), 0, 3000, vocabulary)
    empty = (batch.words == torch.tensor(vocabulary.rows(""))).all(1)
    assert float(empty.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(batch.silent.float().mean()) == pytest.approx(0.05, abs=0.015)
    assert bool(empty[batch.silent].all())


@pytest.mark.parametrize("lacking", ["words", "places"])
def test_shards_of_an_earlier_version_are_refused(folder: Path, tmp_path: Path, lacking: str) -> None:
    place = beside(folder, tmp_path / "earlier")
    (place / "shards").unlink()
    (place / "shards").mkdir()
    shard = torch.load(shards.file_of(folder, 32, 0), weights_only=True)
    del shard[lacking]
    folders.save(shard, shards.file_of(place, 32, 0))
    with pytest.raises(ValueError, match="delete that folder"):
        bank.Bank(place, 32, shards.SHARD, torch.device("cpu")).fill(1)
