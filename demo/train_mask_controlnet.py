"""Trains the tiny model's Mask-ControlNet on renders, by the pack's own training (`training/mask_controlnet/loss.py`).

    python -m demo.train_mask_controlnet

A reference shows one to three objects, plain or patterned, on a ground or a photograph; what is painted is one of them, in its place, on
another ground. `--bare` trains without the mask prompt (the paper's ablation); `--pairs none` as the paper does, with the painted picture
as its own reference, `--pairs grounds` with its object on the ground of another one. Each has a file of its own. Resumes from `--work`;
leaves the file there, to be copied over the one in demo/ if it is better.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from demo.pack import load_pack

from . import fp8, photos, scenes, subjects, tiny_model
from .autoencoder import NarrowAutoencoder, narrowed
from .painter import Painter
from .trainer import Log

if TYPE_CHECKING:
    from maskprompt.training.mask_controlnet.options import Pairs as Kind

FILE = Path(__file__).resolve().parent / "tiny-mask-controlnet.safetensors"
BARE = "tiny-mask-controlnet-bare.safetensors"
RATE = 1e-3
"""The usual rate for ControlNets is for layers ten times as wide, which are trained far longer."""
PATTERNED = 0.6
PHOTOGRAPHS = 0.25
WORDED = 0.5
"""How often an object has two colours, a reference a photograph behind it, and a plain object's colour is said."""


@dataclass(frozen=True)
class Pair:
    """What is shown, and which of its objects is painted where; `caption` says it, patterns left out, which the tiny model cannot read."""

    reference: scenes.Scene
    chosen: int
    painted: scenes.Scene
    caption: str


@dataclass(frozen=True)
class Pairs:
    """Pairs of renders as the training's examples (`training.data.objects.Examples`), drawn when they are asked for."""

    count: int
    seed: int

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        rng = np.random.default_rng([self.seed, 11])
        known = [photos.load(name) for name in photos.TRAINING]
        return [random_pair(rng, known) for _ in range(self.count)]

    @property
    def captions(self) -> Sequence[str]:
        return [pair.caption for pair in self.pairs]

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [(subjects.SIZE, subjects.SIZE)] * self.count

    @property
    def have_references(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int, /) -> Any:
        pair = self.pairs[number]
        shown = scenes.render(pair.reference)
        painted = scenes.render(pair.painted)
        image, reference = (torch.from_numpy(one.image.copy()).float() / 255 for one in (painted, shown))
        from maskprompt.training.data.objects import Example

        return Example(image, torch.from_numpy(shown.masks[pair.chosen : pair.chosen + 1]), pair.caption, reference)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.count} {self.seed}".encode()).hexdigest()[:16]


class NarrowEncoder:
    """The tiny VAE's encoder without the zeros that fill its layers up to TAESD's width: the same latents, several times as fast."""

    def __init__(self, autoencoder: NarrowAutoencoder, scale: float) -> None:
        self.network = autoencoder.requires_grad_(False)
        self.scale = scale

    def to(self, device: torch.device) -> NarrowEncoder:
        self.network.to(device)
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.network.encode(pixels) / self.scale


def narrow_encoder() -> NarrowEncoder:
    """Of the tiny model's checkpoint."""
    _, _, state = tiny_model.load_checkpoint(tiny_model.CHECKPOINT)
    with torch.inference_mode(False):
        return NarrowEncoder(narrowed(state), state["vae_scale"].item())


def random_pair(rng: np.random.Generator, known: Sequence[np.ndarray]) -> Pair:
    """A reference and what is painted of it. No subject of `demo/subjects.py`, and no ground of a held-out triple, is ever painted."""
    photo = photos.crop(known[int(rng.integers(len(known)))], rng) if rng.random() < PHOTOGRAPHS else None
    ground = scenes.PHOTO if photo is not None else scenes.GROUNDS[rng.integers(len(scenes.GROUNDS))]
    things = random_things(rng)
    chosen = int(rng.integers(len(things)))
    thing = things[chosen]
    others = [one for one in scenes.GROUNDS if one != ground and not scenes.held_out(thing.shape, thing.paint.colour, one)]
    painted = scenes.Scene((thing,), others[rng.integers(len(others))], int(rng.integers(2**31)))
    words = (
        thing.words
        if thing.paint.pattern is None and rng.random() < WORDED
        else f"{'an' if thing.shape[0] in 'aeiou' else 'a'} {thing.shape}"
    )
    return Pair(scenes.Scene(things, ground, int(rng.integers(2**31)), photo), chosen, painted, f"{words} on {painted.ground}")


def random_things(rng: np.random.Generator) -> tuple[scenes.Thing, ...]:
    """One to three objects that do not hide each other."""
    count = int(rng.choice(3, p=(0.5, 0.35, 0.15))) + 1
    middles = {1: ((0.5, 0.5),), 2: ((0.26, 0.5), (0.74, 0.5)), 3: ((0.26, 0.28), (0.74, 0.3), (0.5, 0.74))}[count]
    low, high, away = {1: (0.38, 0.7, 0.16), 2: (0.32, 0.48, 0.1), 3: (0.3, 0.42, 0.04)}[count]
    things = []
    for middle in middles:
        size = float(rng.uniform(low, high))
        room = [min(away, one - size / 2, 1 - one - size / 2) for one in middle] if count == 1 else [0.02, away]
        x, y = (float(one + rng.uniform(-1, 1) * max(0.0, by)) for one, by in zip(middle, room, strict=True))
        things.append(
            scenes.Thing(scenes.SHAPES[rng.integers(len(scenes.SHAPES))], random_paint(rng), x, y, size, float(rng.uniform(-12, 12)))
        )
    if any(thing.shape == one.shape and thing.paint == one.paint for thing in things for one in subjects.SUBJECTS):
        return random_things(rng)
    return tuple(things)


def random_paint(rng: np.random.Generator) -> scenes.Paint:
    one, other = (str(name) for name in rng.choice(list(scenes.COLOURS), 2, replace=False))
    if rng.random() >= PATTERNED:
        return scenes.Paint(one)
    return scenes.Paint(one, other, ("halves", "stripes")[rng.integers(2)])


def file_of(pairs: Kind) -> str:
    """The name of the file of a network that learned from such pairs; that of `given` is the demo's."""
    return FILE.name if pairs == "given" else f"{FILE.stem}-{pairs}.safetensors"


def train(options: argparse.Namespace) -> Path:
    """Trains, or goes on; gives the file."""
    from maskprompt.models.mask_controlnet import file as files
    from maskprompt.training.engine.job import run
    from maskprompt.training.mask_controlnet.job import prepare
    from maskprompt.training.mask_controlnet.options import Options

    work = options.work
    steps = options.steps
    work.mkdir(parents=True, exist_ok=True)
    name = BARE if options.bare else file_of(options.pairs)
    log = Log(work / Path(name).with_suffix(".log"))
    painter = Painter()
    how = Options(
        steps=steps, rate=options.rate, batch=options.batch, size=subjects.SIZE, masked=not options.bare, text_dropout=0.1,
        seed=options.seed, average=0.998, checkpointing=False, pairs=options.pairs,
    )  # fmt: skip
    pairs = Pairs(options.count, options.seed)
    job = prepare(painter.model, painter.clip, painter.vae, pairs, how, encoder=narrow_encoder())
    began = time.monotonic()

    def told(progress: Any) -> None:
        if progress.step % 50 == 0 or progress.step == steps:
            minutes = (time.monotonic() - began) / 60
            log(f"step {progress.step} of {steps}, loss {np.mean(progress.losses[-200:]):.4f}, {minutes:.1f} min of this run")

    done, learned = run(job, job.states(work / Path(name).with_suffix(".state.pt"), every=200), told)
    about = {"steps": str(done.step), "seed": str(options.seed), "trained_on": tiny_model.CHECKPOINT.name}
    content = learned.content
    files.save(replace(content, control=fp8.in_fp8(content.control)), str(work / name), about)
    log(f"{done.step} steps done, loss {np.mean(done.losses[-200:]):.4f}, saved {name}")
    return work / name


def main() -> None:
    load_pack()
    from maskprompt.training.mask_controlnet.options import Pairs as Kind

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--count", type=int, default=20_000, help="pairs, drawn anew each time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--bare", action="store_true", help="without the mask prompt")
    parser.add_argument("--pairs", choices=get_args(Kind), default="given", help="what the reference shows of the painted picture")
    parser.add_argument("--work", type=Path, default=tiny_model.ROOT / "demo" / "work")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
