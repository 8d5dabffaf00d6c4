"""The loop on a problem of a few numbers: interrupting and resuming, averages, several processes, disks that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.training.engine import checkpoint, loop
from torch import Tensor, nn

from ...support.loops import STEPS, Interrupt, file_in, loss_over, nan_loss, parameters, same, settings, trained


def test_it_is_adamw_with_clipped_gradients() -> None:
    """Against the loop as a text book has it."""
    values = parameters()
    wanted = parameters()
    progress = trained(values)
    optimizer = torch.optim.AdamW(wanted.values(), 0.05, (0.9, 0.999), weight_decay=1e-2)
    losses = []
    for step in range(STEPS):
        loss = loss_over(wanted)(step, loop.random_numbers(3, step))
        optimizer.zero_grad()
        loss.backward()
        total = torch.cat([value.grad.flatten() for value in wanted.values() if value.grad is not None]).norm()
        for value in wanted.values():
            assert value.grad is not None
            value.grad *= min(1.0, 1.0 / (total.item() + 1e-6))
        optimizer.step()
        losses.append(loss.item())
    assert progress.losses == pytest.approx(losses, rel=1e-5)
    for name in values:
        torch.testing.assert_close(values[name], wanted[name])
    assert all(value.grad is None for value in values.values())


def test_the_average_follows_the_weights() -> None:
    """Equal to the weighted sum written out; with no average the weights stay the last ones."""
    seen = [parameters()["a"].detach()]
    values = parameters()
    loop.run(values, loss_over(values), settings(average=0.8), None, lambda progress: seen.append(values["a"].detach().clone()))
    wanted = seen[0]
    for step, weights in enumerate(seen[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * weights
    torch.testing.assert_close(values["a"].detach(), wanted)
    plain = parameters()
    trained(plain)
    assert torch.equal(plain["a"], seen[-1])


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stops", [[6], [1, 5, 11], [12]])
def test_interrupted_and_resumed_is_as_if_nothing_had_been(tmp_path: Path, average: float, stops: list[int]) -> None:
    whole = parameters()
    wanted = trained(whole, average=average)
    for stop in stops:
        values = parameters()
        with pytest.raises(Interrupt):
            trained(values, file_in(tmp_path), stop, average=average)
    values = parameters(seed=9)  # what a resumed training started from does not count
    progress = trained(values, file_in(tmp_path), average=average)
    assert same(values, whole)
    assert progress == wanted


def test_an_error_in_the_loss_keeps_the_state_too(tmp_path: Path) -> None:
    values = parameters()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        if step == 7:
            raise torch.OutOfMemoryError("no memory")
        return loss_over(values)(step, generator)

    with pytest.raises(torch.OutOfMemoryError):
        loop.run(values, loss, settings(), file_in(tmp_path))
    again = parameters()
    whole = parameters()
    trained(again, file_in(tmp_path))
    trained(whole)
    assert same(again, whole)
    assert all(value.grad is None for value in values.values())


def test_the_state_is_written_every_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(checkpoint.StateFile, "write", lambda self, learning, finished: written.append(learning.step))
    trained(parameters(), file_in(tmp_path, every=5))
    trained(parameters(), file_in(tmp_path, every=4))
    assert written == [5, 10, 4, 8]


def test_more_steps_go_on_from_a_kept_state(tmp_path: Path) -> None:
    whole = parameters()
    values = parameters()
    with pytest.raises(Interrupt):
        trained(values, file_in(tmp_path), stop=STEPS)
    trained(values, file_in(tmp_path), steps=2 * STEPS)
    trained(whole, steps=2 * STEPS)
    assert same(values, whole)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def of_other_weights(file: Path) -> None:
    kept = torch.load(file)
    kept["parameters"]["a"] = kept["parameters"]["a"].T
    torch.save(kept, file)


def without_a_part(file: Path) -> None:
    kept = torch.load(file)
    del kept["optimizer"]
    torch.save(kept, file)


@pytest.mark.parametrize("spoil", [cut_short, emptied, of_other_weights, without_a_part])
def test_a_spoiled_state_is_a_fresh_start_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    file = file_in(tmp_path)
    whole = parameters()
    values = parameters()
    with pytest.raises(Interrupt):
        trained(parameters(), file, stop=6)
    spoil(file.path)
    with caplog.at_level(logging.WARNING):
        progress = trained(values, file)
    trained(whole)
    assert same(values, whole)
    assert len(progress.losses) == STEPS
    assert "Training starts afresh" in caplog.text


def test_the_state_of_another_training_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = parameters()
    values = parameters()
    trained(whole)
    with pytest.raises(Interrupt):
        trained(parameters(), file_in(tmp_path, "other"), stop=STEPS - 3)
    with caplog.at_level(logging.WARNING):
        trained(values, file_in(tmp_path))
    assert same(values, whole)
    assert "it is of another training" in caplog.text


def test_a_training_that_is_further_than_the_steps_asked_for_is_not_thrown_away(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    values = parameters()
    with pytest.raises(Interrupt):
        trained(parameters(), file, stop=STEPS + 3, steps=STEPS + 6)
    kept = file.path.read_bytes()
    with pytest.raises(ValueError, match=f"has done {STEPS + 3} steps already, and {STEPS} were asked for.*to get what was learned"):
        trained(values, file)
    assert file.path.read_bytes() == kept
    assert len(trained(values, file, steps=STEPS + 3).losses) == STEPS + 3


def no_folder(file: checkpoint.StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.path.parent.write_text("a file where the folder should be")


def a_folder(file: checkpoint.StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.path.mkdir(parents=True)


def full_disk(error: Exception) -> Callable[[checkpoint.StateFile, pytest.MonkeyPatch], None]:
    def prepare(file: checkpoint.StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
        def save(content: Any, path: Path) -> None:
            path.write_bytes(b"half of it")
            raise error

        monkeypatch.setattr(torch, "save", save)

    return prepare


FULL = [full_disk(OSError(28, "No space left on device")), full_disk(RuntimeError("PytorchStreamWriter failed writing file"))]


@pytest.mark.parametrize("prepare", [no_folder, a_folder, *FULL])
def test_a_disk_that_fails_does_not_stop_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, prepare: Any
) -> None:
    file = file_in(tmp_path, every=2)
    values = parameters()
    whole = parameters()
    trained(whole)
    prepare(file, monkeypatch)
    with caplog.at_level(logging.WARNING):
        trained(values, file)
        file.remove()
    assert same(values, whole)
    assert "could not be written" in caplog.text
    assert "Is the disk full?" in caplog.text
    assert not list(tmp_path.rglob("*.partial"))


def test_what_a_killed_write_left_goes_with_the_state(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    with pytest.raises(Interrupt):
        trained(parameters(), file, stop=4)
    assert file.path.is_file()
    file.path.with_suffix(".partial").write_bytes(b"half of it")
    file.remove()
    assert all(path.is_dir() for path in tmp_path.rglob("*"))


def test_a_full_disk_leaves_what_was_kept_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_in(tmp_path)
    values = parameters()
    with pytest.raises(Interrupt):
        trained(values, file, stop=4)
    with monkeypatch.context() as full:
        FULL[0](file, full)
        with pytest.raises(Interrupt):
            trained(values, file, stop=9)
    assert torch.load(file.path)["step"] == 4
    whole = parameters()
    trained(whole)
    trained(values, file)
    assert same(values, whole)


def nan_gradient(values: dict[str, nn.Parameter], step: int) -> Tensor:
    """A finite loss without a finite gradient."""
    return (values["a"] * 0).abs().sqrt().sum()


@pytest.mark.parametrize("bad", [nan_loss, nan_gradient])
def test_a_loss_that_is_no_number_is_said_and_spoils_nothing(tmp_path: Path, bad: Callable[[dict[str, nn.Parameter], int], Tensor]) -> None:
    values = parameters()
    before = parameters()
    trained(before, steps=5)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return bad(values, step) if step == 5 else loss_over(values)(step, generator)

    file = file_in(tmp_path)
    with pytest.raises(RuntimeError, match=r"not a number \(NaN\) at step 6: the learning rate \(0.05\) is too high"):
        loop.run(values, loss, settings(), file)
    assert same(values, before)
    kept = torch.load(file.path)
    assert kept["step"] == 5
    assert all(torch.equal(kept["parameters"][name], before[name]) for name in before)


def test_a_model_that_gives_no_numbers_is_not_blamed_on_the_rate() -> None:
    values = parameters()
    with pytest.raises(RuntimeError, match="before anything was learned: the model's half precision overflows"):
        loop.run(values, lambda step, generator: nan_loss(values, step), settings())


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    """The loss can only be seen to be wrong a step after the weights are; what is on the disk stays good."""
    file = file_in(tmp_path)
    values = parameters()
    with pytest.raises(Interrupt):
        trained(values, file, stop=4)

    def spoil(progress: loop.Progress) -> None:
        if progress.step == 8:
            values["a"].data.fill_(torch.inf)
            raise Interrupt

    with pytest.raises(Interrupt):
        loop.run(values, loss_over(values), settings(), file, spoil)
    assert torch.load(file.path)["step"] == 4


def test_what_comes_while_the_weights_change_writes_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C in the optimizer: what was kept before stays, and going on from it is as if nothing had been."""
    whole = parameters()
    trained(whole)
    file = file_in(tmp_path, every=4)
    step = torch.optim.AdamW.step

    def interrupted(self: torch.optim.AdamW, *args: Any) -> Any:
        done = step(self, *args)
        if all(int(moments["step"]) == 6 for moments in self.state.values()):
            raise Interrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(Interrupt):
            trained(parameters(), file)
    assert torch.load(file.path)["step"] == 4
    values = parameters()
    trained(values, file)
    assert same(values, whole)
