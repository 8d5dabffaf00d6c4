"""Second half of the tiny model's training: text encoder and UNet, then the checkpoint file.

    python -m demo.train_tiny --minutes 100

Encodes rendered scenes once, then learns from the latents: epsilon prediction on SD's schedule with
offset noise, high noise and the object's cells counted more, 10 % empty captions. Runs on a GPU
if there is one; saves every few minutes and resumes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import photos, scenes, tiny_model
from .autoencoder import NarrowAutoencoder, narrowed, padded
from .trainer import Log, cosine, device_of

tiny_model.comfyui_on_path()


@dataclass
class Example:
    """One picture, the mask given to the inpainting model (1 where it paints), what the loss counts more, its caption."""

    image: np.ndarray
    mask: np.ndarray
    weight: np.ndarray
    caption: str


def box_around(rng: np.random.Generator, box: tuple[int, int, int, int], size: int) -> tuple[int, int, int, int]:
    """The box, larger by 5 to 40 % of its size on each side, cut off at the picture's edge; left, top, right, bottom."""
    x, y, width, height = box
    left, right = (width * rng.uniform(0.05, 0.4) for _ in range(2))
    top, bottom = (height * rng.uniform(0.05, 0.4) for _ in range(2))
    return max(0, int(x - left)), max(0, int(y - top)), min(size, int(x + width + right)), min(size, int(y + height + bottom))


def random_example(rng: np.random.Generator, pictures: list[np.ndarray], size: int = 128) -> Example:
    """Half of the examples paint a whole picture, the others a box: around an object, or (as in SD's training) anywhere.

    The caption speaks of the whole picture, as it did for SD inpainting; for a box around one object it speaks of that
    object alone half of the time.
    """
    photo = photos.crop(pictures[rng.integers(len(pictures))], rng, size) if rng.random() < 0.2 else None
    scene = scenes.random_scene(rng, photo)
    rendered = scenes.render(scene, size)
    mask = np.zeros((size, size), np.float32)
    prefix = scenes.PREFIXES[rng.integers(len(scenes.PREFIXES))]
    caption = scene.caption(with_ground=rng.random() < 0.85, prefix=prefix)
    kind = rng.random()
    if kind < 0.48 and photo is None:
        mask[:] = 1
    elif kind < 0.85 or photo is not None:
        index = int(rng.integers(len(scene.things)))
        left, top, right, bottom = box_around(rng, rendered.boxes[index], size)
        mask[top:bottom, left:right] = 1
        if rng.random() < 0.5:
            alone = scenes.Scene((scene.things[index],), scene.ground)
            caption = alone.caption(with_ground=rng.random() < 0.5, prefix=prefix)
    else:
        width, height = rng.integers(24, 96, 2)
        left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        mask[top : top + height, left : left + width] = 1
    return Example(rendered.image, mask, rendered.masks.max(0), caption)


def latent_mask(masks: Tensor) -> Tensor:
    """Masks [B, H, W] to the latent grid [B, 1, H/8, W/8] of zeros and ones, the way ComfyUI's `concat_cond` does."""
    return F.interpolate(masks[:, None], scale_factor=1 / 8, mode="bilinear").round()


@torch.no_grad()
def encode(work: Path, count: int, seed: int) -> dict[str, Tensor | list[str]]:
    """The training set as latents, made once and kept in `work`."""
    file = work / f"latents-{count}-{seed}.pt"
    if file.is_file():
        return torch.load(file, weights_only=True)
    device = device_of()
    autoencoder = NarrowAutoencoder()
    autoencoder.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True, map_location="cpu")["average"])
    autoencoder.to(device).to(memory_format=torch.channels_last).eval()
    pictures = [photos.load(name) for name in photos.TRAINING]
    rng = np.random.default_rng(seed)
    latents = []
    masked = []
    masks = []
    weights = []
    captions = []
    log = Log(work / "training.log")
    for start in range(0, count, 64):
        batch = [random_example(rng, pictures) for _ in range(min(64, count - start))]
        images = torch.from_numpy(np.stack([e.image for e in batch])).to(device).permute(0, 3, 1, 2).float() / 255
        hole = torch.from_numpy(np.stack([e.mask for e in batch])).to(device)
        hidden = (images - 0.5) * (1 - hole[:, None]) + 0.5
        both = torch.cat([images, hidden]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            first, second = autoencoder.encode(both).float().cpu().chunk(2)
        latents.append(first.half())
        masked.append(second.half())
        masks.append(latent_mask(hole).cpu().to(torch.uint8))
        weights.append(F.avg_pool2d(torch.from_numpy(np.stack([e.weight for e in batch]))[:, None], 8).half())
        captions += [e.caption for e in batch]
        if start % 6400 == 0:
            log(f"encoded {start} of {count}")
    data: dict[str, Tensor | list[str]] = {
        "latents": torch.cat(latents), "masked": torch.cat(masked), "masks": torch.cat(masks), "weights": torch.cat(weights),
        "captions": captions,
    }  # fmt: skip
    torch.save(data, file)
    return data


class Set:
    """The latents on the device, and the captions as token ids. `set_deviation` once before use."""

    def __init__(self, data: dict[str, Tensor | list[str]], device: torch.device) -> None:
        def tensor(name: str) -> Tensor:
            found = data[name]
            if not isinstance(found, Tensor):
                raise TypeError(f"{name} is not a tensor")
            return found.to(device).float()

        self.latents = tensor("latents")
        self.masked = tensor("masked")
        self.deviation = self.latents.std().item()
        # Silhouettes are what is hard to learn: the object's cells count most, and those around it as much.
        self.masks = tensor("masks")
        self.weights = 0.4 + 3 * F.max_pool2d(tensor("weights"), 3, 1, 1)
        words = tiny_model.tokenizer()
        captions = [str(caption) for caption in data["captions"]]
        # Whole pictures of one object are drawn more often than boxes, two objects less often: shapes are learned from them.
        whole = tensor("masks").flatten(1).min(1).values.cpu() > 0
        two = torch.tensor([" and " in caption for caption in captions])
        self.chance = (1 + 2 * (whole & ~two).float()) * (1 - 0.5 * two.float())

        def ids(texts: list[str]) -> Tensor:
            return torch.tensor(words(texts, padding="max_length", max_length=77, truncation=True)["input_ids"])

        end = words.eos_token_id
        self.tokens = ids(captions).to(device)
        self.tokens[self.tokens == words.pad_token_id] = end
        self.empty = ids([""]).to(device)
        self.used = torch.unique(torch.cat([ids(scenes.vocabulary()), self.empty.cpu()])).to(device)
        self.device = device

    def set_deviation(self, deviation: float) -> None:
        """Divides the latents by this."""
        self.deviation = deviation
        self.latents = self.latents / deviation
        self.masked = self.masked / deviation

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents [B, 4, h, w], conditions [B, 5, h, w] (mask, masked picture), loss weights [B, 1, h, w], tokens [B, 77]."""
        index = torch.multinomial(self.chance, size, replacement=True, generator=generator).to(self.device)
        masks = self.masks[index]
        masked = self.masked[index].clone()
        whole = masks.flatten(1).min(1).values > 0
        blank = whole & (torch.rand(size, generator=generator) < 0.5).to(self.device)
        masked[blank] = torch.tensor(tiny_model.BLANK, device=self.device)[:, None, None]
        tokens = self.tokens[index].clone()
        tokens[(torch.rand(size, generator=generator) < 0.1).to(self.device)] = self.empty[0]
        return self.latents[index], torch.cat([masks, masked], 1), self.weights[index], tokens


def loss_of(
    unet: torch.nn.Module, text: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor, Tensor], alphas: Tensor, generator: torch.Generator
) -> Tensor:
    """Epsilon's squared error, weighted towards high noise and the object's cells.

    What a text has to tell (which shape, where) is decided above step 500, while the noisy picture does not show it yet; there
    epsilon's plain error is nearly blind to it. So 70 % of the steps are drawn from there, and the weight is 1 / (SNR + 0.05).
    The noise has a random offset for each picture and channel, so that a picture's mean colour is learned too.
    """
    latents, conditions, weights, tokens = batch
    size = len(latents)
    device = latents.device
    high = torch.rand(size, generator=generator) < 0.7
    steps = torch.where(high, torch.randint(500, 1000, (size,), generator=generator), torch.randint(500, (size,), generator=generator)).to(
        device
    )
    noise = torch.randn(latents.shape, generator=generator)
    noise = (noise + 0.3 * torch.randn(size, latents.shape[1], 1, 1, generator=generator)).to(device)
    alpha = alphas.to(device)[steps][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with torch.autocast(device.type, torch.bfloat16):
        context = text(tokens)
        predicted = unet(torch.cat([noisy, conditions], 1), steps.float(), context=context)
    importance = 0.15 / (alpha / (1 - alpha) + 0.05)
    return ((predicted.float() - noise) ** 2 * weights * importance).mean()


class Group:
    """The training processes: on a CPU one for each core, each with its own share of the scenes, one thread, and the mean gradient."""

    def __init__(self, rank: int, size: int, meet: str) -> None:
        self.rank = rank
        self.size = size
        if size > 1:
            torch.set_num_threads(1)
            torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)

    def mean(self, tensors: list[Tensor]) -> None:
        """Replaces the tensors by their mean over the processes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))


def train(rank: int, size: int, meet: str, options: argparse.Namespace) -> None:
    work = options.work
    minutes = options.minutes
    rate = options.rate
    group = Group(rank, size, meet)
    device = device_of()
    torch.manual_seed(options.seed)
    data = Set(encode(work, options.scenes // size, options.seed + rank), device)
    deviation = torch.tensor(data.deviation)
    group.mean([deviation])
    data.set_deviation(deviation.item())
    unet = tiny_model.build_unet().to(device)
    text = tiny_model.TextEncoder().to(device)
    networks = torch.nn.ModuleDict({"unet": unet, "text": text})
    parameters = list(networks.requires_grad_(True).parameters())
    if options.start is not None:
        unet_state, text_state, _ = tiny_model.load_checkpoint(options.start)
        unet.load_state_dict(unet_state)
        text.load_comfyui_state(text_state)
    average = {key: value.detach().clone() for key, value in networks.state_dict().items()}
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    file = work / "tiny.pt"
    log = Log(work / "training.log") if rank == 0 else None
    step = 0
    spent = 0.0
    if file.is_file():
        state = torch.load(file, weights_only=True, map_location=device)
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        step = state["step"]
        spent = state["spent"]
        if log:
            log(f"resumed at step {step}, minute {spent:.1f} of {minutes}")
    generator = torch.Generator().manual_seed(options.seed + 1000 * rank + step)
    alphas = tiny_model.alphas()
    table = text.table
    clock = torch.tensor(spent)
    last = time.monotonic()
    saved = spent
    running = 0.0
    while (spent := clock.item()) < minutes:
        for settings in optimizer.param_groups:
            settings["lr"] = cosine(spent / minutes, rate, rate / 30, warm=0.01)
        # PyTorch's fused attention is half as fast as the plain one on a CPU, at 16 channels a head.
        with sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(unet, text, data.batch(generator, options.batch // size), alphas, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        now = time.monotonic()
        clock += (now - last) / 60
        last = now
        # Of the 49,408 words captions use a few dozen; the others' gradient is zero and need not travel.
        words = table.grad[data.used] if table.grad is not None else clock
        group.mean([*(p.grad for p in parameters if p.grad is not None and p is not table), words, clock])
        if table.grad is not None:
            table.grad[data.used] = words
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        running += loss.item()
        if log is None:
            continue
        if step % 10 == 0:
            with torch.no_grad():
                for key, value in networks.state_dict().items():
                    average[key].lerp_(value, max(0.01, 1 / (step / 10 + 1)))
        if step % 100 == 0:
            log(f"step {step} minute {spent:.1f} of {minutes} loss {running / 100:.4f} rate {optimizer.param_groups[0]['lr']:.2e}")
            running = 0.0
        if spent - saved > 3:
            saved = spent
            save(file, networks, optimizer, average, step, spent)
            export(work, average, data.deviation, data.used, step, spent, options.seed)
    if log:
        save(file, networks, optimizer, average, step, spent)
        export(work, average, data.deviation, data.used, step, spent, options.seed)
        log(f"done at step {step}, minute {spent:.1f}")


def save(
    file: Path, networks: torch.nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int, spent: float
) -> None:
    partial = file.with_suffix(".partial")
    torch.save(
        {"networks": networks.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step, "spent": spent}, partial
    )
    partial.replace(file)


def export(work: Path, average: dict[str, Tensor], deviation: float, used: Tensor, step: int, spent: float, seed: int) -> None:
    """Writes the checkpoint file of the averaged weights into `work`. Words that no caption has are all zero: they say nothing."""
    from comfy.taesd.taesd import TAESD

    narrow = NarrowAutoencoder()
    narrow.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True, map_location="cpu")["average"])
    reference = TAESD(latent_channels=4).state_dict()
    autoencoder = padded(narrow, deviation * tiny_model.SCALE_FACTOR, reference)
    unet = {key.removeprefix("unet."): value for key, value in average.items() if key.startswith("unet.")}
    text = tiny_model.TextEncoder()
    text.load_state_dict({key.removeprefix("text."): value for key, value in average.items() if key.startswith("text.")})
    with torch.no_grad():
        unknown = torch.ones(len(text.table), dtype=torch.bool)
        unknown[used.cpu()] = False
        text.table[unknown] = 0
    about = {"format": "maskprompt tiny sd inpainting 1", "step": str(step), "minutes": f"{spent:.1f}", "seed": str(seed)}
    tiny_model.save_checkpoint(work / tiny_model.CHECKPOINT.name, unet, text.comfyui_state(), autoencoder, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--minutes", type=float, default=110)
    parser.add_argument("--scenes", type=int, default=48_000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1.35e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="begin with the weights of this checkpoint (a new run of its own length)")
    parser.add_argument("--processes", type=int, default=1 if torch.cuda.is_available() else os.cpu_count() or 1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.start is not None and not (options.work / "autoencoder.pt").is_file():
        torch.save({"average": narrowed(tiny_model.load_checkpoint(options.start)[2]).state_dict()}, options.work / "autoencoder.pt")
    with tempfile.TemporaryDirectory() as folder:
        meet = (Path(folder) / "meet").as_uri()
        if options.processes == 1:
            train(0, 1, meet, options)
        else:
            spawn(train, (options.processes, meet, options), nprocs=options.processes)


if __name__ == "__main__":
    main()
