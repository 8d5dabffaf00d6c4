"""Trains the judge on renders of plain and of patterned objects, half of them passed through the tiny model's autoencoder.

python -m demo.train_judge --steps 1500

Saves every two minutes into `--work` and resumes from there; `--start demo/judge.safetensors` begins with what is there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import judge, photos, scenes
from .autoencoder import NarrowAutoencoder
from .trainer import Log, cosine, device_of

SCENES = "judge-scenes.pt"
STATE = "judge.pt"
"""What a run that was stopped goes on with."""


def patterned(rng: np.random.Generator, scene: scenes.Scene, chance: float) -> scenes.Scene:
    """The scene, each of its objects with this chance in a pattern of its colour and another."""

    def painted(thing: scenes.Thing) -> scenes.Thing:
        if rng.random() >= chance:
            return thing
        others = [name for name in scenes.COLOURS if name != thing.paint.colour]
        second = others[rng.integers(len(others))]
        pattern = scenes.PATTERNS[rng.integers(len(scenes.PATTERNS))]
        return replace(thing, paint=scenes.Paint(thing.paint.colour, second, pattern))

    return replace(scene, things=tuple(painted(thing) for thing in scene.things))


def second_parts(scene: scenes.Scene) -> np.ndarray:
    """Where the second colours of patterns are: the same scene rendered in black and white. Bool [128, 128]."""
    if all(thing.paint.pattern is None for thing in scene.things):
        return np.zeros((judge.SIZE, judge.SIZE), bool)
    things = tuple(
        replace(thing, paint=scenes.Paint("black", "white" if thing.paint.pattern else None, thing.paint.pattern)) for thing in scene.things
    )
    return scenes.render(replace(scene, things=things), judge.SIZE).image.mean(-1) > 80


def labels_of(scene: scenes.Scene, rendered: scenes.Rendered) -> tuple[np.ndarray, np.ndarray, int]:
    """Which object (from 1 on) and which colour every pixel of 64 x 64 is of (0: none), and the ground's number."""
    size = judge.SIZE // 2
    objects = np.zeros((size, size), np.uint8)
    colours = np.zeros((size, size), np.uint8)
    second = second_parts(scene)

    def half(mask: np.ndarray) -> np.ndarray:
        return mask.reshape(size, 2, size, 2).mean((1, 3))

    for number, (thing, mask) in enumerate(zip(scene.things, rendered.masks, strict=True), 1):
        where = half(mask) > 0.5
        objects[where] = number
        colours[where] = judge.COLOUR_NAMES.index(thing.paint.colour)
        if thing.paint.second is not None:
            colours[where & (half(mask * second) > half(mask) / 2)] = judge.COLOUR_NAMES.index(thing.paint.second)
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
    """Scenes of all triples, half of the objects in patterns, a fifth of them on photographs, one in twelve without an object."""
    pictures = [photos.load(name) for name in names]
    images = []
    objects = []
    colours = []
    grounds = []
    shapes = []
    for _ in range(count):
        photo = photos.crop(pictures[rng.integers(len(pictures))], rng) if rng.random() < 0.22 else None
        scene = patterned(rng, scenes.random_scene(rng, photo, allow_held_out=True), 0.5)
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
    """The pictures as the tiny model's autoencoder gives them back, with up to a third as much noise as signal on the latents."""
    narrow = NarrowAutoencoder()
    narrow.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True, map_location="cpu")["average"])
    narrow.to(device).to(memory_format=torch.channels_last)
    blurred = torch.empty_like(images)
    for start in range(0, len(images), 64):
        piece = (images[start : start + 64].to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            latents = narrow.encode(piece)
            noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1, device=device) * latents.std() / 3
            back = narrow.decode(latents + noise)
        blurred[start : start + 64] = (back.float().clamp(0, 1) * 255).byte().cpu()
    return blurred


def prepared(work: Path, count: int, seed: int, device: torch.device, log: Log) -> tuple[Examples, Tensor]:
    """The scenes, and the same through the autoencoder; kept in `work` until the training is done."""
    file = work / SCENES
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        if kept["of"] == [count, seed]:
            return Examples(*kept["data"]), kept["blurred"]
    data = examples(np.random.default_rng(seed + 77), count, photos.TRAINING)
    blurred = through_autoencoder(data.images, work, device)
    torch.save(
        {"of": [count, seed], "data": [data.images, data.objects, data.colours, data.grounds, data.shapes], "blurred": blurred}, file
    )
    log(f"judge: {count} scenes rendered, and passed through the autoencoder")
    return data, blurred


def changed(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in 0..1 a little lighter or darker, noisier, and a third of them coarser."""
    size = int(torch.randint(40, 112, ()))
    coarse = F.interpolate(F.interpolate(pictures, size=(size, size), mode="area"), size=pictures.shape[2:], mode="bilinear")
    pictures = torch.where(torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.33, coarse, pictures)
    light = 0.9 + 0.2 * torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    return (pictures * light + 0.02 * torch.randn_like(pictures)).clamp(0, 1)


@torch.no_grad()
def silhouettes(model: judge.Judge, images: Tensor, data: Examples) -> tuple[Tensor, Tensor]:
    """What the first network finds of every object, cut out [N, 1, 32, 32], and the objects' shapes."""
    cut = []
    shapes = []
    for start in range(0, len(images), 64):
        found = model(images[start : start + 64].float() / 255)[0].sigmoid()
        for index, alone in enumerate(found, start):
            for number, shape in enumerate(data.shapes[index], 1):
                mask = (alone.numpy() > 0.5) & (F.max_pool2d((data.objects[index] == number)[None].float(), 5, 1, 2)[0].numpy() > 0)
                if mask.mean() > judge.SMALLEST:
                    cut.append(judge.cut_out(alone, mask))
                    shapes.append(shape)
    return torch.stack(cut), torch.tensor(shapes)


def right_of(
    model: judge.Judge, seed: int, count: int = 600, names: tuple[str, ...] = photos.HELD_OUT, pattern: bool = False
) -> dict[str, list[bool]]:
    """For fresh one-object renders (photographs: held-out ones), whether shape, colour and ground are named rightly.

    With `pattern` every object is in one, and both of its colours must be named.
    """
    rng = np.random.default_rng(seed)
    pictures = [photos.load(name) for name in names]
    drawn = []
    images = []
    for _ in range(count):
        photo = photos.crop(pictures[rng.integers(len(pictures))], rng) if rng.random() < 0.2 else None
        scene = scenes.random_scene(rng, photo, two=0, allow_held_out=True)
        drawn.append(patterned(rng, scene, 1.0) if pattern else scene)
        images.append(scenes.render(drawn[-1]).image)
    right: dict[str, list[bool]] = {"shape": [], "colour": [], "ground": []}
    for scene, verdict in zip(drawn, judge.look(model, torch.from_numpy(np.stack(images)).float() / 255), strict=True):
        paint = scene.things[0].paint
        found = verdict.best(scene.things[0].shape)
        right["shape"].append(found is not None and found.shape == scene.things[0].shape)
        if paint.second is None:
            right["colour"].append(found is not None and found.colour == paint.colour)
        else:
            right["colour"].append(found is not None and found.painted(paint.colour, paint.second))
        right["ground"].append(verdict.ground == scene.ground)
    return right


@torch.no_grad()
def set_usual(model: judge.Judge, data: Examples, blurred: Tensor, count: int = 1000) -> None:
    """Measures what `features` takes for usual, on as many objects, half of them through the autoencoder."""
    raw = []
    for start in range(0, count, 50):
        rows = [row for row in range(start, start + 50) if bool((data.objects[row] == 1).any())]
        images = (data.images if start % 100 else blurred)[rows].movedim(1, -1).float() / 255
        raw.append(judge.raw_features(model, images, (data.objects[rows] == 1).float()))
    found = torch.cat(raw)
    model.usual.copy_(torch.stack([found.mean(0), found.std(0) + 0.1 * found.std(0).mean()]))


def train(work: Path, steps: int, seed: int, count: int, start: Path | None = None, batch: int = 32, rate: float = 2e-3) -> None:
    torch.manual_seed(seed)
    device = device_of()
    log = Log(work / "judge.log")
    data, blurred = prepared(work, count, seed, device, log)
    model = judge.Judge() if start is None else judge.load(start).train()
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    state = work / STATE
    step = 0
    saved = time.monotonic()
    if state.is_file():
        kept = torch.load(state, weights_only=True, map_location=device)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = cosine(step / steps, rate, rate / 50)
        index = torch.randint(count, (batch,))
        pictures = torch.where((torch.rand(batch) < 0.5)[:, None, None, None], data.images[index], blurred[index])
        objects = (data.objects[index] > 0).float()
        colours = data.colours[index].long()
        if torch.rand(()) < 0.5:
            pictures, objects, colours = (part.flip(-1) for part in (pictures, objects, colours))
        pictures = changed(pictures.to(device).float() / 255)
        with torch.autocast(device.type, torch.bfloat16):
            found, colour, ground = model(pictures.contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(found.float(), objects.to(device))
        loss = loss + F.cross_entropy(colour.float(), colours.to(device))
        loss = loss + 0.3 * F.cross_entropy(ground.float(), data.grounds[index].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            log(f"judge step {step} of {steps} loss {loss.item():.4f}")
        if time.monotonic() - saved > 120 or step == steps:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, state)
            saved = time.monotonic()
    model.eval().cpu()
    both = [silhouettes(model, images, data) for images in (data.images[: count // 2], blurred[: count // 2])]
    train_silhouette(model.silhouette, torch.cat([cut for cut, _ in both]), torch.cat([shapes for _, shapes in both]), log)
    set_usual(model, data, blurred)
    from safetensors.torch import save_file

    about = {"format": "maskprompt judge 3", "seed": str(seed), "step": str(step)}
    weights = {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in model.state_dict().items()}
    save_file(weights, work / judge.FILE.name, metadata=about)
    for file in (SCENES, STATE):
        (work / file).unlink(missing_ok=True)
    for kind in (False, True):
        right = right_of(judge.load(work / judge.FILE.name), seed + 1, pattern=kind)
        rates = ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in right.items())
        log(f"judge on 600 fresh {'patterned' if kind else 'plain'} renders: {rates}")


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
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    train(options.work, options.steps, options.seed, options.scenes, options.start, rate=options.rate)


if __name__ == "__main__":
    main()
