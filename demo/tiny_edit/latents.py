"""tiny-edit's latent space: the autoencoder and its training.

    python -m demo.tiny_edit.latents --minutes 12

TAESD's layout at eight channels (`demo/autoencoder.py`), begun from the four of the tiny UNet, which confuse colours that its world does
not have (a pink pig comes back white). Runs on a CPU or a GPU, and resumes. The transformer is trained on the latents of one encoder:
once it has begun, only `--decoder-only` goes on.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoder import NarrowAutoencoder, narrowed
from ..trainer import Log, cosine, device_of, learns_in_bfloat16
from . import folders, scenes, things, world

CHANNELS = 8
CROP = 64
FILE = "autoencoder.pt"
"""The averaged weights, as the transformer knows them."""
STATE = "autoencoder-state.pt"
CHECKPOINT = Path(__file__).resolve().parent.parent / "tiny-sd-inpaint.safetensors"


class Latents:
    """The autoencoder. Each channel of the latents of the world's pictures has mean 0 and deviation 1: ComfyUI need not scale them."""

    def __init__(self, autoencoder: NarrowAutoencoder, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.autoencoder = autoencoder.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> Latents:
        """Reads `autoencoder.pt` of a training folder."""
        file = folder / FILE
        if not file.is_file():
            raise FileNotFoundError(f"no {FILE} in {folder}: run `python -m demo.tiny_edit.latents` first")
        autoencoder = NarrowAutoencoder(CHANNELS)
        autoencoder.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        return cls(autoencoder, device)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0..1 to latents [B, 8, H/8, W/8]."""
        return self.autoencoder.encode(pictures.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures [B, 3, H, W] in 0..1."""
        return self.autoencoder.decode(latents.contiguous(memory_format=torch.channels_last)).clamp(0, 1)


@torch.no_grad()
def normalised(autoencoder: NarrowAutoencoder, mean: Tensor, deviation: Tensor) -> NarrowAutoencoder:
    """The same autoencoder with latents less their mean, over their deviation, both [8].

    Exact in the encoder. The decoder bounds its latents softly before its first layer, and pads them with zeros, so that there it is near
    but not exact: `--decoder-only` makes up for it.
    """
    same = NarrowAutoencoder(CHANNELS)
    same.load_state_dict(autoencoder.state_dict())
    last = cast(nn.Conv2d, same.encoder[-1])
    first = cast(nn.Conv2d, same.decoder[1])
    last.weight /= deviation[:, None, None, None]
    cast(Tensor, last.bias).sub_(mean).div_(deviation)
    cast(Tensor, first.bias).add_(first.weight.sum((2, 3)) @ mean)
    first.weight *= deviation[:, None, None]
    return same


def widened(weights: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """The weights of an autoencoder of fewer channels, the missing channels begun anew and small."""
    start = NarrowAutoencoder(channels).state_dict()
    for name, value in weights.items():
        if start[name].shape == value.shape:
            start[name] = value.clone()
            continue
        start[name] *= 0.3
        start[name][tuple(slice(0, length) for length in value.shape)] = value
    return start


def begun_from(start: Path) -> dict[str, Tensor]:
    """Weights to begin with: a checkpoint of the tiny UNet, or an `autoencoder.pt`."""
    if start.suffix != ".safetensors":
        return torch.load(start, weights_only=True)
    from safetensors.torch import load_file

    prefix = "first_stage_model."
    return narrowed({name.removeprefix(prefix): value for name, value in load_file(start).items() if name.startswith(prefix)}).state_dict()


def random_picture(rng: np.random.Generator, place: world.World, codes: list[str], size: int) -> np.ndarray:
    """A picture of any number of things on any ground of training, as uint8 [size, size, 3]; a tenth of the things have another hue."""
    ground = scenes.random_ground(rng, place.grounds())
    chosen = [codes[rng.integers(len(codes))] for _ in range(int(rng.integers(1, 4)))]
    layout = scenes.random_layout(rng, chosen, scenes.horizon_of(place, ground))
    turned = tuple(scenes.replace(thing, hue=float(rng.random())) if rng.random() < 0.1 else thing for thing in layout)
    return scenes.render(place, scenes.Scene(turned, ground), size).image


def crops(rng: np.random.Generator, place: world.World, codes: list[str], number: int) -> np.ndarray:
    """`number` crops uint8 [number, 3, 64, 64], eight of each picture; a third of the pictures at half of the resolution."""
    found: list[np.ndarray] = []
    while len(found) < number:
        image = random_picture(rng, place, codes, 128 if rng.random() < 0.35 else 256)
        for _ in range(8):
            y, x = rng.integers(0, image.shape[0] - CROP + 1, 2)
            found.append(image[y : y + CROP, x : x + CROP])
    return np.stack(found[:number]).transpose(0, 3, 1, 2)


_WORLD: dict[Path, world.World] = {}


def crops_of(folder: Path, batch: int, seed: int, step: int) -> np.ndarray:
    """The crops of a step, uint8 [batch, 3, 64, 64]. The world is read once in each process."""
    if folder not in _WORLD:
        _WORLD[folder] = world.load(folders.world(folder))
    return crops(np.random.default_rng([seed, step]), _WORLD[folder], list(things.TRAINING), batch)


def drawn(folder: Path, batch: int, seed: int, step: int, workers: int) -> Generator[np.ndarray, None, None]:
    """The crops of this step and those that follow, drawn by so many processes some steps ahead."""
    if not workers:
        for number in count(step):
            yield crops_of(folder, batch, seed, number)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = deque(pool.submit(crops_of, folder, batch, seed, number) for number in range(step, step + 2 * workers))
        try:
            for number in count(step + 2 * workers):
                yield waiting.popleft().result()
                waiting.append(pool.submit(crops_of, folder, batch, seed, number))
        finally:
            pool.shutdown(cancel_futures=True)


def loss_of(model: NarrowAutoencoder, pictures: Tensor, decoder_only: bool) -> tuple[Tensor, Tensor]:
    """The loss, and the plain L1 part of it. Latents are held near mean 0 and deviation 1, and decoded with a little noise."""
    with torch.set_grad_enabled(not decoder_only):
        latents = model.encode(pictures)
    back = model.decode(latents + 0.05 * torch.randn_like(latents)).float()
    latents = latents.float()
    plain = (back - pictures).abs().mean()
    blurred = sum((F.avg_pool2d(back, k) - F.avg_pool2d(pictures, k)).abs().mean() for k in (4, 16))
    edges = sum((back.diff(dim=d) - pictures.diff(dim=d)).abs().mean() for d in (2, 3))
    moments = (latents.mean((0, 2, 3)) ** 2 + (latents.std((0, 2, 3)) - 1) ** 2).mean()
    return plain + 0.5 * blurred + 0.7 * edges + 0.02 * moments, plain


def train(
    folder: Path, minutes: float, batch: int, rate: float, decoder_only: bool, start: Path | None, workers: int = 0, seed: int = 0
) -> None:
    """Learns for so many minutes in all, saving every 100 steps (a GPU: 1,000) and at the end.

    Where the minutes are over, nothing is written. A decoder's state that belongs to another encoder is begun anew.
    """
    device = device_of()
    torch.manual_seed(seed)
    place = world.load(folders.world(folder))
    codes = list(things.TRAINING)
    model = NarrowAutoencoder(CHANNELS)
    average = NarrowAutoencoder(CHANNELS)
    file = folder / ("decoder-state.pt" if decoder_only else STATE)
    step, spent = 0, 0.0
    log = Log(folder / "training.log")
    state = torch.load(file, weights_only=True, map_location="cpu") if file.is_file() else None
    if state is not None and state["spent"] >= minutes:
        log(f"{file.name} has learned for {state['spent']:.1f} minutes already: more --minutes go on from there")
        return
    if state is not None and decoder_only and not same_encoder(state["model"], Latents.load(folder).autoencoder.state_dict()):
        log(f"{file.name} is of another encoder: the decoder begins anew")
        state = None
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        step, spent = state["step"], state["spent"]
    elif decoder_only:
        model.load_state_dict(Latents.load(folder).autoencoder.state_dict())
    elif start is not None:
        model.load_state_dict(widened(begun_from(start), CHANNELS))
    if state is None:
        average.load_state_dict(model.state_dict())
    model.to(device).to(memory_format=torch.channels_last)
    average.to(device)
    learning = model.decoder if decoder_only else model
    optimizer = torch.optim.Adam(learning.parameters(), rate, betas=(0.9, 0.99))
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    coming = drawn(folder, batch, seed, step, workers)

    def state_now() -> dict[str, Any]:
        networks = {"model": model.state_dict(), "average": average.state_dict()}
        return {**networks, "optimizer": optimizer.state_dict(), "step": step, "spent": spent}

    begun, seen, counted = time.monotonic() - spent * 60, torch.zeros((), device=device), 0
    told = 50 if device.type == "cpu" else 500
    while (spent := (time.monotonic() - begun) / 60) < minutes:
        for group in optimizer.param_groups:
            group["lr"] = cosine(spent / minutes, rate, rate / 20)
        data = (torch.from_numpy(next(coming)).to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=learns_in_bfloat16(device)):
            loss, plain = loss_of(model, data, decoder_only)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, max(0.01, 1 / (step + 1)))
        seen = seen + plain.detach()
        counted += 1
        if step % told == 0:
            log(f"autoencoder step {step} minute {spent:.1f} L1 {seen.item() / counted:.4f} loss {loss.item():.4f}")
            seen, counted = torch.zeros((), device=device), 0
        if step % (2 * told) == 0:
            folders.save(state_now(), file)
    folders.save(state_now(), file)
    coming.close()
    write(folder, average.cpu(), place, codes, keep_encoder=decoder_only)
    log(f"autoencoder done at step {step}, minute {spent:.1f}")


def same_encoder(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Says whether two autoencoders' weights have the same encoder."""
    return all(torch.equal(value, other[name]) for name, value in one.items() if name.startswith("encoder."))


@torch.no_grad()
def write(folder: Path, average: NarrowAutoencoder, place: world.World, codes: list[str], keep_encoder: bool) -> None:
    """Writes `autoencoder.pt`, its latents normalised over 32 pictures of 256 pixels, or with the encoder as it was.

    Of another encoder no record may be left.
    """
    if not keep_encoder:
        folders.forget_records(folder)
        rng = np.random.default_rng(0)
        pictures = np.stack([random_picture(rng, place, codes, 256) for _ in range(32)])
        raw = average.eval().encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
        average = normalised(average, raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    folders.save({name: value.contiguous() for name, value in average.state_dict().items()}, folder / FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders.arguments(parser)
    parser.add_argument("--minutes", type=float, default=12, help="of training in all, those of earlier runs included")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder and its latents; train the decoder alone")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw (0: this one)")
    parser.add_argument("--start", type=Path, default=CHECKPOINT, help="begin from this file's autoencoder (default: the tiny UNet's)")
    parser.add_argument("--again", action="store_true", help="train the encoder although there is one: what was trained on it is lost")
    options = parser.parse_args()
    folders.begin(options)
    if (options.folder / FILE).is_file() and not (options.again or options.decoder_only):
        print(f"{options.folder / FILE} is there already: its encoder stays (--again trains it, --decoder-only its decoder)")
        return
    train(options.folder, options.minutes, options.batch, options.rate, options.decoder_only, options.start, options.workers)


if __name__ == "__main__":
    main()
