"""Trains the judge of tiny-edit's world on fresh renders, bent, blurred and off colour. Nothing that tiny-edit paints is shown to it.

    python -m demo.tiny_edit.train_judge --minutes 43

Things that tiny-edit never sees (`things.HELD_OUT`) are not shown to the judge either: it has to know them by their embedding. The
photographs that tiny-edit never sees are: a judge need not find its way in new places. Writes `tiny-edit-judge.safetensors` into the
training folder at the end; copied to `demo`, it is the judge of the tables. `--start FILE` goes on from such a file: the one in `demo`
was trained in two turns (`demo/TRAINING.md`).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import fp8
from ..trainer import Log, cosine
from . import folders, scenes, things, warps, world
from .eye import EMBEDDING, Eye, at, middle_of, read, scaled
from .judge import FILE

MOST = 3
SIDE = 128
"""Pixels of a side of the renders."""
SMALLEST = 40
"""A thing of fewer pixels is hidden."""
BOXES_COUNT = 16.0
"""How much an error of boxes, in parts of the picture, counts beside one of names."""
SIZES: tuple[tuple[float, float], ...] = ((0.24, 0.95), (0.2, 0.5), (0.18, 0.36))
"""From how small to how large one thing, two and three are: halves of pictures, and boxes cut out of them, are judged too."""


@dataclass(frozen=True)
class Examples:
    """Renders uint8 [N, 3, 128, 128], whose each pixel is, uint8 [N, 128, 128] (0: the ground's), and the things' numbers [N, 3]."""

    pictures: Tensor
    owners: Tensor
    things: Tensor


def drawn(place: world.World, count: int, seed: int) -> Examples:
    """Draws renders of none to three things on the grounds of training."""
    pictures = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    owners = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    numbers = torch.full((count, MOST), -1)
    known = [number for number, code in enumerate(things.TRAINING) if code in place.cut_outs]
    named = [number for number in known if number < len(things.NAMED)]
    grounds = [*place.grounds(), *place.grounds(held_out=True)]
    for row in range(count):
        rng = np.random.default_rng([seed, row])
        ground = scenes.random_ground(rng, grounds)
        many = int(rng.choice(MOST + 1, p=(0.05, 0.45, 0.4, 0.1)))
        pools = [named if rng.random() < 0.5 else known for _ in range(many)]
        chosen = [pool[rng.integers(len(pool))] for pool in pools]
        codes = [things.TRAINING[number] for number in chosen]
        layout = scenes.random_layout(rng, codes, scenes.horizon_of(place, ground), SIZES[many - 1]) if many else ()
        rendered = scenes.render(place, scenes.Scene(layout, ground), SIDE)
        pictures[row] = torch.from_numpy(rendered.image).permute(2, 0, 1)
        for index, thing in enumerate(layout):
            owners[row][torch.from_numpy(rendered.masks[index] > 0.5)] = index + 1
            numbers[row, index] = things.TRAINING.index(thing.code)
    return Examples(pictures, owners, numbers)


def shown(examples: Examples, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Gives examples as they are shown: pictures [B, 3, 64, 64], boxes [B, 3, 4], and things [B, 3] (-1: none)."""
    pictures = examples.pictures[rows].float() / 255
    strength = torch.rand(len(rows), generator=generator)
    pictures, owners = warps.bent(pictures, examples.owners[rows], strength, generator)
    pictures = warps.blurred(pictures, 3 * float(torch.rand((), generator=generator)) ** 2)
    pictures = warps.coloured(pictures, torch.rand(len(rows), generator=generator), generator)
    boxes, pixels = warps.boxes_of(owners, MOST)
    numbers = torch.where(pixels >= SMALLEST, examples.things[rows], -1)
    small = scaled(pictures)
    noise = torch.randn(small.shape, generator=generator) * (0.06 * torch.rand(len(rows), 1, 1, 1, generator=generator))
    return (small + noise).clamp(0, 1), boxes, numbers


class Learner(nn.Module):
    """The network, and a direction of the embedding for each thing of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = Eye()
        self.directions = nn.Parameter(torch.randn(len(things.TRAINING), EMBEDDING))
        self.scale = nn.Parameter(torch.tensor(16.0))

    @torch.no_grad()
    def point(self, examples: Examples, batch: int = 64) -> None:
        """Turns each direction to where the network puts the renders of its thing: what a training begins with that goes on."""
        sums = torch.zeros_like(self.directions)
        for begin in range(0, len(examples.pictures), batch):
            part = slice(begin, begin + batch)
            seen = self.eye(scaled(examples.pictures[part].float() / 255))
            boxes, _ = warps.boxes_of(examples.owners[part], MOST)
            for index in range(MOST):
                numbers = examples.things[part, index]
                embedded = at(seen.embedded, *middle_of(boxes[:, index]))
                sums.index_add_(0, numbers[numbers >= 0], embedded[numbers >= 0])
        shown = sums.norm(dim=1) > 0
        self.directions[shown] = F.normalize(sums[shown], dim=1)

    def loss(self, pictures: Tensor, boxes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The error of middles, boxes and embeddings of a batch; and the part of the things that are named rightly."""
        seen = self.eye(pictures)
        wanted = torch.zeros_like(seen.there)
        parts: list[Tensor] = []
        right: list[Tensor] = []
        for index in range(numbers.shape[1]):
            rows = torch.nonzero(numbers[:, index] >= 0)[:, 0]
            row, column = middle_of(boxes[rows, index])
            wanted[rows, row, column] = 1
            logits = self.scale * at(seen.embedded[rows], row, column) @ F.normalize(self.directions, dim=1).T
            parts.append(F.cross_entropy(logits, numbers[rows, index], reduction="sum", label_smoothing=0.05))
            parts.append(BOXES_COUNT * F.l1_loss(at(seen.boxes[rows], row, column), boxes[rows, index], reduction="sum"))
            right.append(logits.argmax(1) == numbers[rows, index])
        near = F.max_pool2d(wanted[:, None], 3, 1, 1)[:, 0]
        error = F.binary_cross_entropy_with_logits(seen.there, wanted, reduction="none")
        counted = torch.where(wanted > 0, 1.0, torch.where(near > 0, 0.05, 0.3))
        count = wanted.sum().clamp_min(1)
        return (torch.stack(parts).sum() + 2 * (error * counted).sum()) / count, torch.cat(right).float().mean()


def learn(
    learner: Learner, examples: Examples, batch: int, generator: torch.Generator, optimizer: torch.optim.Optimizer
) -> tuple[float, float]:
    """Makes one step on a random batch; its loss, and the part of the things that were named rightly."""
    rows = torch.randint(len(examples.pictures), (batch,), generator=generator)
    pictures, boxes, numbers = shown(examples, rows, generator)
    loss, right = learner.loss(pictures.contiguous(memory_format=torch.channels_last), boxes, numbers)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimizer.step()
    return loss.item(), right.item()


def write(learner: Learner, file: Path, **about: str) -> None:
    """Writes the network as `judge.Judge` reads it: in half precision, its large kernels in fp8."""
    from safetensors.torch import save_file

    state = fp8.in_fp8({name: value.half().contiguous() for name, value in learner.eye.state_dict().items()})
    save_file(state, file, metadata={"format": "maskprompt tiny edit judge 1", **about})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders.arguments(parser)
    parser.add_argument("--minutes", type=float, default=43, help="of training, after the renders are drawn")
    parser.add_argument("--examples", type=int, default=12000, help="renders")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="a file of this training to go on from")
    parser.add_argument("--target", type=Path, help="the file that is written (default: in the training folder)")
    parser.add_argument("--again", action="store_true", help="train one anew although there is one")
    options = parser.parse_args()
    folders.begin(options)
    target = options.target or options.folder / FILE.name
    if target.is_file() and not (options.again or options.start):
        print(f"{target} is there already: it stays (--again trains one anew, --start FILE goes on from one)")
        return
    log = Log(options.folder / "judge.log")
    begun = time.monotonic()
    examples = drawn(world.load(folders.world(options.folder)), options.examples, options.seed)
    log(f"{options.examples} renders after {(time.monotonic() - begun) / 60:.1f} minutes; {torch.get_num_threads()} threads")
    torch.manual_seed(options.seed)
    learner = Learner().to(memory_format=torch.channels_last)
    if options.start:
        learner.eye.load_state_dict(read(options.start).state_dict())
        learner.point(examples)
        log(f"goes on from {options.start.name}")
    optimizer = torch.optim.AdamW(learner.parameters(), options.rate, weight_decay=0.02)
    generator = torch.Generator().manual_seed(options.seed)
    begun = time.monotonic()
    step = 0
    held: list[tuple[float, float]] = []
    while (spent := (time.monotonic() - begun) / 60) < options.minutes:
        for group in optimizer.param_groups:
            group["lr"] = cosine(spent / options.minutes, options.rate, options.rate / 200)
        held.append(learn(learner, examples, options.batch, generator, optimizer))
        step += 1
        if step % 100 == 0:
            means = np.asarray(held).mean(0)
            log(f"step {step} minute {spent:.1f} loss {means[0]:.3f} named {means[1]:.3f}")
            held.clear()
    write(learner, target, steps=str(step), seed=str(options.seed), minutes=f"{options.minutes:g}")
    log(f"stopped at step {step}; {target.name} has {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
