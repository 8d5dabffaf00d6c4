"""How MCGM's table learns a picture's subjects, and how it paints them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trained:
    """How a picture's subjects are learned."""

    name: str
    masks: bool = True
    mask_attention: bool = True


WHOLE = Trained("MCGM")
NO_LOSS = Trained("without the mask attention loss", mask_attention=False)
BREAK_A_SCENE = Trained("Break-A-Scene", False)


@dataclass(frozen=True)
class Method:
    """How they are painted: by which training, and with which masks: "shaped", "blank" (zero tokens), or "one" mask for all."""

    name: str
    trained: Trained
    masks: str = "shaped"


SHAPED = Method("shaped masks", WHOLE)
BLANK = Method("blank masks", WHOLE, "blank")
WITHOUT_LOSS = Method("without the mask attention loss", NO_LOSS)
BASELINE = Method("Break-A-Scene", BREAK_A_SCENE, "none")
ONE = Method("one mask for all", WHOLE, "one")
