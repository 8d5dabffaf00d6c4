"""Pictures of objects, and stand-ins for SAM and BLIP that find and tell them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from maskprompt.models.sam import model as sam
from PIL import Image
from torch import Tensor

SQUARE = 256
"""The side of the padded square that the stand-ins for SAM work on; their masks have a quarter of it."""
SURE = 8.0


class Sam:
    """Stands for SAM: an object is what has one flat colour, and black is none. Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, int], tuple[float, float]]] = []

    def embed(self, image: Tensor) -> Tensor:
        return image

    def ask(self, image: Tensor, prompt: sam.Prompt) -> sam.Answer:
        ((x, y, positive),) = prompt.points
        assert positive
        self.asked.append(((image.shape[0], image.shape[1]), (x, y)))
        at = image[int(y), int(x)]
        found = (image == at).all(-1) & bool(at.any())
        height, width = sam.fit(image.shape[0], image.shape[1], SQUARE // 4)
        rows, columns = (((torch.arange(to) + 0.5) * size / to).long() for to, size in zip((height, width), image.shape[:2], strict=True))
        logits = torch.full((3, SQUARE // 4, SQUARE // 4), -SURE)
        logits[0, :height, :width] = torch.where(found[rows][:, columns], SURE, -SURE)
        return sam.Answer(logits, torch.tensor([0.95, 0.99, 0.99]))

    def full_size(self, logits: Tensor, height: int, width: int) -> Tensor:
        return sam.LoadedSam.full_size(SimpleNamespace(image_size=SQUARE), logits, height, width)  # pyright: ignore[reportArgumentType]


def scene(*boxes: tuple[int, int, int, int], height: int = 48, width: int = 64) -> Tensor:
    """[H, W, 3]: rectangles (left, top, width, height) of different colours on black, the later ones above."""
    image = torch.zeros(height, width, 3)
    for number, (left, top, across, down) in enumerate(boxes, 1):
        image[top : top + down, left : left + across] = torch.tensor([number * 20 / 255, 1.0, 100 / 255])
    return image


def box(left: int, top: int, across: int, down: int, height: int = 48, width: int = 64) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + down, left : left + across] = True
    return mask


ONE = (8, 8, 24, 24)
TWO = (40, 8, 16, 32)


class Writer:
    """Stands for BLIP: a picture's caption is its size. Remembers how many pictures it was given."""

    def __init__(self) -> None:
        self.groups: list[int] = []

    def __call__(self, images: Sequence[Tensor]) -> list[str]:
        self.groups.append(len(images))
        return [f"  {image.shape[1]} x\n{image.shape[0]} pixels " for image in images]


def draw(place: Path, names: str = "abc") -> Path:
    """Pictures with an object, and one ("x") of nothing."""
    place.mkdir()
    for number, name in enumerate(names):
        boxes = [] if name == "x" else [ONE, TWO][: 1 + number % 2]
        Image.fromarray((scene(*boxes) * 255).byte().numpy()).save(place / f"{name}.png")
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return draw(tmp_path / "pictures", "abxc")
