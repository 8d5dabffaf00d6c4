"""What the tiny UNet learns from: scenes and photographs with captions, boxes to paint into, and their latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from . import photos, scenes, tiny_model
from .autoencoder import NarrowAutoencoder
from .trainer import Log, device_of


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


class Examples:
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
