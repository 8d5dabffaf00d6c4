"""Steps that several processes or several batches share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from maskprompt.training.engine import loop
from torch import Tensor, nn

from ...support.loops import STEPS, Interrupt, file_in, loss_over, nan_loss, parameters, same, settings, trained


def together(values: dict[str, nn.Parameter], process: int, accumulate: int = 1) -> Callable[[Sequence[Tensor]], None]:
    """What two processes do after each step, as the one of number `process`: the other's loss and gradients are worked out beside it."""
    step = iter(range(STEPS))

    def share(shared: Sequence[Tensor]) -> None:
        number = next(step)
        lanes = range((1 - process) * accumulate, (2 - process) * accumulate)
        losses = [loss_over(values)(number, loop.random_numbers(3, number, lane)) for lane in lanes]
        other = torch.stack(losses).mean()
        gradients = torch.autograd.grad(other, list(values.values()))
        for one, second in zip(shared, (other.detach(), *gradients), strict=True):
            one.add_(second).div_(2)

    return share


def test_two_processes_share_the_mean_of_loss_and_gradients_and_one_writes(tmp_path: Path) -> None:
    """Run one after the other; the random numbers differ, the weights and the losses do not."""
    results = []
    told = []
    for process in (0, 1):
        values = parameters()
        file = file_in(tmp_path / str(process), every=2)
        progress = loop.run(values, loss_over(values), settings(), file, process=process, share=together(values, process))
        results.append(values)
        told.append(progress.losses)
        assert file.path.is_file() == (process == 0)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name])
    assert told[0] == pytest.approx(told[1], rel=1e-6)
    alone = parameters()
    first = trained(alone)
    assert not torch.allclose(alone["a"], results[0]["a"])
    assert first.losses[0] != pytest.approx(told[0][0], rel=1e-3)


def test_an_accumulated_step_is_one_of_the_mean_loss() -> None:
    """Against one loss that is the mean of three, written out."""
    values = parameters()
    wanted = parameters()

    def mean(step: int, generator: torch.Generator) -> Tensor:
        return torch.stack([loss_over(wanted)(step, loop.random_numbers(3, step, part)) for part in range(3)]).mean()

    progress = trained(values, accumulate=3)
    by_hand = loop.run(wanted, mean, settings())
    assert progress.losses == pytest.approx(by_hand.losses, rel=1e-5)
    for name in values:
        torch.testing.assert_close(values[name], wanted[name])
    assert all(value.grad is None for value in values.values())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_are_as_one_that_accumulates_twice_as_much(accumulate: int) -> None:
    values = parameters()
    wanted = parameters()
    shared = loop.run(values, loss_over(values), settings(accumulate=accumulate), share=together(values, 0, accumulate))
    alone = trained(wanted, accumulate=2 * accumulate)
    assert shared.losses == pytest.approx(alone.losses, rel=1e-5)
    for name in values:
        torch.testing.assert_close(values[name], wanted[name])


def test_accumulating_one_changes_nothing() -> None:
    values = parameters()
    wanted = parameters()
    trained(values, accumulate=1)
    trained(wanted)
    assert same(values, wanted)


def test_an_accumulating_training_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    """Also within a step, of which some parts are done."""
    whole = parameters()
    values = parameters()
    asked = list[int]()
    wanted = trained(whole, accumulate=3)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        asked.append(step)
        if len(asked) == 3 * 4 + 2:
            raise Interrupt
        return loss_over(values)(step, generator)

    with pytest.raises(Interrupt):
        loop.run(values, loss, settings(accumulate=3), file_in(tmp_path))
    assert torch.load(file_in(tmp_path).path)["step"] == 4
    assert all(value.grad is None for value in values.values())
    assert trained(values, file_in(tmp_path), accumulate=3) == wanted
    assert same(values, whole)


def test_one_part_that_is_no_number_spoils_nothing() -> None:
    values = parameters()
    before = parameters()
    trained(before, steps=2, accumulate=2)
    calls = iter(range(100))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return nan_loss(values, step) if next(calls) == 4 else loss_over(values)(step, generator)

    with pytest.raises(RuntimeError, match=r"not a number \(NaN\) at step 3"):
        loop.run(values, loss, settings(accumulate=2))
    assert same(values, before)


def test_random_numbers_differ_by_seed_step_and_process() -> None:
    drawn = [torch.rand(1, generator=loop.random_numbers(seed, step, process)).item()
             for seed in range(5) for step in range(50) for process in range(8)]  # fmt: skip
    assert len(set(drawn)) == len(drawn)
    assert loop.random_numbers(2**53, 100_000).initial_seed() >= 0


def test_however_many_parts_a_step_has_none_is_the_next_steps() -> None:
    """Of 62 bits no two draws are alike by chance. PyTorch keeps 32 bits of a seed, so the seeds say nothing."""
    drawn = {int(torch.randint(2**62, (1,), generator=loop.random_numbers(0, step, part))) for step in range(30) for part in range(1024)}
    assert len(drawn) == 30 * 1024
    assert loop.random_numbers(2**53, 10**7, 10**4).initial_seed() >= 0


def test_the_random_numbers_of_kept_states_stay() -> None:
    """A training that was interrupted with an earlier version goes on with the numbers it would have had."""
    assert loop.random_numbers(3, 7, 96).initial_seed() == 3 * 1_000_003 + 7 * 97 + 96
