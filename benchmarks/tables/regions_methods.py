"""How the table of regions paints: one prompt, core's Set Mask, Prompt Region, and both after each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .tiny_model import words


class Asked(Protocol):
    """What a case asks for (`regions.Case`)."""

    @property
    def first(self) -> tuple[str, str]: ...

    @property
    def second(self) -> tuple[str, str]: ...

    @property
    def ground(self) -> str: ...

    @property
    def both(self) -> str: ...

    @property
    def masks(self) -> Tensor: ...


@dataclass(frozen=True)
class Method:
    """How two texts get into two regions.

    `base`: what the sampler's prompt says: "both" things, or the "ground" alone.
    `regions`: where that prompt acts beside the regions of Prompt Region ("everywhere" or "outside"); "" for none.
    `grounded`: whether the regions' texts name the ground again.
    `apart`: of Prompt Region.
    `passes`: the part of the sampling, from its start, in which each region is painted in a pass of its own: by Prompt Region's
    `own_pass`, or where there are no `regions` by core's Set Mask.
    """

    name: str
    base: str = "both"
    regions: str = ""
    grounded: bool = True
    apart: float = 0.0
    passes: float = 0.0

    def prepared(self, painter: Any, page: Sequence[Asked]) -> tuple[Any, list[Any]]:
        """The MODEL and the positive CONDITIONING for a page of cases."""
        model = painter.model
        base = painter.text([case.both if self.base == "both" else f"a photo on {case.ground}" for case in page])
        texts = [painter.text([_text(case, number, self.grounded) for case in page]) for number in (0, 1)]
        masks = torch.stack([case.masks for case in page], 1)
        if self.regions:
            return self._with_regions(model, texts, masks), [[base, {}]]
        if not self.passes:
            return model, [[base, {}]]
        parts = [*zip(texts, masks, strict=True), (base, 1 - masks.amax(0))]
        return model, [[text, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}] for text, mask in parts]

    def _with_regions(self, model: Any, texts: Sequence[Tensor], masks: Tensor) -> Any:
        from maskprompt.nodes.prompt_region import EVERYWHERE, OUTSIDE, PromptRegionNode

        base = OUTSIDE if self.regions == "outside" else EVERYWHERE
        for text, mask in zip(texts, masks, strict=True):
            (model,) = PromptRegionNode.execute(model, [[text, {}]], mask, 1.0, base, self.apart, own_pass=self.passes).args
        return model


def _text(case: Asked, number: int, grounded: bool) -> str:
    thing = (case.first, case.second)[number]
    return words(*thing, case.ground if grounded else None)


PLAIN = Method("one prompt that names both")
SET_MASK = Method("core's Set Mask, a pass for each", "ground", passes=1.0)
REGION = Method("Prompt Region, base only where no region is", "both", "outside")
METHODS = (
    PLAIN,
    SET_MASK,
    REGION,
    Method("Prompt Region, base everywhere", "both", "everywhere"),
    Method("Prompt Region, base everywhere and of the ground alone", "ground", "everywhere"),
    Method("Prompt Region, base only where no region is and of the ground alone", "ground", "outside"),
    Method("Prompt Region, base only where no region is, its texts without the ground", "both", "outside", grounded=False),
    Method("Prompt Region, base only where no region is, regions apart", "both", "outside", apart=1.0),
    *(
        Method(f"Prompt Region, base only where no region is, own passes for {part:g} of the sampling", "both", "outside", passes=part)
        for part in (0.2, 0.4, 0.6, 1.0)
    ),
)
