"""The shapes and grounds of the tiny model's world, drawn from formulas."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

SHAPES: tuple[str, ...] = ("ball", "box", "triangle", "star", "heart", "moon", "ring", "cross", "arrow", "fish")
GROUNDS: tuple[str, ...] = ("grass", "sand", "sky", "water", "wood", "bricks", "snow", "night")


def _polygon(points: list[tuple[float, float]], size: int, tilt: float) -> Image.Image:
    """Draws a polygon given in -1..1 (y down) as an antialiased mask of `size` pixels."""
    scale = 4
    cos = math.cos(math.radians(tilt))
    sin = math.sin(math.radians(tilt))
    radius = size * scale / 2
    turned = [(radius + radius * (x * cos - y * sin), radius + radius * (x * sin + y * cos)) for x, y in points]
    mask = Image.new("L", (size * scale, size * scale), 0)
    ImageDraw.Draw(mask).polygon(turned, fill=255)
    return mask.resize((size, size), Image.Resampling.BOX)


def _circle(x: float, y: float, radius: float, steps: int = 48) -> list[tuple[float, float]]:
    return [(x + radius * math.cos(2 * math.pi * i / steps), y + radius * math.sin(2 * math.pi * i / steps)) for i in range(steps)]


def _minus(first: Image.Image, second: Image.Image) -> Image.Image:
    return Image.fromarray(np.minimum(np.asarray(first), 255 - np.asarray(second)))


def _plus(first: Image.Image, second: Image.Image) -> Image.Image:
    return Image.fromarray(np.maximum(np.asarray(first), np.asarray(second)))


def shape_mask(shape: str, size: int, tilt: float = 0.0) -> np.ndarray:
    """The shape as float32 [size, size] in 0..1."""
    if shape == "ball":
        mask = _polygon(_circle(0, 0, 0.88), size, 0)
    elif shape == "box":
        mask = _polygon([(-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)], size, tilt)
    elif shape == "triangle":
        mask = _polygon([(0, -0.9), (0.9, 0.72), (-0.9, 0.72)], size, tilt)
    elif shape == "star":
        points = []
        for i in range(10):
            radius = 0.95 if i % 2 == 0 else 0.4
            points.append((radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5)))
        mask = _polygon(points, size, tilt)
    elif shape == "heart":
        points = []
        for i in range(60):
            a = 2 * math.pi * i / 60
            x = 16 * math.sin(a) ** 3
            y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
            points.append((x / 18, -(y + 2.5) / 18))
        mask = _polygon(points, size, tilt)
    elif shape == "moon":
        mask = _minus(_polygon(_circle(0.1, 0, 0.85), size, tilt), _polygon(_circle(0.55, 0, 0.72), size, tilt))
    elif shape == "ring":
        mask = _minus(_polygon(_circle(0, 0, 0.9), size, 0), _polygon(_circle(0, 0, 0.46), size, 0))
    elif shape == "cross":
        a = 0.3
        b = 0.88
        points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a)]
        mask = _polygon([*points, (-a, -a)], size, tilt)
    elif shape == "arrow":
        points = [(-0.9, -0.26), (0.1, -0.26), (0.1, -0.7), (0.92, 0), (0.1, 0.7), (0.1, 0.26), (-0.9, 0.26)]
        mask = _polygon(points, size, tilt)
    elif shape == "fish":
        body = _polygon([(x * 1.0 + 0.22, y * 0.62) for x, y in _circle(0, 0, 0.72)], size, tilt)
        mask = _plus(body, _polygon([(-0.3, 0), (-0.95, -0.58), (-0.8, 0), (-0.95, 0.58)], size, tilt))
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return np.asarray(mask, dtype=np.float32) / 255


def _noise(rng: np.random.Generator, size: int, cells_y: int, cells_x: int) -> np.ndarray:
    """Smooth noise in 0..1: a random grid, enlarged."""
    grid = Image.fromarray((rng.random((cells_y + 1, cells_x + 1)) * 255).astype(np.uint8))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _blend(a: tuple[int, int, int], b: tuple[int, int, int], t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0, 1)[..., None]
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def ground_pixels(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A drawn ground as float32 [size, size, 3] in 0..255."""
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None].repeat(size, 1)
    if name == "grass":
        picture = _blend((40, 105, 30), (110, 175, 60), 0.35 * _noise(rng, size, 4, 4) + 0.65 * _noise(rng, size, 14, 40))
    elif name == "sand":
        dunes = 0.5 + 0.5 * np.sin(down * 9 + 5 * _noise(rng, size, 2, 3) + rng.random() * 6)
        picture = _blend((205, 175, 115), (240, 215, 160), 0.6 * dunes + 0.4 * _noise(rng, size, 50, 50))
    elif name == "sky":
        cloud = np.clip(2.6 * (0.65 * _noise(rng, size, 3, 4) + 0.35 * _noise(rng, size, 8, 10)) - 1.2, 0, 1)
        base = _blend((70, 145, 230), (165, 210, 250), down)
        picture = base * (1 - cloud[..., None]) + 250 * cloud[..., None]
    elif name == "water":
        waves = np.sin(down * (26 + 8 * rng.random()) + 7 * _noise(rng, size, 4, 3)) * 0.5 + 0.5
        picture = _blend((5, 85, 105), (60, 165, 170), 0.7 * waves + 0.3 * _noise(rng, size, 20, 6))
    elif name == "wood":
        plank = size / (3 + rng.integers(0, 2))
        rows = (np.arange(size) + rng.random() * plank)[:, None].repeat(size, 1)
        tone = rng.random(8)[(rows // plank).astype(int)]
        grain = 0.5 + 0.5 * np.sin(rows / size * 120 + 8 * _noise(rng, size, 6, 2))
        picture = _blend((105, 62, 30), (175, 118, 65), 0.45 * tone + 0.35 * grain + 0.2 * _noise(rng, size, 30, 3))
        picture[(rows % plank) < size / 80] *= 0.55
    elif name == "bricks":
        height = size / (6 + rng.integers(0, 3))
        rows = (np.arange(size) + rng.random() * height)[:, None].repeat(size, 1)
        row = (rows // height).astype(int)
        columns = np.arange(size)[None].repeat(size, 0) + (row % 2) * height + rng.random() * height
        tone = rng.random((32, 32))[row % 32, (columns // (2 * height)).astype(int) % 32]
        picture = _blend((135, 55, 40), (185, 90, 65), 0.7 * tone + 0.3 * _noise(rng, size, 40, 40))
        mortar = ((rows % height) < size / 50) | ((columns % (2 * height)) < size / 50)
        picture[mortar] = (205, 195, 185)
    elif name == "snow":
        picture = _blend((190, 208, 232), (250, 252, 255), 0.25 + 0.6 * _noise(rng, size, 3, 3) + 0.3 * _noise(rng, size, 24, 24))
    elif name == "night":
        picture = _blend((22, 26, 72), (58, 52, 124), 0.5 * down + 0.5 * _noise(rng, size, 3, 3))
        for _ in range(int(rng.integers(18, 36))):
            y, x = rng.integers(0, size, 2)
            r = max(1, size // 90)
            picture[y : y + r, x : x + r] = 190 + 65 * rng.random()
    else:
        raise ValueError(f"unknown ground {name!r}; known: {', '.join(GROUNDS)}")
    return picture * (0.94 + 0.12 * rng.random())
