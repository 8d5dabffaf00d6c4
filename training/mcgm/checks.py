"""What is checked before MCGM's training encodes or trains anything; every error is a ValueError in the artist's words."""

from __future__ import annotations

import itertools
import logging
import math
import re
from typing import Any

import torch
from torch import Tensor

from ...conditioning.prompt_words import COMMAS
from ...images import masks
from ..data import marks as doubtful
from ..data.pictures import SMALLEST
from ..engine.checks import ENLARGED, check_parts, check_size, check_unet
from ..engine.options import check_numbers
from .options import Options
from .scene import Scene

log = logging.getLogger(__name__)

NODE = "Train Poseable Subjects"
OVERLAP = 0.1
"""Masks that share more than this part of the smaller one are warned of."""


def words_of(text: str) -> tuple[str, ...]:
    """The subjects' words in a text, separated by commas or semicolons, of whichever script, or lines."""
    return tuple(word.strip() for word in re.split(rf"[\n;\uff1b\u061b{COMMAS}]", text) if word.strip())


def scene_of(image: Tensor, marks: Tensor, options: Options) -> Scene:
    """The first picture of an IMAGE and its subjects' masks, a MASK batch. ValueError in the artist's words for what cannot be learned."""
    marked = masks.to_mask(marks, "masks").detach().float().cpu()
    picture = image[0, ..., :3].detach().float().cpu().clamp(0, 1)
    if len(image) > 1:
        log.warning("Train Poseable Subjects learns from one picture; the first of %d is taken.", len(image))
    if not bool(torch.isfinite(picture).all()):
        raise ValueError("the picture holds values that are no numbers (NaN): a node before it failed. Wire one that is whole.")
    if not options.words:
        raise ValueError("words is empty. Write one plain word for each subject, separated by commas, such as: cat, dog.")
    if len(marked) != len(options.words):
        raise ValueError(
            f"{_counted(len(options.words), 'word')} ({', '.join(options.words)}) but {_counted(len(marked), 'mask')}: give one mask for "
            "each word, in the same order, as a batch (SAM Mask makes one for each object; core's Batch Masks joins several)."
        )
    for number, (mask, word) in enumerate(zip(marked, options.words, strict=True), 1):
        if int((mask > 0.5).sum()) < SMALLEST:
            raise ValueError(f"mask {number} ({word}) marks nothing: point SAM Mask at that subject, or take its word away.")
    if marked.shape[1:] != picture.shape[:2]:
        raise ValueError(
            f"the picture is {picture.shape[1]} x {picture.shape[0]} pixels but its masks {marked.shape[2]} x {marked.shape[1]}: make the "
            "masks from the same picture, before or after both are resized."
        )
    for (first, one), (second, other) in itertools.combinations(enumerate(marked > 0.5, 1), 2):
        shared = float((one & other).sum() / torch.minimum(one.sum(), other.sum()))
        if shared > OVERLAP:
            log.warning("Train Poseable Subjects: masks %d and %d share %.0f %% of the smaller one: there the subjects are learned mixed.",
                        first, second, 100 * shared)  # fmt: skip
    for sentence in doubts(marked, options):
        log.warning("%s", sentence)
    return Scene(picture, marked)


def doubts(marked: Tensor, options: Options) -> tuple[str, ...]:
    """What should be looked at before subjects of these masks [N, H, W] are learned (`doubtful.doubts`)."""
    words = enumerate(options.words, 1)
    return doubtful.doubts((f"subject {number} ({word})", mask) for (number, word), mask in zip(words, marked, strict=True))


def fitted(scene: Scene, options: Options) -> Scene:
    """The scene in the training's size. ValueError where a subject is too small to be seen in it."""
    small = scene.fitted(options.size)
    for number, (mask, word) in enumerate(zip(small.masks, options.words, strict=True), 1):
        if int((mask > 0.5).sum()) < SMALLEST:
            raise ValueError(
                f"mask {number} ({word}) marks too little: nothing is left of it where the picture has {small.masks.shape[2]} x "
                f"{small.masks.shape[1]} pixels for training. Crop the picture to the subjects first, or use a larger `size`."
            )
    return small


def check(model: Any, clip: Any, vae: Any, options: Options, scene: Scene) -> None:
    """ValueError, in the artist's words, for what cannot be trained; to be asked before anything is encoded."""
    check_size(options.size, [], NODE)
    check_numbers(options, NODE)
    check_unet(model)
    check_parts(model, clip, vae)
    _check_area(options.size, scene.masks.shape[1], scene.masks.shape[2])
    if options.masks and options.mask_attention_weight > 0 and options.attention_weight == 0:
        log.warning("Train Poseable Subjects: with attention_weight 0 mask_attention_weight has no effect: it is a part of it.")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _check_area(size: int, height: int, width: int) -> None:
    """ValueError for a picture that is much too small for the size that is trained with; a warning for a small one.

    What is fitted is the area: a long picture is not enlarged because its short side is short.
    """
    side = math.sqrt(height * width)
    if side * ENLARGED < size:
        raise ValueError(
            f"picture 1 is {width} x {height} pixels, too small for crops of {size}: it would be blurred, and so would what is learned. "
            f"Use a larger picture, or a `size` of at most {int(side * ENLARGED) // 8 * 8}."
        )
    if side < size:
        log.warning("Train Poseable Subjects: picture 1 (%d x %d) is enlarged to crops of %d pixels.", width, height, size)
