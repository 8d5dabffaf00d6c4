"""Trains the judge on renders, half of them passed through the tiny model's autoencoder.

python -m demo.train_judge --minutes 8
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import judge, photos, scenes
from .autoencoder import NarrowAutoencoder
from .trainer import Log, cosine, device_of


def labels_of(scene: scenes.Scene, rendered: scenes.Rendered) -> tuple[np.ndarray, np.ndarray, int]:
    """Which object (from 1 on) and which colour every pixel of 64 x 64 is of (0: none), and the ground's number."""
    size = judge.SIZE // 2
    objects, colours = np.zeros((size, size), np.int64), np.zeros((size, size), np.int64)
    for number, (thing, mask) in enumerate(zip(scene.things, rendered.masks, strict=True), 1):
        where = mask.reshape(size, 2, size, 2).mean((1, 3)) > 0.5
        objects[where] = number
        colours[where] = judge.COLOUR_NAMES.index(thing.paint.colour)
    return objects, colours, judge.GROUND_NAMES.index(scene.ground)


@dataclass
class Examples:
    """Pictures uint8 [N, 3, 128, 128] with their labels: which object each pixel is of, its colour, the ground, the objects' shapes."""

    images: Tensor
    objects: Tensor
    colours: Tensor
    grounds: Tensor
    shapes: list[tuple[int, ...]]


def examples(rng: np.random.Generator, count: int, names: tuple[str, ...]) -> Examples:
    """Scenes of all triples, a fifth of them on photographs, one in twelve without an object."""
    pictures = [photos.load(name) for name in names]
    images, objects, colours, grounds, shapes = [], [], [], [], []
    for _ in range(count):
        photo = photos.crop(pictures[rng.integers(len(pictures))], rng) if rng.random() < 0.22 else None
        scene = scenes.random_scene(rng, photo, allow_held_out=True)
        if rng.random() < 0.08:
            scene = scenes.Scene((), scene.ground, scene.seed, photo)
        rendered = scenes.render(scene)
        for found, part in zip((objects, colours, grounds), labels_of(scene, rendered), strict=True):
            found.append(part)
        images.append(rendered.image)
        shapes.append(tuple(scenes.SHAPES.index(thing.shape) for thing in scene.things))
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Examples(stacked, torch.from_numpy(np.stack(objects)), torch.from_numpy(np.stack(colours)), torch.tensor(grounds), shapes)


@torch.no_grad()
def through_autoencoder(images: Tensor, work: Path, device: torch.device) -> Tensor:
    """The pictures as the tiny model's autoencoder gives them back, with a little noise on the latents."""
    narrow = NarrowAutoencoder()
    narrow.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True, map_location="cpu")["average"])
    narrow.to(device).to(memory_format=torch.channels_last)
    blurred = torch.empty_like(images)
    for start in range(0, len(images), 64):
        piece = (images[start : start + 64].to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            latents = narrow.encode(piece)
            back = narrow.decode(latents + 0.1 * torch.randn_like(latents))
        blurred[start : start + 64] = (back.float().clamp(0, 1) * 255).byte().cpu()
    return blurred


@torch.no_grad()
def silhouettes(model: judge.Judge, images: Tensor, data: Examples) -> tuple[Tensor, Tensor]:
    """What the first network finds of every object, cut out [N, 1, 32, 32], and the objects' shapes."""
    cut, shapes = [], []
    for start in range(0, len(images), 64):
        found = model(images[start : start + 64].float() / 255)[0].sigmoid()
        for index, alone in enumerate(found, start):
            for number, shape in enumerate(data.shapes[index], 1):
                mask = (alone.numpy() > 0.5) & (F.max_pool2d((data.objects[index] == number)[None].float(), 5, 1, 2)[0].numpy() > 0)
                if mask.mean() > judge.SMALLEST:
                    cut.append(judge.cut_out(alone, mask))
                    shapes.append(shape)
    return torch.stack(cut), torch.tensor(shapes)


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


def train(work: Path, minutes: float, seed: int, count: int, batch: int = 32, rate: float = 2e-3) -> None:
    torch.manual_seed(seed)
    device, log = device_of(), Log(work / "judge.log")
    data = examples(np.random.default_rng(seed + 77), count, photos.TRAINING)
    blurred = through_autoencoder(data.images, work, device)
    log(f"judge: {count} scenes rendered, and passed through the autoencoder")
    model = judge.Judge().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    started, step = time.monotonic(), 0
    while (spent := (time.monotonic() - started) / 60) < minutes:
        for group in optimizer.param_groups:
            group["lr"] = cosine(spent / minutes, rate, rate / 50)
        index = torch.randint(count, (batch,))
        pictures = torch.where((torch.rand(batch) < 0.5)[:, None, None, None], data.images[index], blurred[index]).to(device).float() / 255
        pictures = (pictures * (0.9 + 0.2 * torch.rand(batch, 1, 1, 1, device=device)) + 0.02 * torch.randn_like(pictures)).clamp(0, 1)
        with torch.autocast(device.type, torch.bfloat16):
            found, colour, ground = model(pictures.contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(found.float(), (data.objects[index] > 0).float().to(device))
        loss = loss + F.cross_entropy(colour.float(), data.colours[index].to(device))
        loss = loss + 0.3 * F.cross_entropy(ground.float(), data.grounds[index].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            log(f"judge step {step} minute {spent:.1f} loss {loss.item():.4f}")
    model.eval().cpu()
    both = [silhouettes(model, images, data) for images in (data.images[: count // 2], blurred[: count // 2])]
    train_silhouette(model.silhouette, torch.cat([cut for cut, _ in both]), torch.cat([shapes for _, shapes in both]), log)
    from safetensors.torch import save_file

    about = {"format": "maskprompt judge 2", "seed": str(seed), "step": str(step)}
    state = {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in model.state_dict().items()}
    save_file(state, work / judge.FILE.name, metadata=about)
    right = right_of(judge.load(work / judge.FILE.name), seed + 1)
    log("judge on 600 fresh renders: " + ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in right.items()))


def train_silhouette(network: torch.nn.Module, cut: Tensor, shapes: Tensor, log: Log, epochs: int = 10, batch: int = 64) -> None:
    """The second network, on what the first finds; shifted a little, so that no shape hangs on the pixel grid."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    steps = epochs * len(cut) // batch
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step / steps, 2e-3, 4e-5)
        index = torch.randint(len(cut), (batch,))
        pictures = torch.roll(cut[index], tuple(int(n) for n in torch.randint(-2, 3, (2,))), (2, 3))
        loss = F.cross_entropy(network(pictures), shapes[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            log(f"silhouette step {step} of {steps} loss {loss.item():.4f}")
    network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.work, options.minutes, options.seed, options.scenes)


if __name__ == "__main__":
    main()
