"""tiny-edit's trainer: an interrupted run ends as one that was not; what travels to a GPU comes back whole."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.pack import ROOT
from demo.tiny_edit import bank, folders, latents, loop, pack, places, shards, stages, tasks, text, train

from ...support import tiny_edit_world
from ...support.tiny_edit_world import beside

STAGES = "32:2:4,64:1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with records of 32 and 64 pixels."""
    return tiny_edit_world.with_records(tmp_path_factory.mktemp("training"))


def training(folder: Path, seed: int = 0) -> train.Training:
    return train.Training(folder, stages.stages_of(STAGES), 1e-3, seed, shards.SHARD, make=True)


def advance(run: train.Training, steps: int) -> list[float]:
    return [run.advance(loop.rate_of(run, 1e9, 0))[1].item() for _ in range(steps)]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    """Across a change of stage, too: the last two steps are of the second."""
    whole = training(beside(folder, tmp_path / "whole"))
    losses = advance(whole, 6)
    place = beside(folder, tmp_path / "parts")
    first = training(place)
    begun = advance(first, 3)
    first.save()
    second = training(place)
    assert second.resume()
    assert second.step == 3
    assert begun + advance(second, 3) == losses
    assert whole.samples == second.samples
    for name, value in whole.networks.state_dict().items():
        assert torch.equal(value, second.networks.state_dict()[name]), name
        assert torch.equal(whole.average[name], second.average[name]), name


@pytest.mark.thorough
def test_it_learns(folder: Path, tmp_path: Path) -> None:
    run = train.Training(beside(folder, tmp_path / "learns"), stages.stages_of("32:8"), 2e-3, 0, shards.SHARD, make=True)
    before = np.mean(advance(run, 6))
    advance(run, 48)
    after = np.mean(advance(run, 6))
    assert after < 0.9 * before


def test_another_seed_is_another_run(folder: Path, tmp_path: Path) -> None:
    one = advance(training(beside(folder, tmp_path / "one")), 2)
    other = advance(training(beside(folder, tmp_path / "other"), seed=1), 2)
    assert one != other


def test_run_stops_at_its_step_and_saves(folder: Path, tmp_path: Path) -> None:
    place = beside(folder, tmp_path / "run")
    lines: list[str] = []
    run = training(place)
    loop.run(run, 1e9, 3, 0, lines.append)  # pyright: ignore[reportArgumentType]
    state = torch.load(place / train.STATE, weights_only=True)
    assert state["step"] == 3
    assert not list(place.glob("*.partial"))
    assert lines[-1].startswith("stopped at step 3")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_what_it_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals
) -> None:
    place = beside(folder, tmp_path / "run")
    run = training(place)
    plain = run.advance

    def asked(rate: float) -> tuple[int, torch.Tensor]:
        signal.raise_signal(kind)
        return plain(rate)

    monkeypatch.setattr(run, "advance", asked)
    before = signal.getsignal(kind)
    with pytest.raises(KeyboardInterrupt) if kind == signal.SIGINT else nullcontext():
        loop.run(run, 1e9, 5, 0, print)  # pyright: ignore[reportArgumentType]
    assert torch.load(place / train.STATE, weights_only=True)["step"] == 1
    assert signal.getsignal(kind) is before


def test_the_rate_rises_and_cools(folder: Path, tmp_path: Path) -> None:
    run = training(beside(folder, tmp_path / "rate"))
    assert loop.rate_of(run, 100, 0) == pytest.approx(1e-3 / 300)
    run.step = 5000
    assert loop.rate_of(run, 100, 10) == pytest.approx(1e-3)
    run.step, run.warm_from = 6000, 5990
    assert loop.rate_of(run, 100, 0) == pytest.approx(1e-3 * 11 / 300)
    run.step, run.warm_from = 5000, 0
    run.spent = 95
    assert loop.rate_of(run, 100, 10) == pytest.approx(5e-4)


def test_a_stage_may_end_after_minutes(folder: Path, tmp_path: Path) -> None:
    run = train.Training(beside(folder, tmp_path / "minutes"), stages.stages_of("32:2:1.5m,64:2"), 1e-3, 0, shards.SHARD, make=True)
    run.spent = 1.4
    assert run.stage().size == 32
    run.step, run.spent = 5000, 1.5
    assert run.stage().size == 64
    assert run.records(run.stage()).shards == 1
    assert run.begins == {64: 5000}


def test_shards_are_due_at_the_asked_pace() -> None:
    small, large = stages.stages_of("128:2:9,256:1")
    assert small.steps_per_shard() == stages.STEPS_PER_SHARD
    assert (small.steps_per_shard(100), large.steps_per_shard(100)) == (100, 400)


def test_a_training_takes_shards_at_its_pace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = beside(folder, tmp_path / "pace")
    run = train.Training(place, stages.stages_of("32:2"), 1e-3, 0, 4 * shards.SHARD, make=True, shard_steps=3)
    monkeypatch.setattr(train, "FIRST_SHARDS", 1)
    monkeypatch.setattr(shards, "make", lambda *given: iter(range(1, 5)))
    held: list[int] = []
    monkeypatch.setattr(bank.Bank, "fill", lambda self, count: setattr(self, "shards", count) or self.about.append({}))
    for step in range(8):
        run.step = step
        held.append(run.records(run.stage()).shards)
    assert held == [1, 1, 1, 2, 2, 2, 3, 3]


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = beside(folder, tmp_path / "nan")
    run = training(place)
    run.step = 1
    monkeypatch.setattr(run, "advance", lambda rate: (1, torch.tensor(float("nan"))))
    monkeypatch.setattr(run, "save", lambda: pytest.fail("it was saved"))
    with pytest.raises(FloatingPointError, match="not finite"):
        loop.run(run, 1e-4, None, 0, lambda line: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FloatingPointError, match="not finite"):
        loop.run(run, 100, None, 0, lambda line: None, save_minutes=0)  # pyright: ignore[reportArgumentType]


def test_compiling_first_changes_nothing_of_a_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps for every kind and stage leave weights, numbers and gradients as they were; `block.compile` itself is PyTorch's."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic: None)
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: None)
    plain = training(beside(folder, tmp_path / "plain"))
    losses = advance(plain, 3)
    compiled = training(beside(folder, tmp_path / "compiled"))
    with torch._dynamo.config.patch(suppress_errors=False, recompile_limit=8):  # puts back what compiling sets
        compiled.compile(60)
    assert all(parameter.grad is None for parameter in compiled.networks.parameters())
    assert advance(compiled, 3) == losses
    for name, value in plain.networks.state_dict().items():
        assert torch.equal(value, compiled.networks.state_dict()[name]), name


@pytest.mark.thorough
def test_steps_under_the_profiler_are_steps_and_it_tells_what_they_took(folder: Path, tmp_path: Path) -> None:
    plain = training(beside(folder, tmp_path / "plain"))
    advance(plain, 3)
    watched = training(beside(folder, tmp_path / "watched"))
    told = loop.profiled(watched, 3, 1e9, 0)
    assert told.startswith("3 steps under the profiler took ")
    assert "aten::addmm" in told
    assert "Self CPU" in told
    assert watched.step == 3
    for name, value in plain.networks.state_dict().items():
        assert torch.equal(value, watched.networks.state_dict()[name]), name


def test_places_are_asked_of_the_blocks_before_and_of_no_other(folder: Path, tmp_path: Path) -> None:
    """And a network that tells them rightly has no error."""
    run = training(beside(folder, tmp_path / "places"))
    advance(run, 2)
    batch = run.records(run.stage()).batch(np.random.default_rng(0), 1, 2, run.vocabulary)
    generator = torch.Generator().manual_seed(0)
    placed = train.losses_of(run.networks, batch, 1.0, generator).placed
    run.optimizer.zero_grad()
    placed.backward()
    flux = run.networks.flux
    asked = [any(value.grad is not None and value.grad.any() for value in block.parameters()) for block in flux.single_blocks]
    assert asked == [number < flux.shape.told_after for number in range(len(asked))]
    assert flux.img_in.weight.grad is not None
    told = places.features_of(batch.places)

    class Right(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
            return torch.zeros_like(noisy), told, []

    assert train.losses_of(Right(), batch, 1.0, generator).placed == 0


@pytest.mark.thorough
def test_heads_learn_where_to_look(folder: Path, tmp_path: Path) -> None:
    """Only the matching blocks and what comes before them are asked, only where there is a reference; steps make the error smaller."""
    run = training(beside(folder, tmp_path / "matches"))
    advance(run, 2)
    flux = run.networks.flux
    generator = torch.Generator().manual_seed(0)
    alone = run.records(run.stage()).batch(np.random.default_rng(0), 0, 2, run.vocabulary)
    assert train.losses_of(run.networks, alone, 1.0, generator).matched is None
    batch = run.records(run.stage()).batch(np.random.default_rng(0), 2, 4, run.vocabulary)
    errors: list[float] = []
    for step in range(30):
        matched = train.losses_of(run.networks, batch, 1.0, generator.manual_seed(0)).matched
        assert matched is not None
        errors.append(float(matched.detach()))
        run.optimizer.zero_grad()
        matched.backward()
        if not step:
            asked = [any(value.grad is not None and value.grad.any() for value in block.parameters()) for block in flux.single_blocks]
            last = max(block for block, _ in flux.shape.matching)
            assert asked == [number <= last for number in range(len(asked))]
        run.optimizer.step()
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("count", [0.0, train.MATCHES_COUNT])
def test_where_heads_look_counts_in_a_step(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    """Of a fresh network no block reaches the picture yet, so its first step moves a matching block's queries by that error alone."""
    monkeypatch.setattr(train, "MATCHES_COUNT", count)
    monkeypatch.setattr(tasks, "KINDS", (0, 0, 1))
    run = train.Training(beside(folder, tmp_path / "counts"), stages.stages_of("64:12"), 1e-3, 0, shards.SHARD, make=True)
    advance(run, 1)
    block, head = run.networks.flux.shape.matching[0]
    gradient = run.networks.flux.single_blocks[block].get_parameter("linear1.weight").grad
    assert gradient is not None
    queries = gradient[: run.networks.flux.shape.hidden].unflatten(0, (run.networks.flux.shape.heads, -1)).abs().amax((1, 2))
    assert [bool(value > 0) for value in queries] == [bool(count) and number == head for number in range(len(queries))]
    assert run.matched is not None
    assert run.matched > 0


def test_times_move_to_more_noise_as_tokens_stand_closer() -> None:
    """By the factor of the spacing in noise over picture; a tenth of them lie evenly."""
    generator = torch.Generator().manual_seed(0)
    odds = []
    for spacing in (2.0, 1.0):
        times = train.times_of(40_000, spacing, generator, torch.device("cpu"))
        assert 0 < times.min() < 0.05
        assert 0.95 < times.max() < 1
        odds.append(float((times / (1 - times)).median()))
    assert odds[0] == pytest.approx(math.exp(0.6 * 0.9), rel=0.1)
    assert odds[1] / odds[0] == pytest.approx(2, rel=0.12)


def test_stages_that_cannot_be_are_refused() -> None:
    assert stages.stages_of("128:24:100,256:8") == [stages.Stage(128, 24, 100), stages.Stage(256, 8)]
    assert stages.stages_of("128:24:100,256:8")[0].spacing == 2
    assert stages.stages_of("128:24:2.5m,256:8")[0] == stages.Stage(128, 24, None, 2.5)
    with pytest.raises(ValueError, match="multiple of 16"):
        stages.stages_of("100:4")


def test_it_says_which_records_are_missing(folder: Path, tmp_path: Path) -> None:
    place = beside(folder, tmp_path / "none")
    (place / "shards").unlink()
    run = train.Training(place, stages.stages_of("32:4"), 1e-3, 0, shards.SHARD, make=False)
    with pytest.raises(FileNotFoundError, match=r"demo\.tiny_edit\.shards --size 32"):
        run.advance(1e-3)


@pytest.mark.thorough
def test_a_training_that_waits_for_records_can_be_ended(folder: Path, tmp_path: Path) -> None:
    place = beside(folder, tmp_path / "waits")
    (place / "shards").unlink()
    options = ["--folder", str(place), "--threads", "1", "--stages", "32:2", "--no-make", "--wait"]
    waiting = subprocess.Popen([sys.executable, "-m", "demo.tiny_edit.train", *options], cwd=ROOT)
    try:
        while not (place / "training.log").is_file():
            assert waiting.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        assert waiting.poll() is None
        waiting.terminate()
        assert waiting.wait(timeout=10) != 0
    finally:
        waiting.kill()
    assert not (place / train.STATE).exists()


@pytest.mark.thorough
def test_what_travels_comes_back_whole(folder: Path, tmp_path: Path) -> None:
    """Gathered, trained for some steps by the folder's own code alone, cut into pieces, joined."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("world", text.FILE, latents.FILE):
        (source / name).symlink_to(folder / name)
    target = tmp_path / "travels"
    assert pack.gather(source, target) < pack.LIMIT
    command = [sys.executable, "-m", "demo.tiny_edit.pack", "work", "out", "--minutes", "10", "--records", "64", "--workers", "1"]
    code = "import sys; sys.modules['diffusers'] = sys.modules['transformers'] = sys.modules['comfy'] = None"
    (target / "sitecustomize.py").write_text(code, "utf-8")
    subprocess.run(
        [*command, "--stages", "32:4", "--train", "--steps 3 --threads 1"],
        cwd=target,
        check=True,
        env={"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"},
    )
    pieces = sorted((target / "out").glob("piece-*.bin"))
    assert all(piece.stat().st_size < 16 * 2**20 for piece in pieces)
    assert sum(piece.stat().st_size for piece in pieces) < 64 * 2**20
    home = tmp_path / "home"
    pack.join(target / "out", home)
    trained = torch.load(target / "training" / train.STATE, weights_only=True)
    joined = torch.load(home / train.STATE, weights_only=True)
    assert joined["step"] == trained["step"] == 3
    for name, value in trained["average"].items():
        torch.testing.assert_close(joined["average"][name].float(), value, atol=1e-3, rtol=1e-3)
    copy_of = beside(folder, tmp_path / "goes-on")
    folders.save(joined, copy_of / train.STATE)
    again = training(copy_of)
    assert again.resume()
    assert np.isfinite(advance(again, 1)).all()
    (target / "out" / pieces[-1].name).write_bytes(b"broken")
    with pytest.raises(ValueError, match="not whole"):
        pack.join(target / "out", home)
