"""What a click in a node's picture shows before any run: the mask of a picture file, from a SAM that keeps what it has seen."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ...images.masks import Box, clip_box
from ...images.typed_coordinates import parse_boxes, parse_points
from . import model as sam
from . import prompts as sam_prompts

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""AVIF only where this Pillow reads it."""
MOST_PIXELS = 100_000_000
MOST_MARKS = 200
SHOWN = 1024
"""The longer side in pixels of the mask that is shown; the node's own mask has the picture's size."""
REMEMBERED = 8


@dataclass(frozen=True)
class Picture:
    """A picture file: its path, and what core's Load Image calls it, such as `cups/cup.png [input]`."""

    path: str
    annotated: str


@dataclass(frozen=True)
class Question:
    """What the node's widgets say: texts as they stand there, and its choices."""

    positive: str = ""
    negative: str = ""
    box: str = ""
    choice: str = sam_prompts.WHOLE
    min_score: float = 0.0
    clean: bool = True


@dataclass(frozen=True)
class Shown:
    """A mask bool [h, w], at most `SHOWN` pixels long, the picture's own size, and SAM's score of the mask."""

    mask: np.ndarray
    width: int
    height: int
    score: float


class Pointer:
    """Answers questions about picture files. Holds one model and the embeddings of the last pictures; for one thread."""

    def __init__(self) -> None:
        self._model: tuple[str, sam.LoadedSam] | None = None
        self._seen: OrderedDict[tuple[str, str, int, int], tuple[torch.Tensor, int, int]] = OrderedDict()

    def answer(self, model_path: str, picture: Picture, question: Question, may_go_on: Callable[[], None] = lambda: None) -> Shown:
        """Cut out of the picture what the question marks. ValueError in words for a file that is no picture, or for bad marks.

        `may_go_on` is called when the model's file is read, which takes long, and before each use of the device; what it raises ends it.
        """
        model = self._load(model_path)
        may_go_on()
        embedding, height, width = self._look(model, model_path, picture, may_go_on)
        positive = parse_points(question.positive, "positive_coords", height, width)
        negative = parse_points(question.negative, "negative_coords", height, width)
        boxes = [clip_box(box, height, width, "box") for box in parse_boxes(question.box, "box")]
        if not positive and not boxes:
            raise ValueError("nothing is marked yet: click on the object, or drag a box around it.")
        if len(positive) + len(negative) + 10 * len(boxes) > MOST_MARKS:
            raise ValueError(
                f"these are more marks than the picture shows at once ({MOST_MARKS}, a box counts as ten). Run takes them all."
            )
        size = sam.fit(height, width, SHOWN) if max(height, width) > SHOWN else (height, width)
        scale = size[1] / width, size[0] / height
        request = sam_prompts.Request(_scaled(positive, scale), _scaled(negative, scale), tuple(_scaled_box(box, scale) for box in boxes))
        prompts = sam_prompts.prompts_for(request, *size)
        may_go_on()
        choice = sam_prompts.LARGEST if question.choice == sam_prompts.ALL else question.choice
        mask, scores = sam_prompts.segment_seen(model, embedding, prompts, size, choice, question.min_score, question.clean)
        return Shown(mask[0].numpy() > 0, width, height, scores[0])

    def _load(self, path: str) -> sam.LoadedSam:
        if self._model is None or self._model[0] != path:
            self.release()
            try:
                self._model = (path, sam.shared(path))
            except RuntimeError as error:  # a package is missing
                raise ValueError(str(error)) from error
        return self._model[1]

    def release(self) -> None:
        """Let the model go, which a graph may still hold; what was seen stays."""
        self._model = None

    def _look(
        self, model: sam.LoadedSam, model_path: str, picture: Picture, may_go_on: Callable[[], None]
    ) -> tuple[torch.Tensor, int, int]:
        found = os.stat(picture.path)
        key = (model_path, picture.path, found.st_size, found.st_mtime_ns)
        if key not in self._seen:
            pixels = read(picture.path, picture.annotated)
            may_go_on()
            self._seen[key] = (model.embed(pixels), pixels.shape[0], pixels.shape[1])
        self._seen.move_to_end(key)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return self._seen[key]


def read(path: str, annotated: str) -> torch.Tensor:
    """Read a picture with core's Load Image, so that a run sees the same numbers: float [H, W, 3] in 0..1.

    annotated: the same file in core's words, such as `cups/cup.png [input]`. ValueError in words if it is no picture or far too large.
    """
    name = os.path.basename(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()
            with Image.open(path, formats=[one for one in FORMATS if one in Image.OPEN]) as opened:
                size = opened.width * opened.height
        if size > MOST_PIXELS:
            raise ValueError(f"'{name}' has {size / 1e6:.0f} million pixels; {MOST_PIXELS // 1_000_000} million are the most.")
        from nodes import LoadImage

        pictures: torch.Tensor = LoadImage().load_image(annotated)[0]
    except ValueError:
        raise
    except Exception as error:  # each of core's decoders has exceptions of its own
        raise ValueError(f"'{name}' cannot be read as a picture ({type(error).__name__}).") from error
    return pictures[0]


def _scaled(points: tuple[tuple[float, float], ...], scale: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    return tuple((x * scale[0], y * scale[1]) for x, y in points)


def _scaled_box(box: Box, scale: tuple[float, float]) -> Box:
    left = round(box["x"] * scale[0])
    top = round(box["y"] * scale[1])
    right = round((box["x"] + box["width"]) * scale[0])
    bottom = round((box["y"] + box["height"]) * scale[1])
    return {
        "x": left,
        "y": top,
        "width": max(right - left, 1) if box["width"] > 0 else 0,
        "height": max(bottom - top, 1) if box["height"] > 0 else 0,
    }
