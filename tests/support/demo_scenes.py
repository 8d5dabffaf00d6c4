"""Scenes and colours of the demo."""

from __future__ import annotations

import numpy as np

from demo import scenes
from demo.scenes import Paint, Thing

LIGHTS = np.arange(0.78, 1.0801, 0.01)[:, None, None]


def thing(shape: str = "star", colour: str = "orange", x: float = 0.5, y: float = 0.5, size: float = 0.5, tilt: float = 0.0) -> Thing:
    return Thing(shape, Paint(colour), x, y, size, tilt)


def colour_error(pixels: np.ndarray, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """How far pixels [N, 3] are from a colour under the light that fits best (of 0.78 to 1.08), and that light: [N] each."""
    lit = np.minimum(LIGHTS * np.asarray(scenes.COLOURS[colour]), 255)
    errors = np.abs(lit - pixels[None].astype(float)).max(-1)
    return errors.min(0), LIGHTS[errors.argmin(0), 0, 0]
