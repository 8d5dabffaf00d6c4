"""Scenes of tiny-edit's world: one to three things on a ground, drawn with exact masks, boxes and pseudo-depth.

The same `Scene` of the same `World` always gives the same picture, at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..scenes import box_of
from . import grounds
from .world import World

FLOATING = 0.9
"""Where a crop's horizon lies lower than this, nothing stands: things float and cast no shadow."""
SHADOW = 0.5
"""How much of the light a contact shadow takes at its darkest."""
LEFT, RIGHT = 0.42, 0.58
"""A thing whose centre is left of the first is "on the left", right of the second "on the right"; between them "in the middle"."""


@dataclass(frozen=True)
class Placed:
    """A thing in a picture: centre and longer side as parts of the picture, tilt in degrees, light's gain, hue's turn in 0..1."""

    code: str
    x: float
    y: float
    size: float
    tilt: float = 0.0
    flip: bool = False
    light: float = 1.0
    hue: float = 0.0

    @property
    def bottom(self) -> float:
        return self.y + self.size / 2

    @property
    def place(self) -> str:
        """Where it is: "on the left", "in the middle" or "on the right"."""
        if self.x < LEFT:
            return "on the left"
        return "on the right" if self.x > RIGHT else "in the middle"


@dataclass(frozen=True)
class Ground:
    """A ground and its square crop: left, top and side in 0..1 (`side` of the short side, the others of the room left)."""

    name: str
    left: float = 0.5
    top: float = 0.5
    side: float = 1.0
    mirrored: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """Things from back to front, on a ground."""

    things: tuple[Placed, ...]
    ground: Ground


@dataclass(frozen=True)
class Rendered:
    """`image` uint8 [H, W, 3]; `masks` float32 [N, H, W] in 0..1, of what is visible; `boxes` (x, y, width, height) in pixels;

    `depth` float32 [H, W], 0 far to 1 near.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: list[tuple[int, int, int, int]]
    depth: np.ndarray


def horizon_of(world: World, ground: Ground) -> float:
    """The horizon's height in the crop, from 0 (its top, or above) to 1 (its bottom, or below: nothing stands)."""
    whole = grounds.horizon_of(ground.name)
    photograph = world.photographs.get(ground.name)
    if photograph is None or whole >= 1:
        return whole
    height, width = photograph.shape[:2]
    side = round(min(height, width) * ground.side)
    top = round(ground.top * (height - side))
    return float(np.clip((whole * height - top) / side, 0, 1))


def ground_pixels(world: World, ground: Ground, size: int) -> np.ndarray:
    """The ground alone, uint8 [size, size, 3]."""
    photograph = world.photographs.get(ground.name)
    if photograph is None:
        if ground.name in grounds.BY_NAME:
            raise KeyError(f"the photograph {ground.name!r} is not in this world: run `python -m demo.tiny_edit.world`")
        picture = grounds.drawn(ground.name, size, np.random.default_rng(ground.seed))
    else:
        height, width = photograph.shape[:2]
        side = round(min(height, width) * ground.side)
        left = round(ground.left * (width - side))
        top = round(ground.top * (height - side))
        box = (left, top, left + side, top + side)
        picture = np.asarray(Image.fromarray(photograph).resize((size, size), Image.Resampling.LANCZOS, box=box))
    return picture[:, ::-1] if ground.mirrored else picture


def cut_out(world: World, thing: Placed, size: int) -> Image.Image:
    """The thing as RGBA, turned, flipped and scaled: its untilted longer side is `thing.size` of `size` pixels."""
    pixels = world.cut_outs[thing.code]
    ys, xs = np.nonzero(pixels[..., 3] > 127)
    picture = Image.fromarray(pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
    if thing.hue:
        alpha = picture.getchannel("A")
        hue, saturation, value = picture.convert("RGB").convert("HSV").split()
        turned = Image.fromarray(((np.asarray(hue, np.int16) + round(thing.hue * 256)) % 256).astype(np.uint8))
        picture = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        picture.putalpha(alpha)
    if thing.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = thing.size * size / max(picture.size)
    shape = (max(2, round(picture.width * scale)), max(2, round(picture.height * scale)))
    picture = picture.resize(shape, Image.Resampling.BICUBIC)
    return picture.rotate(-thing.tilt, Image.Resampling.BICUBIC, expand=True) if thing.tilt else picture


def render(world: World, scene: Scene, size: int = 256) -> Rendered:
    """Draws the scene as `size` x `size` pixels. Things are drawn in order; a later one hides an earlier one."""
    picture = ground_pixels(world, scene.ground, size).astype(np.float32)
    tint = 0.78 + 0.4 * picture.mean((0, 1)) / 255
    horizon = horizon_of(world, scene.ground)
    floating = horizon > FLOATING
    rows = np.clip((np.arange(size, dtype=np.float32) / size - horizon) / max(1 - horizon, 0.02), 0, 1)
    depth = np.zeros((size, size), np.float32) if floating else np.broadcast_to(rows[:, None] * 0.9, (size, size)).copy()
    masks = np.zeros((len(scene.things), size, size), np.float32)
    for index, thing in enumerate(scene.things):
        piece = cut_out(world, thing, size)
        left = round(thing.x * size - piece.width / 2)
        top = round(thing.y * size - piece.height / 2)
        if not floating:
            picture *= 1 - _shadow(size, left, top, piece)[..., None]
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(piece, (left, top))
        layer = np.asarray(canvas, np.float32)
        cover = layer[..., 3] / 255
        picture = picture * (1 - cover[..., None]) + np.clip(layer[..., :3] * (thing.light * tint), 0, 255) * cover[..., None]
        near = thing.size if floating else float(rows[min(size - 1, max(0, top + piece.height - 1))]) * 0.9
        depth = depth * (1 - cover) + max(0.25, near + 0.08) * cover
        masks[:index] *= 1 - cover
        masks[index] = cover
    image = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return Rendered(image, masks, [box_of(mask) for mask in masks], np.clip(depth, 0, 1))


def _shadow(size: int, left: int, top: int, piece: Image.Image) -> np.ndarray:
    """A contact shadow under a cut-out, float32 [size, size] in 0..`SHADOW`: an ellipse, drawn at a quarter of the size and blurred."""
    small = size // 4
    middle = (left + piece.width / 2) / 4
    foot = (top + piece.height * 0.965) / 4
    half = piece.width * 0.44 / 4
    shade = Image.new("L", (small, small))
    ImageDraw.Draw(shade).ellipse((middle - half, foot - half * 0.22, middle + half, foot + half * 0.22), fill=255)
    shade = shade.filter(ImageFilter.GaussianBlur(max(0.7, half / 7))).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(shade, np.float32) * (SHADOW / 255)


def random_ground(rng: np.random.Generator, names: list[str]) -> Ground:
    """A random crop of a random ground."""
    name = names[rng.integers(len(names))]
    left, top = (float(part) for part in rng.random(2))
    return Ground(name, left, top, float(rng.uniform(0.6, 1.0)), bool(rng.random() < 0.5), int(rng.integers(2**31)))


SIZES: tuple[tuple[float, float], ...] = ((0.34, 0.64), (0.28, 0.44), (0.2, 0.31))
"""From how small to how large one thing, two and three are."""


def random_layout(
    rng: np.random.Generator, codes: list[str], horizon: float, sizes: tuple[float, float] | None = None
) -> tuple[Placed, ...]:
    """Places one to three things: on the ground below the horizon, or anywhere if it floats; from back to front.

    `sizes`: from how small to how large they are (None: the usual of so many). Two things overlap in a fifth of the layouts, but never by
    more than a third of their size.
    """
    count = len(codes)
    low, high = sizes or SIZES[count - 1]
    order = [float(part) for part in (np.arange(count) + 0.5) / count]
    overlap = count == 2 and rng.random() < 0.2
    placed = []
    for code, slot in zip(codes, order, strict=True):
        size = float(rng.uniform(low, high))
        if count == 1:
            x = float(rng.uniform(size / 2, 1 - size / 2))
        elif overlap:
            x = 0.5 + (slot - 0.5) * (2 * size * 0.68)
        else:
            room = max(0.0, 0.5 / count - size / 2)
            x = slot + float(rng.uniform(-room, room))
        highest = size + 0.02
        lowest = 0.98
        if horizon <= FLOATING:
            highest = min(lowest, max(highest, horizon + 0.1))
        bottom = float(rng.uniform(highest, lowest))
        tilt = float(rng.normal(0, 5) if horizon <= FLOATING else rng.normal(0, 12))
        centre = float(np.clip(x, size / 2, 1 - size / 2))
        flip = bool(rng.random() < 0.5)
        placed.append(Placed(code, centre, bottom - size / 2, size, tilt, flip, float(rng.uniform(0.9, 1.08))))
    return tuple(sorted(placed, key=lambda thing: thing.bottom))


def moved(thing: Placed, rng: np.random.Generator) -> Placed:
    """The thing at another of the three places, at the same height."""
    while True:
        other = replace(thing, x=float(rng.uniform(thing.size / 2, 1 - thing.size / 2)))
        if other.place != thing.place:
            return other


def box_around(rng: np.random.Generator, box: tuple[int, int, int, int], size: int) -> tuple[int, int, int, int]:
    """The box, larger by 4 to 25 % of its size on each side, between cells of 8 pixels, cut off at the picture's edge: x, y, width, height.

    Below it is larger by a sixth of the width at least, so that it holds the contact shadow.
    """
    x, y, width, height = box
    left, right = (width * float(rng.uniform(0.04, 0.25)) for _ in range(2))
    up, down = (height * float(rng.uniform(0.04, 0.25)) for _ in range(2))
    down = max(down, width / 6)
    x0 = max(0, math.floor((x - left) / 8) * 8)
    y0 = max(0, math.floor((y - up) / 8) * 8)
    x1 = min(size, math.ceil((x + width + right) / 8) * 8)
    y1 = min(size, math.ceil((y + height + down) / 8) * 8)
    return x0, y0, x1 - x0, y1 - y0
