"""What tiny-edit is given in place of the pictures that the transformers' workflows load: things of its own world, painted by itself.

    python -m demo.edit_pictures

paints them anew, from words, when its weights have changed. It knows no real cup and no real cat. Each picture has the name and the size
of the one that it stands in for, and its things are where the workflows click and where they leave room.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import stand_ins, tiny_edit
from .server import ROOT, Prompt

FOLDER = ROOT / "demo" / "tiny-edit-pictures"
QUALITY = 92


@dataclass(frozen=True)
class Painted:
    """The sentence, the seed (chosen by eye among twelve), what is painted (width, height), what is kept of it (left, top, right, bottom in
    0..1), and the size of the file that it stands in for."""

    text: str
    seed: int
    size: tuple[int, int]
    kept: tuple[float, float, float, float]
    stands_for: tuple[int, int]


PICTURES: dict[str, Painted] = {
    "coffee": Painted("a mug on brown planks", 8, (256, 176), (0.0, 0.0, 1.0, 0.97), (600, 400)),
    "chelsea": Painted("a cat before a yellow wall", 4, (256, 256), (0.0, 0.25, 1.0, 0.915), (451, 300)),
    "two-products": Painted("a present on the left and a ball on the right on snow", 8, (256, 256), (0.0, 0.0, 1.0, 1.0), (512, 512)),
}
"""By the name of the file without its ending."""


def graph(painted: Painted) -> Prompt:
    """The stock nodes that paint it."""
    width, height = painted.size
    liked = {field: value for (kind, field), value in stand_ins.EDIT_CHANGES.items() if kind == "KSampler"}
    sampling = {**liked, "seed": painted.seed, "denoise": 1.0}
    links = {"model": ["model", 0], "positive": ["words", 0], "negative": ["silence", 0], "latent_image": ["empty", 0]}
    return {
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": tiny_edit.TRANSFORMER, "weight_dtype": "default"}},
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": tiny_edit.TEXT, "type": "flux2"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": tiny_edit.AUTOENCODER}},
        "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": painted.text}},
        "silence": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": ""}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": width, "height": height, "batch_size": 1}},
        "sample": {"class_type": "KSampler", "inputs": {**sampling, **links}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "tiny-edit"}},
    }


def fitted(picture: Image.Image, painted: Painted) -> Image.Image:
    """What is kept of a painted picture, at the size of the file that it stands in for."""
    left, top, right, bottom = painted.kept
    box = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
    return picture.convert("RGB").resize(painted.stands_for, Image.Resampling.LANCZOS, box)


def load(name: str) -> np.ndarray:
    """The picture that stands in for `name`, uint8 [H, W, 3]."""
    with Image.open(FOLDER / f"{name}.webp") as picture:
        return np.asarray(picture.convert("RGB"))


def main() -> None:
    from . import run

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="maskprompt-") as folder, run.stage(Path(folder)) as server:
        for name, painted in PICTURES.items():
            saved = server.run(graph(painted)).outputs["save"]["images"][0]
            with Image.open(server.file_of(saved)) as picture:
                fitted(picture, painted).save(FOLDER / f"{name}.webp", quality=QUALITY)


if __name__ == "__main__":
    main()
