"""What the tiny depth ControlNet learns from: the tiny model's pictures with depth hints that are drawn for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from demo.pack import load_pack

from . import photos, tiny_model
from .autoencoder import narrowed
from .tiny_examples import latent_mask, random_example
from .trainer import Log, device_of

if TYPE_CHECKING:
    pass

HINT = 3
WORDLESS = 0.3
"""How often the caption is left out: what the hint shows has to be learned from the hint."""


def draw_hint(rng: np.random.Generator, objects: np.ndarray) -> np.ndarray:
    """A depth picture as Depth Hint makes it, float32 [H, W] in 0..1, white near, of the objects' mask [H, W] in 0..1.

    Behind: flat and far, or a floor that rises towards the bottom. Before it, in the near half: objects that are flat, tilted or
    bulging. Soft or sharp edges; sometimes blurred and noisy, as depth estimators are.
    """
    load_pack()
    from maskprompt.images import depth_hint

    height, width = objects.shape
    y, x = np.linspace(0, 1, height, dtype=np.float32)[:, None], np.linspace(0, 1, width, dtype=np.float32)[None]
    far = rng.uniform(0, 0.25)
    behind = np.full((height, width), far, np.float32)
    if rng.random() < 0.6:
        horizon = rng.uniform(0, 0.6) if rng.random() < 0.5 else 0.0
        floor = np.clip((y - horizon) / (1 - horizon), 0, 1) ** rng.uniform(0.7, 2)
        behind += (rng.uniform(0.3, 0.9) - far) * floor
    relief = np.asarray(ndimage.zoom(rng.standard_normal((4, 4)), (height / 4, width / 4), order=1), np.float32)
    behind += rng.uniform(0, 0.04) * relief
    kind = rng.random()
    angle = rng.uniform(0, 2 * math.pi)
    front = np.ones_like(behind)
    if kind > 0.7:
        inside = np.asarray(ndimage.distance_transform_edt(objects > 0.5), np.float32)
        front = np.sqrt(inside / max(1.0, float(inside.max())))
    elif kind > 0.4:
        front = np.clip(0.5 + (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle), 0, 1)
    near = rng.uniform(0.75, 1)
    front = 0.5 + (near - 0.5) * (1 - rng.uniform(0, 0.7) * (1 - front))
    feather = int(rng.integers(0, 7)) if rng.random() < 0.7 else 0
    parts = [torch.from_numpy(np.ascontiguousarray(part, np.float32))[None] for part in (behind.clip(0, 1), front, objects)]
    ground, product, mask = parts
    drawn = depth_hint.hint(ground, torch.ones_like(mask, dtype=torch.bool), product, mask, None, True, feather)[0].numpy()
    if rng.random() < 0.5:
        drawn = ndimage.gaussian_filter(drawn, rng.uniform(0, 1.2))
    if rng.random() < 0.5:
        drawn = drawn + rng.uniform(0, 0.02) * rng.standard_normal(drawn.shape)
    return np.asarray(drawn, np.float32).clip(0, 1)


@torch.no_grad()
def encode(work: Path, autoencoder: dict[str, Tensor], count: int, seed: int, log: Log) -> dict[str, Any]:
    """The training set, made once and kept in `work`: latents as the UNet sees them, conditions, loss weights, hints, captions."""
    file = work / f"hints-{count}-{seed}.pt"
    if file.is_file():
        return torch.load(file, weights_only=True)
    device = device_of()
    narrow = narrowed(autoencoder)
    narrow.to(device).to(memory_format=torch.channels_last).eval()
    deviation = autoencoder["vae_scale"].item() / tiny_model.SCALE_FACTOR
    pictures = [photos.load(name) for name in photos.TRAINING]
    rng = np.random.default_rng([seed, count])
    blank = torch.tensor(tiny_model.BLANK).half()[None, :, None, None]
    parts: dict[str, list[Tensor]] = {name: [] for name in ("latents", "masked", "masks", "weights", "hints")}
    captions: list[str] = []
    for start in range(0, count, 64):
        batch = [random_example(rng, pictures) for _ in range(min(64, count - start))]
        images = torch.from_numpy(np.stack([e.image for e in batch])).to(device).permute(0, 3, 1, 2).float() / 255
        hole = torch.from_numpy(np.stack([e.mask for e in batch])).to(device)
        boxed = hole.flatten(1).min(1).values == 0
        hidden = (images - 0.5) * (1 - hole[:, None]) + 0.5
        both = torch.cat([images, hidden[boxed]]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            encoded = (narrow.encode(both).float() / deviation).cpu().half()
        latents = encoded[: len(batch)]
        masked = blank.repeat(len(batch), 1, *encoded.shape[2:])
        masked[boxed.cpu()] = encoded[len(batch) :]
        hints = np.stack([(draw_hint(rng, e.weight) * 255).round().astype(np.uint8) for e in batch])
        weights = F.avg_pool2d(torch.from_numpy(np.stack([e.weight for e in batch]))[:, None], 8).half()
        made = (latents, masked, latent_mask(hole).cpu().to(torch.uint8), weights, torch.from_numpy(hints))
        for name, part in zip(parts, made, strict=True):
            parts[name].append(part)
        captions += [e.caption for e in batch]
        if start % 640 == 0:
            log(f"drawn {start} of {count}")
    data: dict[str, Any] = {name: torch.cat(found) for name, found in parts.items()} | {"captions": captions}
    torch.save(data, file)
    return data


class Examples:
    """The training set on the device, captions as token ids. Half of a batch's pictures are whole ones, from text alone."""

    def __init__(self, data: dict[str, Any], device: torch.device) -> None:
        self.latents, self.masked, self.masks = (data[name].to(device).float() for name in ("latents", "masked", "masks"))
        self.weights = 0.4 + 3 * F.max_pool2d(data["weights"].to(device).float(), 3, 1, 1)  # as for the base
        self.hints = data["hints"].to(device)
        whole = self.masks.flatten(1).min(1).values > 0
        self.chance = torch.where(whole, 1 / whole.sum().clamp(min=1), 1 / (~whole).sum().clamp(min=1)).cpu()
        words = tiny_model.tokenizer()
        tokens = torch.tensor(words([*data["captions"], ""], padding="max_length", max_length=77, truncation=True)["input_ids"])
        tokens[:-1][tokens[:-1] == words.pad_token_id] = words.eos_token_id
        self.tokens = tokens.to(device)
        self.device = device

    def batch(self, generator: torch.Generator, size: int) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """What `train_tiny.loss_of` takes (latents, conditions, loss weights, tokens), and the hints [B, 3, 8h, 8w]."""
        index = torch.multinomial(self.chance, size, replacement=True, generator=generator).to(self.device)
        tokens = self.tokens[index].clone()
        tokens[(torch.rand(size, generator=generator) < WORDLESS).to(self.device)] = self.tokens[-1]
        hints = (self.hints[index].float() / 255)[:, None].expand(-1, HINT, -1, -1)
        return (self.latents[index], torch.cat([self.masks[index], self.masked[index]], 1), self.weights[index], tokens), hints
