"""Trains the judge on renders, half of them passed through the tiny model's autoencoder.

python -m demo.train_judge --minutes 8
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import judge, photos, scenes
from .autoencoder import NarrowAutoencoder
from .trainer import Log, cosine, device_of


def labels_of(scene: scenes.Scene, rendered: scenes.Rendered) -> tuple[np.ndarray, np.ndarray, int]:
    """Shape and colour of every pixel at 64 x 64 (0: no object), and the ground's number."""
    size = judge.SIZE // 2
    shapes, colours = np.zeros((size, size), np.int64), np.zeros((size, size), np.int64)
    for thing, mask in zip(scene.things, rendered.masks, strict=True):
        where = mask.reshape(size, 2, size, 2).mean((1, 3)) > 0.5
        shapes[where] = judge.SHAPE_NAMES.index(thing.shape)
        colours[where] = judge.COLOUR_NAMES.index(thing.paint.colour)
    return shapes, colours, judge.GROUND_NAMES.index(scene.ground)


def examples(rng: np.random.Generator, count: int, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures uint8 [N, 3, 128, 128] with their labels: all triples, a fifth on photographs, one in twelve without an object."""
    pictures = [photos.load(name) for name in names]
    images, shapes, colours, grounds = [], [], [], []
    for _ in range(count):
        photo = photos.crop(pictures[rng.integers(len(pictures))], rng) if rng.random() < 0.22 else None
        scene = scenes.random_scene(rng, photo, allow_held_out=True)
        if rng.random() < 0.08:
            scene = scenes.Scene((), scene.ground, scene.seed, photo)
        rendered = scenes.render(scene)
        shape, colour, ground = labels_of(scene, rendered)
        images.append(rendered.image)
        shapes.append(shape)
        colours.append(colour)
        grounds.append(ground)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return stacked, torch.from_numpy(np.stack(shapes)), torch.from_numpy(np.stack(colours)), torch.tensor(grounds)


def right_of(model: judge.Judge, seed: int, count: int = 600, names: tuple[str, ...] = photos.HELD_OUT) -> dict[str, list[bool]]:
    """For fresh one-object renders (photographs: held-out ones), whether shape, colour and ground are named rightly."""
    rng = np.random.default_rng(seed)
    pictures = [photos.load(name) for name in names]
    drawn, images = [], []
    for _ in range(count):
        photo = photos.crop(pictures[rng.integers(len(pictures))], rng) if rng.random() < 0.2 else None
        scene = scenes.random_scene(rng, photo, two=0, allow_held_out=True)
        drawn.append(scene)
        images.append(scenes.render(scene).image)
    right: dict[str, list[bool]] = {"shape": [], "colour": [], "ground": []}
    for scene, verdict in zip(drawn, judge.look(model, torch.from_numpy(np.stack(images)).float() / 255), strict=True):
        found = verdict.best(scene.things[0].shape)
        right["shape"].append(found is not None and found.shape == scene.things[0].shape)
        right["colour"].append(found is not None and found.colour == scene.things[0].paint.colour)
        right["ground"].append(verdict.ground == scene.ground)
    return right


def train(work: Path, minutes: float, seed: int, scenes_count: int, batch: int = 32, rate: float = 2e-3) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + 77)
    device, log = device_of(), Log(work / "judge.log")
    images, shapes, colours, grounds = examples(rng, scenes_count, photos.TRAINING)
    log(f"judge: {scenes_count} scenes rendered")
    narrow = NarrowAutoencoder()
    narrow.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True, map_location="cpu")["average"])
    narrow.to(device, memory_format=torch.channels_last)
    blurred = images.clone()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, scenes_count // 2, 64):
            piece = images[start : start + 64].to(device).float() / 255
            latents = narrow.encode(piece.contiguous(memory_format=torch.channels_last))
            blurred[start : start + 64] = (narrow.decode(latents + 0.1 * torch.randn_like(latents)).float().clamp(0, 1) * 255).byte().cpu()
    log("judge: half of them through the autoencoder")
    model = judge.Judge().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    started, step = time.monotonic(), 0
    while (spent := (time.monotonic() - started) / 60) < minutes:
        for group in optimizer.param_groups:
            group["lr"] = cosine(spent / minutes, rate, rate / 50)
        index = torch.randint(scenes_count, (batch,))
        data = torch.where((torch.rand(batch) < 0.5)[:, None, None, None], images[index], blurred[index]).to(device).float() / 255
        data = (data * (0.9 + 0.2 * torch.rand(batch, 1, 1, 1, device=device)) + 0.02 * torch.randn_like(data)).clamp(0, 1)
        with torch.autocast(device.type, torch.bfloat16):
            shape, colour, ground = model(data.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(shape.float(), shapes[index].to(device)) + F.cross_entropy(colour.float(), colours[index].to(device))
        loss = loss + 0.3 * F.cross_entropy(ground.float(), grounds[index].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            log(f"judge step {step} minute {spent:.1f} loss {loss.item():.4f}")
    from safetensors.torch import save_file

    model.eval().cpu()
    about = {"format": "maskprompt judge 1", "seed": str(seed), "step": str(step)}
    state = {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in model.state_dict().items()}
    save_file(state, work / judge.FILE.name, metadata=about)
    right = right_of(judge.load(work / judge.FILE.name), seed + 1)
    log("judge on 600 fresh renders: " + ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in right.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.work, options.minutes, options.seed, options.scenes)


if __name__ == "__main__":
    main()
