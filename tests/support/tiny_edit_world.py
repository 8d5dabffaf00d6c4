"""A world of tiny-edit's shape without any download: drawn cut-outs for every thing, drawn grounds, and two made-up photographs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from demo import autoencoder
from demo.registration.words import whole_words
from demo.server import Server
from demo.tiny_edit import files, folders, grounds, latents, sentences, shards, stages, text, things, train, world
from demo.tiny_edit.transformer import Flux


def cut_out(number: int) -> np.ndarray:
    """A coloured figure on nothing, another for every number: uint8 [64, 64, 4]."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGBA", (64, 64))
    colour = (*(int(value) for value in rng.integers(40, 255, 3)), 255)
    draw = ImageDraw.Draw(picture)
    left, top = (int(value) for value in rng.integers(2, 14, 2))
    (draw.ellipse if number % 2 else draw.rectangle)((left, top, 60 - top, 60 - left), fill=colour)
    return np.asarray(picture)


def make(folder: Path, photographs: tuple[str, ...] = ("beach", "coffee")) -> world.World:
    """Writes the world into a training folder and loads it: all things (held-out ones too), one photograph of training, one held out."""
    place = folder / "world"
    (place / "things").mkdir(parents=True)
    (place / "grounds").mkdir()
    for number, code in enumerate((*things.TRAINING, *things.HELD_OUT)):
        Image.fromarray(cut_out(number)).save(place / "things" / f"{code}.webp", lossless=True)
    for number, name in enumerate(photographs):
        assert name in grounds.BY_NAME
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(place / "grounds" / f"{name}.jpg")
    return world.load(place)


def quartered(folder: Path, codes: Sequence[str]) -> world.World:
    """The same; cut-outs of `codes` with something inside their outlines: four quarters of colours of their own."""
    found = make(folder)
    for number, code in enumerate(codes):
        pixels = found.cut_outs[code].copy()
        colours = np.random.default_rng(number + 50).integers(0, 255, (2, 2, 3))
        pixels[..., :3] = np.kron(colours, np.ones((32, 32, 1), int)).astype(np.uint8)
        found.cut_outs[code] = pixels
    return found


def prepare(folder: Path) -> None:
    """A training folder that needs no tokenizer and no trained autoencoder: world, vocabulary and an autoencoder of random weights."""
    make(folder)
    words = {word: [number + 300] for number, word in enumerate(sentences.vocabulary())}
    torch.manual_seed(0)
    network = autoencoder.NarrowAutoencoder(latents.CHANNELS)
    folders.save(network.state_dict(), folder / latents.FILE)
    (folder / text.FILE).write_text(json.dumps(words), "utf-8")


def with_records(folder: Path) -> Path:
    """Prepares the folder, and records of 32 and 64 pixels in it."""
    prepare(folder)
    for size in (32, 64):
        list(shards.make(folder, size, shards.SHARD, device=torch.device("cpu")))
    return folder


def beside(folder: Path, target: Path) -> Path:
    """Makes a training folder with the world, records, vocabulary and autoencoder of another one."""
    target.mkdir()
    for name in ("world", "shards", text.FILE, latents.FILE):
        (target / name).symlink_to(folder / name)
    return target


def random_weights(folder: Path, seed: int = 3) -> train.Training:
    """Prepares the folder with ComfyUI's tokenizer and a state whose average is random everywhere."""
    prepare(folder)
    (folder / text.FILE).unlink()
    run = train.Training(folder, stages.stages_of("64:2"), 1e-3, 0, 64, make=False)
    generator = torch.Generator().manual_seed(seed)
    run.average = {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in run.average.items()}
    run.save()
    return run


def serve(server: Server, folder: Path) -> None:
    """Gives a server tiny-edit of random weights, in the folders of the stock loaders."""
    random_weights(folder)
    for file, kind in zip(files.write(folder, folder / "files"), ("diffusion_models", "text_encoders", "vae"), strict=True):
        server.add_model(kind, file)


def flux_of(file: Path) -> Flux:
    """The transformer with a file's weights in float32."""
    network = Flux()
    network.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return network.eval()


def text_of(file: Path, folder: Path) -> text.TextEncoder:
    """The text encoder with a file's weights in float32, of the words of the folder's vocabulary."""
    ids = text.Vocabulary.load(folder).ids
    encoder = text.TextEncoder(ids)
    whole = whole_words(load_file(file))
    state = {name.removeprefix("text_model."): value.float() for name, value in whole.items() if name.startswith("text_model.")}
    table = "embeddings.token_embedding.weight"
    encoder.load_state_dict({**state, table: state[table][ids]})
    return encoder.eval()
