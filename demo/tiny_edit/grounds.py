"""The grounds of tiny-edit's world: photographs with their words, grounds that are drawn, and walls of one colour.

A photograph is listed with where it comes from, its words, and its horizon: the part of its height above which there is nothing to
stand on (1: nothing stands anywhere, as in the sky). From it come contact shadows and the pseudo-depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import scenes

DEBIAN_PACKAGES: tuple[str, ...] = ("mate-backgrounds", "plasma-workspace-wallpapers", "lomiri-wallpapers-20.04")
PACKAGED = "packaged"
"""The source of photographs that scikit-image and scikit-learn carry in their wheels."""


@dataclass(frozen=True)
class Photograph:
    """One photograph. `source` is a Debian package or `PACKAGED`, `path` the file's end of path in it."""

    name: str
    source: str
    path: str
    words: str
    horizon: float
    held_out: bool = False


_MATE = "mate-backgrounds"
_PLASMA = "plasma-workspace-wallpapers"
_LOMIRI = "lomiri-wallpapers-20.04"

PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("leaf", _MATE, "nature/Blinds.jpg", "on a green leaf", 0.0),
    Photograph("dune", _MATE, "nature/Dune.jpg", "in dry grass by the sea", 0.4),
    Photograph("petals", _MATE, "nature/FreshFlower.jpg", "on orange petals", 0.0),
    Photograph("garden", _MATE, "nature/Garden.jpg", "by a red flower", 0.3),
    Photograph("meadow", _MATE, "nature/GreenMeadow.jpg", "in a green meadow", 0.0),
    Photograph("rain", _MATE, "nature/RainDrops.jpg", "on wet leaves", 0.0),
    Photograph("storm", _MATE, "nature/Storm.jpg", "under a stormy sky", 0.7),
    Photograph("drop", _MATE, "nature/Aqua.jpg", "on rippling water", 0.5),
    Photograph("board", _MATE, "nature/Wood.jpg", "on pale wood", 0.0),
    Photograph("yellow", _MATE, "nature/YellowFlower.jpg", "by a yellow flower", 0.3),
    Photograph("pier", _PLASMA, "BytheWater/contents/images/2560x1600.jpg", "on a wooden pier", 0.35),
    Photograph("fog", _PLASMA, "ColdRipple/contents/images/2560x1600.jpg", "on a jetty in the fog", 0.5),
    Photograph("cups", _PLASMA, "ColorfulCups/contents/images/2560x1600.jpg", "on paper cups", 0.0),
    Photograph("lake", _PLASMA, "DarkestHour/contents/images/2560x1600.jpg", "by a dark blue lake", 0.55),
    Photograph("boats", _PLASMA, "EveningGlow/contents/images/2560x1600.jpg", "by boats at sunset", 0.5),
    Photograph("autumn", _PLASMA, "FallenLeaf/contents/images/2560x1600.jpg", "on autumn leaves", 0.3),
    Photograph("facade", _PLASMA, "Grey/contents/images/2560x1600.jpg", "before a grey facade", 0.5),
    Photograph("clouds", _PLASMA, "Kite/contents/images/2560x1600.jpg", "in a deep blue sky", 1.0),
    Photograph("forest", _PLASMA, "Path/contents/images/2560x1600.jpg", "in a dark forest", 0.5),
    Photograph("beach", _PLASMA, "Volna/contents/images/5120x2880.jpg", "on a beach", 0.0),
    Photograph("dusk", _PLASMA, "summer_1am/contents/images/2560x1600.jpg", "by the sea at dusk", 0.55),
    Photograph("painted", _PLASMA, "Autumn/contents/images/2560x1600.jpg", "under an autumn tree", 0.6),
    Photograph("park", _PLASMA, "SafeLanding/contents/images/5120x2880.jpg", "in a painted park", 0.45),
    Photograph("mountains", _PLASMA, "Altai/contents/images/5120x2880.png", "by blue mountains", 0.55),
    Photograph("ice", _PLASMA, "IceCold/contents/images/5120x2880.png", "on ice", 0.3),
    Photograph("pastel", _PLASMA, "PastelHills/contents/images/3200x2000.jpg", "on pastel hills", 0.4),
    Photograph("galaxy", _LOMIRI, "Infinite-Sea_by_Aury88.jpg", "under the milky way", 0.8),
    Photograph("bark", _LOMIRI, "Kleiber_by_Lukas_Baubkus.jpg", "by a tree trunk", 0.6),
    Photograph("paving", PACKAGED, "brick.png", "on grey paving", 0.0),
    Photograph("gravel", PACKAGED, "gravel.png", "on gravel", 0.0),
    Photograph("moon", PACKAGED, "moon.png", "on the moon", 0.0),
    Photograph("stars", PACKAGED, "hubble_deep_field.jpg", "among the stars", 1.0),
    Photograph("garage", PACKAGED, "motorcycle_left.png", "in a garage", 0.5),
    Photograph("launch", PACKAGED, "rocket.jpg", "by a launch tower at night", 0.85),
    Photograph("dahlia", PACKAGED, "flower.jpg", "by an orange dahlia", 0.5),
    Photograph("coffee", PACKAGED, "coffee.png", "by a cup of coffee", 0.2, True),
    Photograph("chelsea", PACKAGED, "chelsea.png", "by a tabby cat", 0.7, True),
    Photograph("temple", PACKAGED, "china.jpg", "by a temple", 0.7, True),
    Photograph("ladybird", _MATE, "nature/LadyBird.jpg", "by blue flowers", 0.3, True),
    Photograph("seeds", _MATE, "nature/TwoWings.jpg", "by dandelion seeds", 0.3, True),
    Photograph("moss", _PLASMA, "OneStandsOut/contents/images/2560x1600.jpg", "on dark moss", 0.0, True),
)

DRAWN: dict[str, tuple[str, float]] = {
    "grass": ("on grass", 0.0),
    "sand": ("on sand", 0.0),
    "sky": ("in a bright sky", 1.0),
    "water": ("on green water", 0.0),
    "wood": ("on brown planks", 0.0),
    "bricks": ("by a red brick wall", 0.85),
    "snow": ("on snow", 0.0),
    "night": ("in a starry night", 1.0),
}
"""What `demo.scenes` draws: words and horizon of each."""

WALLS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((232, 232, 228), (205, 200, 195)),
    "red": ((188, 60, 52), (150, 105, 80)),
    "yellow": ((240, 200, 90), (170, 125, 85)),
    "green": ((110, 165, 120), (205, 190, 165)),
    "blue": ((95, 145, 205), (190, 170, 150)),
    "pink": ((235, 160, 175), (225, 215, 205)),
    "grey": ((120, 122, 128), (80, 76, 74)),
}
"""Walls of one colour above a floor: the colours of wall and floor."""
WALL_HORIZON = 0.62

BY_NAME: dict[str, Photograph] = {photograph.name: photograph for photograph in PHOTOGRAPHS}
TRAINING: tuple[str, ...] = (
    *(photograph.name for photograph in PHOTOGRAPHS if not photograph.held_out),
    *DRAWN,
    *(f"{colour} wall" for colour in WALLS),
)
"""The names of all grounds that training shows."""
HELD_OUT: tuple[str, ...] = tuple(photograph.name for photograph in PHOTOGRAPHS if photograph.held_out)


def words_of(name: str) -> str:
    """The ground as a sentence ends with it: "on a beach"."""
    if name in BY_NAME:
        return BY_NAME[name].words
    if name in DRAWN:
        return DRAWN[name][0]
    return f"before a {name}"


def horizon_of(name: str) -> float:
    """The part of the ground's whole height above which nothing stands (1: nothing stands anywhere)."""
    if name in BY_NAME:
        return BY_NAME[name].horizon
    return DRAWN[name][1] if name in DRAWN else WALL_HORIZON


def drawn(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A ground that is no photograph, as uint8 [size, size, 3]."""
    if name in DRAWN:
        return np.clip(scenes.ground_pixels(name, size, rng), 0, 255).astype(np.uint8)
    wall, floor = WALLS[name.removesuffix(" wall")]
    edge = round(size * WALL_HORIZON)
    picture = np.empty((size, size, 3), np.float32)
    picture[:edge] = wall
    picture[edge:] = floor
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    across = np.linspace(-1, 1, size, dtype=np.float32)[None, :, None]
    lit = 0.86 + 0.2 * (1 - (across - rng.uniform(-0.7, 0.7)) ** 2 * 0.5)
    picture *= lit * np.where(down < WALL_HORIZON, 0.6 + down / 2, 1.15 - down / 4)
    picture[edge : edge + max(1, size // 80)] *= 0.8
    return np.clip(picture + rng.normal(0, 2, (size, size, 1)), 0, 255).astype(np.uint8)
