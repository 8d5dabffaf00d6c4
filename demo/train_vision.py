"""Trains the tiny vision encoder on renders: to name what every visible patch shows, and what the visible part shows as a whole.

python -m demo.train_vision --minutes 10

Half of the batches have patches hidden from it, so that `hide` is nothing new to it. Saves every minute into `--work` and resumes
from there; leaves tiny-clip-vision.safetensors there, to be copied over the one in demo/ if it is better.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import judge, photos, scenes, tiny_model
from .train_judge import Examples, changed, examples
from .trainer import Log, cosine, device_of

tiny_model.comfyui_on_path()

from . import vision  # noqa: E402  (needs ComfyUI on the path)

STATE = "vision.pt"
CELLS = judge.SIZE // 2 // vision.GRID
"""Cells of the judge's labels along a patch."""


@dataclass(frozen=True)
class Labels:
    """What each patch shows [N, 16, 16]: its object's shape and colour (0: none), and its object's number; the grounds [N]."""

    shapes: Tensor
    colours: Tensor
    objects: Tensor
    grounds: Tensor


def labels_of(data: Examples) -> Labels:
    """By what most of a patch is."""

    def most(cells: Tensor, kinds: int) -> Tensor:
        parts = F.one_hot(cells.long(), kinds).unflatten(1, (vision.GRID, CELLS)).unflatten(3, (vision.GRID, CELLS))
        return parts.sum((2, 4)).argmax(-1)

    named = torch.zeros(len(data.shapes), 1 + max(len(row) for row in data.shapes), dtype=torch.long)
    for row, names in enumerate(data.shapes):
        named[row, 1 : 1 + len(names)] = torch.tensor(names, dtype=torch.long) + 1
    objects = most(data.objects, named.shape[1])
    return Labels(named.gather(1, objects.flatten(1)).view_as(objects), most(data.colours, len(judge.COLOUR_NAMES)), objects, data.grounds)


def random_visible(rng: np.random.Generator, count: int) -> Tensor:
    """The numbers of the patches that `count` pictures show [count, k]: all of them, or in half of the batches a box or what is around it.

    Pictures of a batch show equally many: the numbers are cut to the fewest, or for less than 16 all are shown.
    """
    every = torch.arange(vision.GRID**2).expand(count, -1)
    if rng.random() < 0.5:
        return every
    kept: list[np.ndarray] = []
    for _ in range(count):
        low = rng.integers(0, vision.GRID - 3, 2)
        high = [int(rng.integers(start + 3, vision.GRID + 1)) for start in low]
        inside = np.zeros((vision.GRID, vision.GRID), bool)
        inside[low[0] : high[0], low[1] : high[1]] = True
        kept.append(np.nonzero((inside if rng.random() < 0.4 else ~inside).flatten())[0])
    fewest = min(len(numbers) for numbers in kept)
    if fewest < 16:
        return every
    return torch.from_numpy(np.stack([np.sort(rng.choice(numbers, fewest, replace=False)) for numbers in kept]))


class Heads(nn.Module):
    """What reads the encoder's states in training only: each patch's shape, colour, ground and mean colour; the whole's names."""

    SIZES = (len(scenes.SHAPES) + 1, len(judge.COLOUR_NAMES), len(judge.GROUND_NAMES), 3)
    NAMES = (len(scenes.SHAPES), len(scenes.COLOURS), len(judge.GROUND_NAMES))

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(vision.WIDTH, sum(self.SIZES))
        self.whole = nn.Linear(int(vision.VISION_CONFIG["projection_dim"]), sum(self.NAMES))


def losses(
    model: vision.Vision, heads: Heads, pictures: Tensor, labels: Labels, rows: Tensor, visible: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of pictures [B, 3, 128, 128] that show `visible` [B, k], and which part of each kind of answers is right."""
    states, pooled = model(pictures, visible)
    patches = heads.patches(states[:, 1:].float()).split(Heads.SIZES, -1)

    def seen(grid: Tensor) -> Tensor:
        return grid[rows].flatten(1).gather(1, visible)

    shapes = seen(labels.shapes)
    colours = seen(labels.colours)
    grounds = labels.grounds[rows]
    where = shapes > 0
    mean = F.avg_pool2d(pictures, vision.PATCH).flatten(2).movedim(1, 2).gather(1, visible[..., None].expand(-1, -1, 3))
    loss = (
        F.cross_entropy(patches[0].flatten(0, 1), shapes.flatten())
        + F.cross_entropy(patches[1].flatten(0, 1), colours.flatten())
        + F.cross_entropy(patches[2].flatten(0, 1), grounds[:, None].expand_as(shapes).flatten())
        + 4 * F.mse_loss(patches[3], mean)
    )
    wanted = [F.one_hot(kinds, size).amax(1)[:, 1:].float() for kinds, size in ((shapes, Heads.SIZES[0]), (colours, Heads.SIZES[1]))]
    # An object of which a few patches are seen is nothing that the whole could be asked for.
    whole = heads.whole(pooled.float()).split(Heads.NAMES, -1)
    loss = loss + sum(F.binary_cross_entropy_with_logits(given, want) for given, want in zip(whole, wanted, strict=False))
    loss = loss + F.cross_entropy(whole[2], grounds)
    right = {
        "patch shape": (patches[0].argmax(-1) == shapes)[where],
        "patch colour": (patches[1].argmax(-1) == colours)[where],
        "patch ground": patches[2].argmax(-1) == grounds[:, None],
        "ground": whole[2].argmax(-1) == grounds,
    }
    return loss, {name: float(answers.float().mean()) for name, answers in right.items()}


@torch.no_grad()
def accuracy(model: vision.Vision, heads: Heads, seed: int = 4_711, count: int = 400) -> dict[str, float]:
    """On fresh renders, half of the batches with hidden patches."""
    rng = np.random.default_rng(seed)
    data = examples(rng, count, photos.HELD_OUT)
    labels = labels_of(data)
    found = []
    for start in range(0, count, 20):
        rows = torch.arange(start, start + 20)
        found.append(losses(model, heads, data.images[rows].float() / 255, labels, rows, random_visible(rng, 20))[1])
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def train(work: Path, minutes: float, seed: int = 0, count: int = 6000, batch: int = 32, rate: float = 1e-3) -> None:
    work.mkdir(parents=True, exist_ok=True)
    log = Log(work / "vision.log")
    device = device_of()
    torch.manual_seed(seed)
    model = vision.Vision().to(device)
    heads = Heads().to(device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.02)
    step = 0
    spent = 0.0
    if (work / STATE).is_file():
        kept: dict[str, Any] = torch.load(work / STATE, weights_only=True)
        model.load_state_dict(kept["model"])
        heads.load_state_dict(kept["heads"])
        optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]
        spent = kept["spent"]
    data = examples(np.random.default_rng(seed + 5), count, photos.TRAINING)
    labels = labels_of(data)
    log(f"vision: {count} scenes rendered, step {step}, {spent / 60:.1f} of {minutes:g} minutes spent")
    began = time.monotonic() - spent
    written = spent

    def keep() -> None:
        states = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**states, "step": step, "spent": spent}, work / f"{STATE}.part")
        (work / f"{STATE}.part").replace(work / STATE)

    while spent < minutes * 60:
        rng = np.random.default_rng([seed, step])
        rows = torch.from_numpy(rng.integers(0, count, batch))
        pictures = changed(data.images[rows].float() / 255).to(device)
        for group in optimizer.param_groups:
            group["lr"] = cosine(spent / (minutes * 60), rate, rate / 50)
        with torch.autocast(device.type, torch.bfloat16):
            loss, right = losses(model, heads, pictures, labels, rows, random_visible(rng, batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step = step + 1
        spent = time.monotonic() - began
        if step % 100 == 0:
            log(
                f"vision: step {step}, {spent / 60:.1f} min, loss {loss.item():.3f}, " + ", ".join(f"{k} {v:.3f}" for k, v in right.items())
            )
        if spent - written > 60:
            written = spent
            keep()
    keep()
    found = accuracy(model, heads)
    log(f"vision: step {step}, {spent / 60:.1f} min; on fresh renders " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
    about = {"step": str(step), "minutes": f"{spent / 60:.1f}", "seed": str(seed)}
    vision.save(model, work / vision.FILE.name, {**about, **{name: f"{part:.3f}" for name, part in found.items()}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=tiny_model.ROOT / "demo" / "work")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    train(options.work, options.minutes, options.seed)


if __name__ == "__main__":
    main()
