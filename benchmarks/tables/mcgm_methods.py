"""How MCGM's table learns a picture's subjects, and how it paints them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Trained:
    """How a picture's subjects are learned. `preset`: the node's defaults under one of its presets ("": the table's own settings).

    `changed`: fields of the training's options that are set otherwise, and to what.
    """

    name: str
    masks: bool = True
    mask_attention: bool = True
    mode: str = "bound"
    preset: str = ""
    changed: tuple[tuple[str, Any], ...] = ()


WHOLE = Trained("MCGM")
NO_LOSS = Trained("without the mask attention loss", mask_attention=False)
BREAK_A_SCENE = Trained("Break-A-Scene", False)
RECOMMENDED = Trained("preset recommended", preset="recommended")
AS_PUBLISHED = Trained("preset paper", preset="paper")
SHAPES_ALONE = Trained("mask tokens paper", mode="paper")
WITH_PRIOR = Trained("prior weight 1", changed=(("prior_weight", 1.0),))
EIGHT = ("batch", 8)
LONGER = ("weight_steps", 850)


@dataclass(frozen=True)
class Method:
    """How they are painted: by which training, and with which masks: "shaped", "blank" (zero tokens), or "one" mask for all.

    `asked`: what the prompt says of a subject, its "handle" or its plain word. Of a plain word's mask the token tells, beside its shape,
    "nobody", the "mean" of the subjects, or the "subject" that is of this word.
    """

    name: str
    trained: Trained
    masks: str = "shaped"
    asked: str = "handle"


SHAPED = Method("shaped masks", WHOLE)
BLANK = Method("blank masks", WHOLE, "blank")
WITHOUT_LOSS = Method("without the mask attention loss", NO_LOSS)
BASELINE = Method("Break-A-Scene", BREAK_A_SCENE, "none")
ONE = Method("one mask for all", WHOLE, "one")
PRESETS = tuple(Method(f"{trained.name}, {masks} masks", trained, masks)
                for trained in (WHOLE, RECOMMENDED, AS_PUBLISHED) for masks in ("shaped", "blank"))  # fmt: skip
MORE = tuple(
    Method(f"preset recommended with {name}, {masks} masks", replace(RECOMMENDED, name=name, changed=changed), masks)
    for name, changed in (
        ("batches of 8", (EIGHT,)),
        ("850 steps", (LONGER,)),
        ("850 steps of batches of 8", (LONGER, EIGHT)),
        ("all weights at a rate of 0.0005", (("method", "full"), ("rate", 5e-4))),
    )
    for masks in ("shaped", "blank")
)
"""What the table's own settings have and the defaults have not; each alone, and the two that cost nothing but time."""
WORDS = (
    Method("plain word, shape and nobody", WHOLE, asked="nobody"),
    Method("plain word, shape and the subjects' mean", WHOLE, asked="mean"),
    Method("plain word, shape and the subject of this word", WHOLE, asked="subject"),
    Method("plain word, mask tokens paper", SHAPES_ALONE, asked="nobody"),
    Method("plain word, blank mask", WHOLE, "blank", "nobody"),
    Method("plain word, prior weight 1", WITH_PRIOR, asked="nobody"),
    Method("plain word, prior weight 1, blank mask", WITH_PRIOR, "blank", "nobody"),
)
"""What poses an object that is no handle."""


def tokens_of(encoder: Any, masks: Tensor, asked: str) -> Tensor:
    """The tokens of a picture's masks [N, H, W], of subjects that are asked for so (`Method.asked`)."""
    if asked in ("handle", "subject"):
        return encoder(masks, range(len(masks)))
    tokens = encoder(masks, [None] * len(masks))
    return tokens + encoder.subjects.mean(0) if asked == "mean" else tokens
