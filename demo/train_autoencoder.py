"""First half of the tiny model's training: the autoencoder.

    python -m demo.train_autoencoder --minutes 12

Learns on 64-pixel crops of rendered scenes and photographs. Resumes from its last state; a line of
log every 100 steps. `--decoder-only` goes on with the decoder alone, from a finished run: the latents stay
as they are, so a UNet that was trained on them stays good.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import photos, scenes
from .autoencoder import NarrowAutoencoder
from .trainer import Log, cosine, device_of

CROP = 64


def crops(rng: np.random.Generator, count: int, pictures: list[np.ndarray]) -> Tensor:
    """`count` crops [count, 3, 64, 64] in 0..1: from drawn scenes, scenes on photographs, plain photographs."""
    found: list[np.ndarray] = []
    while len(found) < count:
        kind = rng.random()
        photo = photos.crop(pictures[rng.integers(len(pictures))], rng) if kind < 0.4 else None
        if photo is not None and kind < 0.2:
            image = photo
        else:
            image = scenes.render(scenes.random_scene(rng, photo, two=0.5, allow_held_out=True)).image
        for _ in range(3):
            y, x = rng.integers(0, image.shape[0] - CROP + 1, 2)
            found.append(image[y : y + CROP, x : x + CROP])
    return torch.from_numpy(np.stack(found[:count])).permute(0, 3, 1, 2).float() / 255


def loss_of(model: NarrowAutoencoder, pictures: Tensor, decoder_only: bool = False) -> tuple[Tensor, Tensor]:
    """The loss, and the plain L1 part of it. Latents are held near mean 0 and deviation 1, and decoded with a little noise."""
    with torch.set_grad_enabled(not decoder_only):
        latents = model.encode(pictures)
    back = model.decode(latents + 0.06 * torch.randn_like(latents)).float()
    latents = latents.float()
    plain = (back - pictures).abs().mean()
    blurred = sum((F.avg_pool2d(back, k) - F.avg_pool2d(pictures, k)).abs().mean() for k in (4, 8))
    edges = sum((back.diff(dim=d) - pictures.diff(dim=d)).abs().mean() for d in (2, 3))
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3))
    moments = (mean**2 + (deviation - 1) ** 2).mean()
    return plain + 0.5 * blurred + 0.5 * edges + 0.02 * moments, plain


def train(work: Path, minutes: float, seed: int = 0, batch: int = 32, rate: float = 1e-3, decoder_only: bool = False) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    device = device_of()
    pictures = [photos.load(name) for name in photos.TRAINING]
    model = NarrowAutoencoder().to(device).to(memory_format=torch.channels_last)
    average = NarrowAutoencoder().to(device)
    learning = model.decoder if decoder_only else model
    optimizer = torch.optim.Adam(learning.parameters(), rate, betas=(0.9, 0.99))
    file = work / ("decoder.pt" if decoder_only else "autoencoder.pt")
    step = 0
    spent = 0.0
    if decoder_only and not file.is_file():
        finished = torch.load(work / "autoencoder.pt", weights_only=True)["average"]
        model.load_state_dict(finished)
        average.load_state_dict(finished)
    elif file.is_file():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        spent = state["spent"]
        rng = np.random.default_rng(seed + step)
    else:
        average.load_state_dict(model.state_dict())
    log = Log(work / "autoencoder.log")
    started = time.monotonic() - spent * 60
    seen = 0.0
    while (spent := (time.monotonic() - started) / 60) < minutes:
        for group in optimizer.param_groups:
            group["lr"] = cosine(spent / minutes, rate, rate / 20, warm=0.02)
        data = crops(rng, batch, pictures).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            loss, plain = loss_of(model, data, decoder_only)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 0.005 if step > 500 or decoder_only else 0.05)
        seen += plain.item()
        if step % 100 == 0:
            log(f"autoencoder step {step} minute {spent:.1f} L1 {seen / 100:.4f} loss {loss.item():.4f}")
            seen = 0.0
        if step % 250 == 0:
            save(file, model, average, optimizer, step, spent)
    save(file, model, average, optimizer, step, spent)
    if decoder_only:
        whole = torch.load(work / "autoencoder.pt", weights_only=True)
        torch.save({**whole, "average": average.state_dict()}, work / "autoencoder.pt")


def save(
    file: Path, model: NarrowAutoencoder, average: NarrowAutoencoder, optimizer: torch.optim.Optimizer, step: int, spent: float
) -> None:
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    partial = file.with_suffix(".partial")
    torch.save({**state, "step": step, "spent": spent}, partial)
    partial.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder and its latents; train the decoder alone")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    train(arguments.work, arguments.minutes, arguments.seed, decoder_only=arguments.decoder_only)


if __name__ == "__main__":
    main()
