"""Scenes with exact captions, masks and boxes: what the tiny model learns from and is judged on.

A scene is one or two objects (shape x paint) on a ground. `render` draws it at any size; the same
`Scene` always gives the same picture. Grounds are drawn here, or are crops of real photographs
(`photos.py`).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAPES: tuple[str, ...] = ("ball", "box", "triangle", "star", "heart", "moon", "ring", "cross", "arrow", "fish")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 220, 50),
    "green": (30, 160, 70),
    "blue": (30, 90, 220),
    "purple": (140, 50, 190),
    "white": (245, 245, 245),
    "black": (35, 35, 40),
}
GROUNDS: tuple[str, ...] = ("grass", "sand", "sky", "water", "wood", "bricks", "snow", "night")
PHOTO = "photo"
PATTERNS: tuple[str, ...] = ("halves", "stripes", "dots")
MEAN_LIGHT = 0.94
"""How bright an object is on average under the light that `render` puts on it."""
PREFIXES: tuple[str, ...] = ("", "", "", "a photo of ")


@dataclass(frozen=True)
class Paint:
    """One colour, or a pattern of two (the family of subjects that training never sees)."""

    colour: str
    second: str | None = None
    pattern: str | None = None

    @property
    def words(self) -> str:
        if self.pattern is None:
            return self.colour
        return f"{self.colour} and {self.second} {self.pattern}"


@dataclass(frozen=True)
class Thing:
    """An object: its shape and paint, its centre and size as fractions of the picture, its tilt in degrees."""

    shape: str
    paint: Paint
    x: float
    y: float
    size: float
    tilt: float = 0.0

    @property
    def words(self) -> str:
        return f"{'an' if self.paint.words[0] in 'aeiou' else 'a'} {self.paint.words} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects, from left to right, on a ground. `photo` is the ground's pixels when the ground is a photograph."""

    things: tuple[Thing, ...]
    ground: str
    seed: int = 0
    photo: np.ndarray | None = field(default=None, compare=False, repr=False)

    def caption(self, with_ground: bool = True, prefix: str = "") -> str:
        text = prefix + " and ".join(thing.words for thing in self.things)
        return f"{text} on {'a ' if self.ground == PHOTO else ''}{self.ground}" if with_ground else text


@dataclass(frozen=True)
class Rendered:
    """`image` uint8 [H, W, 3]; `masks` float32 [N, H, W] in 0..1; `boxes` (x, y, width, height) in pixels."""

    image: np.ndarray
    masks: np.ndarray
    boxes: list[tuple[int, int, int, int]]


def vocabulary() -> list[str]:
    """Texts that hold every word that a caption can have."""
    words = [*SHAPES, *COLOURS, *GROUNDS, PHOTO, *PREFIXES]
    return [*words, "a an and on"]


def held_out(shape: str, colour: str, ground: str) -> bool:
    """About a third of the shape x colour x ground triples, never shown in training (stable over versions)."""
    return zlib.crc32(f"{shape}/{colour}/{ground}".encode()) % 3 == 0


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


def _pixels_of(paint: Paint, size: int, tilt: float) -> np.ndarray:
    """The paint's pixels, float32 [size, size, 3] in 0..255."""
    base = np.broadcast_to(np.asarray(COLOURS[paint.colour], np.float32), (size, size, 3)).copy()
    if paint.pattern is None:
        return base
    if paint.second is None:
        raise ValueError("a pattern takes two colours")
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle = math.radians(tilt)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    if paint.pattern == "halves":
        where = across > 0
    elif paint.pattern == "stripes":
        where = np.floor(across * 2.5 + 10) % 2 == 0
    elif paint.pattern == "dots":
        where = ((along * 2.2 + 10) % 1 - 0.5) ** 2 + ((across * 2.2 + 10) % 1 - 0.5) ** 2 < 0.09
    else:
        raise ValueError(f"unknown pattern {paint.pattern!r}; known: {', '.join(PATTERNS)}")
    base[where] = COLOURS[paint.second]
    return base


def render(scene: Scene, size: int = 128) -> Rendered:
    """Draws the scene as `size` x `size` pixels. Objects are drawn in order; a later one hides an earlier one."""
    rng = np.random.default_rng(scene.seed)
    if scene.photo is not None:
        photo = Image.fromarray(scene.photo).resize((size, size), Image.Resampling.LANCZOS)
        picture = np.asarray(photo, dtype=np.float32).copy()
    else:
        picture = ground_pixels(scene.ground, size, rng)
    masks = np.zeros((len(scene.things), size, size), np.float32)
    for index, thing in enumerate(scene.things):
        side = max(8, round(thing.size * size))
        alpha = shape_mask(thing.shape, side, thing.tilt)
        left, top = round(thing.x * size - side / 2), round(thing.y * size - side / 2)
        colour = _pixels_of(thing.paint, side, thing.tilt)
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        light = np.clip(1.08 - 0.2 * np.hypot(x + 0.35, y + 0.4), 0.78, 1.08)[..., None]
        full = np.zeros((size + 2 * side, size + 2 * side), np.float32)
        full[top + side : top + 2 * side, left + side : left + 2 * side] = alpha
        drop = max(1, side // 14)
        shade = Image.fromarray((np.roll(full, (drop, drop), (0, 1)) * 110).astype(np.uint8))
        shade = shade.filter(ImageFilter.GaussianBlur(max(0.8, side / 28)))
        window = slice(side, side + size)
        picture *= 1 - np.asarray(shade, np.float32)[window, window, None] / 255
        canvas = np.zeros((*full.shape, 3), np.float32)
        canvas[top + side : top + 2 * side, left + side : left + 2 * side] = colour * light
        cover = full[window, window]
        picture = picture * (1 - cover[..., None]) + canvas[window, window] * cover[..., None]
        masks[:index] *= 1 - cover
        masks[index] = cover
    image = np.clip(picture + rng.normal(0, 1.5, (size, size, 1)), 0, 255).astype(np.uint8)
    return Rendered(image, masks, [box_of(mask) for mask in masks])


def box_of(mask: np.ndarray, threshold: float = 0.5) -> tuple[int, int, int, int]:
    """The smallest (x, y, width, height) around what of the mask is over the threshold; zeros if nothing is."""
    ys, xs = np.nonzero(mask > threshold)
    if len(ys) == 0:
        return (0, 0, 0, 0)
    return (int(xs.min()), int(ys.min()), int(xs.max() - xs.min() + 1), int(ys.max() - ys.min() + 1))


def random_thing(rng: np.random.Generator, x: float, y: float, size: float) -> Thing:
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    return Thing(shape, Paint(colour), x, y, size, float(rng.uniform(-12, 12)))


def random_scene(
    rng: np.random.Generator,
    photo: np.ndarray | None = None,
    two: float = 0.3,
    allow_held_out: bool = False,
) -> Scene:
    """A training scene: one object, or with probability `two` two of them side by side; no held-out triple."""
    ground = PHOTO if photo is not None else GROUNDS[rng.integers(len(GROUNDS))]
    while True:
        if rng.random() < two:
            sizes = rng.uniform(0.28, 0.46, 2)
            things = tuple(
                random_thing(rng, float(rng.uniform(low + s * 0.5, low + 0.5 - s * 0.42)), float(rng.uniform(0.3, 0.7)), float(s))
                for low, s in zip((0.0, 0.5), sizes, strict=True)
            )
        else:
            s = float(rng.uniform(0.34, 0.68))
            low, high = s / 2 * 0.95, 1 - s / 2 * 0.95
            things = (random_thing(rng, float(rng.uniform(low, high)), float(rng.uniform(low, high)), s),)
        if allow_held_out or not any(held_out(t.shape, t.paint.colour, ground) for t in things):
            return Scene(things, ground, int(rng.integers(2**31)), photo)
