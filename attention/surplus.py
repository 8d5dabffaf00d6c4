"""Says where a node was given more masks or references than there are pictures to paint: of those only the first act."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from .grid import RegionMask
from .reference_regions import REGIONS
from .rows import KEY

log = logging.getLogger(__name__)

MASKS, REFERENCES = "masks", "reference pictures"


def tell(executor: Any, noise: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrapper of a guider's `outer_sample`: warns, once a sampling, of what is left over. A video's masks are its frames'."""
    pictures = _pictures(noise)
    if pictures is not None:
        for what, count in sorted(_given(executor.class_obj)):
            if count > pictures:
                log.warning(
                    "MaskPrompt: %d %s at one node for %s: each picture of a batch takes its own in turn, and only the first %s used. For "
                    "several on one picture use a node for each%s.",
                    count, what, "1 picture" if pictures == 1 else f"{pictures} pictures", "is" if pictures == 1 else f"{pictures} are",
                    ", or join the masks (Combine Masks)" if what == MASKS else "",
                )  # fmt: skip
    return executor(noise, *args, **kwargs)


def _pictures(noise: Any) -> int | None:
    """How many pictures are painted; None for a video, and for what is no batch of pictures."""
    shape = tuple(getattr(noise, "shape", ()))
    return shape[0] if len(shape) == 4 or (len(shape) == 5 and shape[2] == 1) else None


def _given(guider: Any) -> set[tuple[str, int]]:
    """What our nodes were given, and how many of it, each number once."""
    from comfy.patcher_extension import WrappersMP

    chains = guider.model_patcher.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY)
    found = {(MASKS, len(mask.masks)) for whole in chains for patch in whole.patches for mask in _masks(vars(patch).values())}
    found |= {(REFERENCES, patch.keys.prompts) for whole in chains for patch in whole.patches if hasattr(patch, "keys")}
    entries = (cond for conds in (getattr(guider, "conds", None) or {}).values() for cond in conds or ())
    for region in (region for cond in entries for region in cond.get(REGIONS) or () if region is not None):
        found.add((REFERENCES, len(region.latent)) if len(region.latent) > 1 else (MASKS, len(region.tokens)))
        found |= {(MASKS, len(mask.masks)) for mask in _masks((region.mask,))}
    return found


def _masks(values: Iterable[Any]) -> Iterable[RegionMask]:
    return (value for value in values if isinstance(value, RegionMask))
