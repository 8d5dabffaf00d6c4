"""Scenes of coloured boxes, drawn exactly."""

from __future__ import annotations

import torch
from maskprompt.training.mcgm.scene import Scene

RED = (1.0, 0.0, 0.0)
GREEN = (0.0, 1.0, 0.0)
BLUE = (0.0, 0.0, 1.0)
COLOURS = torch.tensor([RED, GREEN, BLUE])
Boxes = tuple[tuple[int, int, int, int], ...]
TWO: Boxes = ((8, 10, 30, 24), (50, 60, 28, 44))
THREE: Boxes = (*TWO, (70, 6, 20, 36))


def scene_of(boxes: Boxes = TWO, height: int = 96, width: int = 128, seed: int = 0) -> Scene:
    """Rectangles (top, left, height, width), each of a colour of its own, on a ground of noise."""
    image = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25
    masks = torch.zeros(len(boxes), height, width)
    for number, (top, left, tall, wide) in enumerate(boxes):
        image[top : top + tall, left : left + wide] = COLOURS[number]
        masks[number, top : top + tall, left : left + wide] = 1
    return Scene(image, masks)
