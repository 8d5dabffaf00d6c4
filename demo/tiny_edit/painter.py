"""Paints with tiny-edit without ComfyUI, which paints the same (a test holds them together), and lays pictures out on a page.

    python -m demo.tiny_edit.painter page.png

paints 64 sentences whose thing and ground training never showed together, not chosen, from the files in `demo`; with `--folder`, from a
training's averaged weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..trainer import device_of
from . import TRANSFORMER, files, folders, grounds, records, sentences, things, train, world
from .latents import CHANNELS, Latents
from .text import Vocabulary, tokenized

STEPS = 20
CFG = 3.5
SHIFT = 3.0
"""How long sampling stays at high noise, where outlines are found: time t becomes s t / (1 + (s - 1) t), as in ComfyUI's flow models.

The tables' kept pictures (`demo/work`) know nothing of it: remove them where it changes."""
AT_ONCE = 16


@dataclass(frozen=True)
class Painter:
    """The networks of a training folder, or of tiny-edit's files."""

    networks: train.Networks
    latents: Latents
    vocabulary: Vocabulary
    device: torch.device

    @classmethod
    def load(cls, folder: Path) -> Painter:
        """Takes the files, if the folder has them, else the averaged weights of a training's last saved state."""
        device = device_of()
        if (folder / TRANSFORMER).is_file():
            vocabulary = Vocabulary(tokenized())
            weights, latents, _ = files.read(folder, vocabulary)
        else:
            vocabulary = Vocabulary.load(folder)
            weights = torch.load(folder / train.STATE, weights_only=True, map_location="cpu")["average"]
            latents = Latents.load(folder)
        networks = train.Networks(vocabulary)
        networks.load_state_dict({name: value.float() for name, value in weights.items()})
        return cls(networks.to(device).eval(), Latents(latents.autoencoder, device), vocabulary, device)

    @torch.no_grad()
    def paint(
        self,
        texts: Sequence[str],
        references: Sequence[Tensor] = (),
        seed: int = 0,
        size: int = 256,
        steps: int = STEPS,
        cfg: float = CFG,
        spacing: float | None = None,
        guided: int = 0,
    ) -> Tensor:
        """Pictures [B, 3, size, size] in 0..1 of sentences; each of the references is pictures [B, 3, H, W] in 0..1.

        Euler's method on flow matching, with classifier-free guidance against no words and the same references, less the first `guided` of
        them: guidance goes to those as it does to the words. Tokens stand so far apart that a picture of any size covers the positions of
        256 pixels, as in training, unless `spacing` says how far (ComfyUI: 1).
        """
        painted = []
        for begin in range(0, len(texts), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            noise = torch.randn(len(texts[part]), CHANNELS, size // 8, size // 8, generator=torch.Generator().manual_seed(seed + begin)).to(
                self.device
            )
            held = [self.latents.encode(pictures[part].to(self.device)) for pictures in references]
            shown = (held, held[guided:])
            painted.append(self.latents.decode(self._sample(noise, texts[part], shown, spacing or 256 / size, steps, cfg)).cpu())
        return torch.cat(painted)

    def _sample(
        self, x: Tensor, texts: Sequence[str], references: tuple[list[Tensor], list[Tensor]], spacing: float, steps: int, cfg: float
    ) -> Tensor:
        """Samples; the references are those beside the words and those beside none."""
        spoken = self.networks.text(self.vocabulary.batch(texts).to(self.device))
        silent = self.networks.text(self.vocabulary.batch([""] * len(texts)).to(self.device))
        even = torch.linspace(1, 0, steps + 1, device=self.device)
        for now, then in pairwise(SHIFT * even / (1 + (SHIFT - 1) * even)):
            positive, negative = (
                self.networks.flux(x, now.expand(len(x)), *words, held, spacing)
                for words, held in zip((spoken, silent), references, strict=True)
            )
            x = x + (then - now) * (negative + cfg * (positive - negative))
        return x


def held_out_pairs(place: world.World) -> list[tuple[str, str]]:
    """Named things and grounds of training that it never paints together; of grounds on which the thing would stand or float."""
    return [(code, ground) for code in things.NAMED for ground in place.grounds() if records.held_out(code, ground)]


def held_out_sentences(place: world.World, count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Sentences of held-out pairs: (sentence, thing, ground)."""
    pairs = held_out_pairs(place)
    order = np.random.default_rng(seed).permutation(len(pairs))[:count]
    chosen = [pairs[index] for index in order]
    return [(f"{sentences.together([things.words_of(code)])} {grounds.words_of(ground)}", code, ground) for code, ground in chosen]


def page(pictures: Tensor, captions: Sequence[str], across: int = 8, cell: int = 192) -> Image.Image:
    """Pictures [B, 3, H, W] in 0..1 with their captions below them."""
    rows = -(-len(captions) // across)
    sheet = Image.new("RGB", (across * cell, rows * (cell + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = number % across * cell, number // across * (cell + 14)
        pixels = (picture.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels).resize((cell - 2, cell - 2), Image.Resampling.LANCZOS), (left, top))
        draw.text((left + 2, top + cell - 2), caption[: cell // 6], fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders.arguments(parser)
    parser.set_defaults(folder=Path(__file__).resolve().parent.parent)
    parser.add_argument("file", type=Path, help="the page, a PNG")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side; a training in its first stage knows 128")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folders.begin(options)
    chosen = held_out_sentences(world.load(folders.world(options.folder)), options.count)
    texts = [text for text, _, _ in chosen]
    pictures = Painter.load(options.folder).paint(texts, seed=options.seed, size=options.size)
    page(pictures, texts).save(options.file)


if __name__ == "__main__":
    main()
