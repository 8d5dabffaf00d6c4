"""Real photographs that scikit-image and scikit-learn carry in their wheels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TRAINING: tuple[str, ...] = ("astronaut", "camera", "rocket", "flower", "motorcycle_left", "gravel", "hubble_deep_field")
HELD_OUT: tuple[str, ...] = ("coffee", "chelsea", "china")


def path_of(name: str) -> Path:
    """The file of a photograph; FileNotFoundError if neither package has it."""
    import skimage.data

    folders = [Path(skimage.data.__file__).parent]
    try:
        import sklearn.datasets

        folders.append(Path(sklearn.datasets.__file__).parent / "images")
    except ImportError:
        pass
    for folder in folders:
        for suffix in (".png", ".jpg"):
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    raise FileNotFoundError(f"no photograph {name!r} in scikit-image or scikit-learn")


def load(name: str) -> np.ndarray:
    """The photograph as uint8 [H, W, 3]."""
    with Image.open(path_of(name)) as image:
        return np.asarray(image.convert("RGB"))


def crop(photo: np.ndarray, rng: np.random.Generator, size: int = 128) -> np.ndarray:
    """A random square crop, between a quarter and all of the short side, mirrored half of the time."""
    short = min(photo.shape[:2])
    side = int(short * rng.uniform(0.3, 1.0))
    top, left = int(rng.integers(photo.shape[0] - side + 1)), int(rng.integers(photo.shape[1] - side + 1))
    piece = Image.fromarray(photo[top : top + side, left : left + side]).resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(piece)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels
