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
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import tiny_model
from .autoencoder import NarrowAutoencoder, narrowed, padded
from .tiny_examples import Examples, encode
from .trainer import Log, cosine, device_of

tiny_model.comfyui_on_path()


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
    data = Examples(encode(work, options.scenes // size, options.seed + rank), device)
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
