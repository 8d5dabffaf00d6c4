"""Trains tiny-edit's transformer and text encoder.

    python -m demo.tiny_edit.train --threads 1

Flow matching on the latents of encoded records: no rendering in a step. Runs in bfloat16 on a GPU and on a CPU that multiplies it, else in
float32; saves its whole state every five minutes and when it is asked to end, and goes on from there. Every step draws its numbers from
the seed and its own number, so a run that was interrupted ends with the weights of one that was not, if its stages end by steps, it makes
its records itself, and the rate does not cool: what goes by the clock, or by another process, is never twice the same.

A stage is `SIZE:BATCH:UNTIL`: pictures of so many pixels, so many samples without references in a step (half as many with one, a third with
two), until so many steps have been made, or until so many minutes of training (`128:384:2.5m`). The first stage is small, because
silhouettes and words need many samples and few pixels.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..trainer import Log, device_of, learns_in_bfloat16
from . import folders, places, shards, tasks
from .bank import Bank, Batch
from .latents import CHANNELS
from .loop import profiled, run
from .stages import FIRST_SHARDS, STEPS_PER_SHARD, Stage, stages_of
from .text import TextEncoder, Vocabulary
from .transformer import TEXT_LENGTH, Flux

STATE = "transformer-state.pt"
AVERAGE_EVERY = 4
PLACES_COUNT = 6.0
"""How much the error of the tokens' places counts beside the error of the picture."""
MATCHES_COUNT = 0.2
"""How much the error of the heads that look for a token's own piece in the references counts."""


class Networks(nn.Module):
    """The transformer and the text encoder, which learn together."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.flux = Flux()
        self.text = TextEncoder(vocabulary.ids)
        hidden = self.flux.shape.hidden
        self.places = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, places.FEATURES))

    def forward(self, noisy: Tensor, times: Tensor, batch: Batch, spacing: float) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Answers what `Flux` answers, the features of the tokens' places [B, L, 21], and how the matching heads look at references."""
        words, pooled = self.text(batch.words)
        speaks = (~batch.silent).to(words.dtype)
        heard = (words * speaks[:, None, None], pooled * speaks[:, None])
        answer, half_way, looks = self.flux.answers(noisy, times, *heard, batch.references, spacing, looking=True)
        return answer, self.places(half_way), looks


class Errors(NamedTuple):
    """A step's errors: of the picture, of the tokens' places, and of where heads look in the references (None without references)."""

    painted: Tensor
    placed: Tensor
    matched: Tensor | None


def times_of(count: int, spacing: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Times in 0..1, high noise favoured: nine in ten from a logistic normal, the others evenly.

    Its mean is 0.6 where tokens stand at every second position, and more where they stand closer: the same shape is then told by more
    tokens, and hidden only by more noise (Esser et al., 2024, section 5.3.2).
    """
    even = torch.rand(count, generator=generator, device=device)
    favoured = torch.sigmoid(torch.randn(count, generator=generator, device=device) + 0.6 + math.log(2 / spacing))
    return torch.where(torch.rand(count, generator=generator, device=device) < 0.9, favoured, even)


def losses_of(networks: nn.Module, batch: Batch, spacing: float, generator: torch.Generator) -> Errors:
    """Flow matching's weighted squared error (Lipman et al., 2022): the network answers noise less picture at a point between them.

    And those of the tokens' places and of where heads look.
    """
    target = batch.target
    times = times_of(len(target), spacing, generator, target.device)
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    mixed = times[:, None, None, None]
    noisy = mixed * noise + (1 - mixed) * target
    answer, told, looks = networks(noisy, times, batch, spacing)
    painted = ((answer.float() - (noise - target)) ** 2 * batch.weights).mean()
    placed = ((told.float() - places.features_of(batch.places)) ** 2).mean()
    if not looks:
        return Errors(painted, placed, None)
    tokens = looks[0].shape[1]
    wanted = places.matches(batch.places[:, :tokens], batch.places[:, tokens:])
    return Errors(painted, placed, torch.stack([places.looking_error(one, wanted) for one in looks]).mean())


class Training:
    """Everything that a step needs and a state file holds."""

    def __init__(
        self, folder: Path, stages: list[Stage], rate: float, seed: int, capacity: int, make: bool, shard_steps: int = STEPS_PER_SHARD
    ) -> None:
        self.folder = folder
        self.stages = stages
        self.rate = rate
        self.seed = seed
        self.capacity = capacity
        self.make = make
        self.shard_steps = shard_steps
        self.device = device_of()
        self.vocabulary = Vocabulary.load(folder)
        torch.manual_seed(seed)
        self.networks = Networks(self.vocabulary).to(self.device)
        self.average = {name: value.clone() for name, value in self.networks.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.networks.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.step = 0
        self.warm_from = 0
        self.begins: dict[int, int] = {}
        self.spent = 0.0
        self.samples = 0
        self.placed: Tensor | None = None
        self.matched: Tensor | None = None
        self.bank: Bank | None = None
        self.maker: Iterator[int] | None = None

    def stage(self) -> Stage:
        """Gives the stage of the step that comes."""
        return next((stage for stage in self.stages if not stage.ended(self.step, self.spent)), self.stages[-1])

    def records(self, stage: Stage) -> Bank:
        """Gives the stage's records, as many as belong to this step."""
        if self.bank is None or self.bank.size != stage.size:
            self.bank = Bank(self.folder, stage.size, self.capacity, self.device)
            self.maker = shards.make(self.folder, stage.size, self.capacity, self.seed) if self.make else None
        begin = self.begins.setdefault(stage.size, self.step)
        due = FIRST_SHARDS + (self.step - begin) // stage.steps_per_shard(self.shard_steps) if self.make else self.bank.most
        while self.maker is not None and self.bank.shards < min(due, self.bank.most):
            self.bank.fill(next(self.maker))
        if self.maker is None and (self.bank.shards < FIRST_SHARDS or self.step % STEPS_PER_SHARD == 0):
            self.bank.fill(due)
        if not self.bank.about:
            command = f"python -m demo.tiny_edit.shards --size {stage.size}"
            raise FileNotFoundError(f"no records of {stage.size} pixels in {self.folder}: run `{command}`")
        return self.bank

    def advance(self, rate: float) -> tuple[int, Tensor]:
        """Makes one step; the number of references and the loss, which is not waited for."""
        stage = self.stage()
        bank = self.records(stage)
        rng = np.random.default_rng([self.seed, self.step])
        kind = int(rng.choice(3, p=tasks.KINDS))
        batch = bank.batch(rng, kind, stage.samples(kind), self.vocabulary)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._learned(batch, stage.spacing, generator)
        torch.nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.samples += len(batch.target)
        if self.step % AVERAGE_EVERY == 0:
            self._update_average()
        return kind, loss.detach()

    def _learned(self, batch: Batch, spacing: float, generator: torch.Generator) -> Tensor:
        """Gives the picture's loss of a batch and leaves the gradients of it, of the places' and of the matches' in the networks."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=learns_in_bfloat16(self.device)):
            errors = losses_of(self.networks, batch, spacing, generator)
        together = errors.painted + PLACES_COUNT * errors.placed
        self.placed = errors.placed.detach()
        if errors.matched is not None:
            together = together + MATCHES_COUNT * errors.matched
            self.matched = errors.matched.detach()
        self.optimizer.zero_grad(set_to_none=True)
        together.backward()
        return errors.painted

    def compile(self, minutes: float) -> None:
        """Compiles the blocks, which are nearly all of the time, for every kind of step, the largest pictures first.

        After so many minutes no further kind is begun; those that are left, and blocks that cannot be compiled, run as they are. The
        weights, and the numbers that steps draw, stay as they were.
        """
        ends = time.monotonic() + 60 * minutes
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.config.recompile_limit = 64
        for block in (*self.networks.flux.double_blocks, *self.networks.flux.single_blocks):
            block.compile(dynamic=False)
        kinds = [(stage, kind) for stage in sorted(self.stages, key=lambda stage: -stage.size) for kind in range(len(tasks.KINDS))]
        for stage, kind in kinds:
            if time.monotonic() > ends:
                break
            count, cells = stage.samples(kind), stage.size // 8
            nothing = torch.zeros(count, CHANNELS, cells, cells, device=self.device)
            words = torch.full((count, TEXT_LENGTH), self.networks.text.end, device=self.device)
            silent = torch.zeros(count, dtype=torch.bool, device=self.device)
            nowhere = torch.full((count, (1 + kind) * (cells // 2) ** 2, 3), places.NOTHING, dtype=torch.int8, device=self.device)
            batch = Batch(nothing, [nothing] * kind, torch.ones_like(nothing[:, :1]), words, silent, nowhere)
            self._learned(batch, stage.spacing, torch.Generator(self.device))
        torch.compiler.set_stance("eager_on_recompile")
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Moves the averaged weights: over the last tenth of a short run, over about 4,000 steps of a long one."""
        part = max(AVERAGE_EVERY / 4000, AVERAGE_EVERY * 10 / (self.step + 10 * AVERAGE_EVERY))
        for name, value in self.networks.state_dict().items():
            self.average[name].lerp_(value, min(1.0, part))

    def save(self) -> None:
        """Writes the whole state."""
        state: dict[str, Any] = {
            "networks": self.networks.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "warm_from": self.warm_from,
            "begins": self.begins,
            "spent": self.spent,
            "samples": self.samples,
        }
        folders.save(state, self.folder / STATE)

    def resume(self) -> bool:
        """Takes the folder's state, if there is one. A light state (`pack join`) has no optimizer's."""
        file = self.folder / STATE
        if not file.is_file():
            return False
        state = torch.load(file, weights_only=True, map_location=self.device)
        self.networks.load_state_dict(state["networks"])
        self.average = {name: value.float().clone() for name, value in state["average"].items()}
        self.step = state["step"]
        self.warm_from = state.get("warm_from", 0) if "optimizer" in state else self.step
        self.begins = state.get("begins", {})
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.spent = state["spent"]
        self.samples = state["samples"]
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders.arguments(parser)
    parser.add_argument("--minutes", type=float, default=1200, help="of training in all, those of earlier runs included")
    parser.add_argument("--steps", type=int, help="stop at this step")
    parser.add_argument("--stages", default="128:24:60000,256:8", help="SIZE:BATCH:UNTIL of each stage")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--cool", type=float, default=0, help="the learning rate falls over the last so many minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=int, default=4096, help="records of each size")
    parser.add_argument("--shard-steps", type=int, default=STEPS_PER_SHARD, help="steps at 128 pixels between two shards of records")
    parser.add_argument("--no-make", action="store_true", help="only read records: another process makes them")
    parser.add_argument("--wait", action="store_true", help="with --no-make: wait for the first records")
    parser.add_argument("--compile", type=float, default=0, help="compile the blocks for about so many minutes: steps are then faster")
    parser.add_argument("--save-minutes", type=float, default=5, help="between two savings of the state")
    parser.add_argument("--profile", type=int, default=0, help="write into the log what so many first steps spend their time with")
    options = parser.parse_args()
    folders.begin(options)
    log = Log(options.folder / "training.log")
    begun = time.monotonic()
    make = not options.no_make
    training = Training(options.folder, stages_of(options.stages), options.rate, options.seed, options.records, make, options.shard_steps)
    resumed = training.resume()
    log(
        f"{'resumed' if resumed else 'begun'} at step {training.step} on {training.device} with {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, stages {options.stages}, rate {options.rate}"
    )
    if options.compile:
        training.compile(options.compile)
        log(f"compiled after {(time.monotonic() - begun) / 60:.1f} minutes")
    while options.wait and not shards.file_of(options.folder, training.stage().size, 0).is_file():
        time.sleep(0.2)
    if options.profile:
        log(profiled(training, options.profile, options.minutes, options.cool))
    training.spent += (time.monotonic() - begun) / 60
    run(training, options.minutes, options.steps, options.cool, log, options.save_minutes)


if __name__ == "__main__":
    main()
