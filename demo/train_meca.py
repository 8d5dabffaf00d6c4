"""Trains the tiny model's MECA adapter on renders, by the pack's own training (`training/meca/loss.py`).

python -m demo.train_meca --steps 2000

Regions are random, or the box around a scene's objects, or all but that box. Resumes from `--work`; leaves tiny-meca.safetensors
there, to be copied over the one in demo/ if it is better. `--mode query` trains one for the paper's equation 6 to the letter,
`--visibility paper` one whose hidden patches are those of equation 1, each in a file of its own, for the table.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from demo.pack import load_pack

from . import photos, scenes, tiny_model
from .painter import Painter
from .trainer import Log

if TYPE_CHECKING:
    from maskprompt.attention.meca import Mode
    from maskprompt.models.clip_vision.patch_visibility import Visibility

FILE = Path(__file__).resolve().parent / "tiny-meca.safetensors"
TOKENS = 8
RATE = 1e-3
"""The paper's 1e-4 is for layers ten times as wide; Adam's best rate goes with one over the width."""


@dataclass(frozen=True)
class Renders:
    """Scenes with captions as the training's pictures, rendered when they are asked for (`training.data.captions.Pictures`).

    Every other one has a mask of its own: the box around its objects.
    """

    count: int
    seed: int

    @functools.cached_property
    def scenes(self) -> list[scenes.Scene]:
        rng = np.random.default_rng([self.seed, 7])
        known = [photos.load(name) for name in photos.TRAINING]
        made = []
        for _ in range(self.count):
            photo = photos.crop(known[rng.integers(len(known))], rng) if rng.random() < 0.25 else None
            made.append(scenes.random_scene(rng, photo, two=0.2))
        return made

    @property
    def captions(self) -> Sequence[str]:
        return [scene.caption() for scene in self.scenes]

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [(128, 128)] * self.count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int, /) -> Any:
        from maskprompt.training.data.captions import Picture

        rendered = scenes.render(self.scenes[number])
        mask = None if number % 2 else boxed(rendered)
        return Picture(torch.from_numpy(rendered.image.copy()).float() / 255, self.captions[number], mask)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.count} {self.seed}".encode()).hexdigest()[:16]


def boxed(rendered: scenes.Rendered, margin: int = 4) -> Tensor:
    """1 in the boxes of all objects [128, 128], `margin` pixels larger on every side."""
    mask = torch.zeros(rendered.image.shape[:2])
    for x, y, width, height in rendered.boxes:
        mask[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin] = 1
    return mask


def file_of(mode: Mode, visibility: Visibility = "hide") -> str:
    """The name of the file of an adapter that learned so; that of `region` and `hide` is the demo's."""
    parts = [FILE.stem, *([mode] if mode != "region" else []), *([visibility] if visibility != "hide" else [])]
    return f"{'-'.join(parts)}.safetensors"


def train(
    work: Path, steps: int, seed: int, count: int, batch: int, rate: float, mode: Mode = "region", visibility: Visibility = "hide"
) -> None:
    """Train an adapter, or go on. All of the samples are encoded once and stay in memory: `count` of them, 200 kB each."""
    import comfy.clip_vision
    from maskprompt.models.ip_adapter import file as files
    from maskprompt.training.engine.job import run
    from maskprompt.training.meca.job import prepare
    from maskprompt.training.meca.options import Options

    from . import vision

    work.mkdir(parents=True, exist_ok=True)
    name = file_of(mode, visibility)
    log = Log(work / Path(name).with_suffix(".log"))
    painter = Painter()
    clip_vision: Any = comfy.clip_vision.load(str(vision.FILE))
    options = Options(
        steps=steps, rate=rate, batch=batch, size=128, tokens=TOKENS, mode=mode, masked=0.6, blank=0.1, seed=seed, average=0.998,
        checkpointing=False, visibility=visibility,
    )  # fmt: skip
    rounds = max(1, count // (options.steps_per_chunk * batch))
    job = prepare(
        painter.model, painter.clip, painter.vae, clip_vision, Renders(count, seed), options, base="the tiny model of demo/", rounds=rounds
    )
    began = time.monotonic()

    def told(progress: Any) -> None:
        if progress.step % 50 == 0 or progress.step == steps:
            minutes = (time.monotonic() - began) / 60
            log(f"meca: step {progress.step} of {steps}, loss {np.mean(progress.losses[-50:]):.4f}, {minutes:.1f} min of this run")

    done, learned = run(job, job.states(work / Path(name).with_suffix(".state.pt")), told)
    files.save(learned.adapter.patcher.model, learned.adapter.about, str(work / name))
    log(f"meca: {done.step} steps done, loss {np.mean(done.losses[-200:]):.4f}, saved {name}")


def main() -> None:
    load_pack()
    from maskprompt.attention.meca import Mode
    from maskprompt.models.clip_vision.patch_visibility import Visibility

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--count", type=int, default=3072, help="samples, each encoded once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--mode", choices=get_args(Mode), default="region", help="how text and image share a picture with a region")
    parser.add_argument("--visibility", choices=get_args(Visibility), default="hide", help="how hidden patches are kept from being seen")
    parser.add_argument("--work", type=Path, default=tiny_model.ROOT / "demo" / "work")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    train(options.work, options.steps, options.seed, options.count, options.batch, options.rate, options.mode, options.visibility)


if __name__ == "__main__":
    main()
