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
from PIL import Image, ImageFilter

from .drawing import GROUNDS, SHAPES, ground_pixels, shape_mask

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
