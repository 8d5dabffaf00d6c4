"""What each row of a call's batch is: which half of CFG, which picture, and what it sees of the latent.

ComfyUI crops areas, tiles and context windows away before the model runs. `remember_view` notes the whole before it does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import compiled, context_window
from .grid import Size, Window
from .reference_regions import ReferenceRegion, of_conditioning

VIEW = "maskprompt_view"
PROMPT = "maskprompt_prompt"
"""The option that tells how many of a UNet's words are the prompt's, where regions' words follow them."""


@dataclass(frozen=True)
class Row:
    """One row of the batch: which half of CFG it belongs to (0 positive, 1 negative), which picture it is, what it sees of the latent.

    `frames` are the latent frames that it sees and their number in all, None if it sees all. `references` say of each reference of its
    prompt in order who sees it, None for one that is seen by all; empty if there is nothing to say.
    """

    half: int
    image: int
    window: Window
    frames: tuple[tuple[int, ...], int] | None = None
    references: tuple[ReferenceRegion | None, ...] = ()


@dataclass(frozen=True)
class View:
    """The whole latent's size, the area of every conditioning that has one (Conditioning Set Area) by its uuid, and what a call sees
    without one (all, or a context window's rows or columns).

    By uuid too: how many words a text has, and who sees a prompt's references. `frames` are those of a context window.
    """

    latent: Size
    areas: dict[Any, Window]
    seen: Window | None = None
    texts: dict[Any, int] = field(default_factory=dict[Any, int])
    frames: tuple[tuple[int, ...], int] | None = None
    references: dict[Any, tuple[ReferenceRegion | None, ...]] = field(default_factory=dict[Any, tuple[ReferenceRegion | None, ...]])


def rows_of(options: dict[str, Any], batch: int, size: Size) -> tuple[Size, tuple[Row, ...]]:
    """The whole latent's size, and what each row of a call is. `batch` and `size` are the call's own.

    Raises RuntimeError where a call shows only a part of the latent and nothing tells which.
    """
    halves = options.get("cond_or_uncond") or [0]
    images = context_window.pictures(options, batch // len(halves))
    view: View | None = options.get(VIEW)
    latent = size if view is None else view.latent
    seen = (0, 0, *latent) if view is None or view.seen is None else view.seen
    rows = []
    uuids = options.get("uuids") or []
    if view is not None and view.references and len(uuids) != len(halves):
        raise RuntimeError(
            "another node runs the model without saying which prompt is which, so it is not known where the reference pictures act. Bypass "
            "that node, or Reference Region."
        )
    for chunk, half in enumerate(halves):
        window = view.areas.get(uuids[chunk]) if view is not None and chunk < len(uuids) else None
        references = view.references.get(uuids[chunk], ()) if view is not None and chunk < len(uuids) else ()
        window = window or seen
        if window[2:] != size:
            raise RuntimeError(
                f"a node paints this picture in tiles or crops ({size[1] * 8}x{size[0] * 8} of {latent[1] * 8}x{latent[0] * 8} pixels) "
                "without saying which, so a mask cannot be placed. Bypass the tiling node, or MaskPrompt's."
            )
        rows += [Row(half, image, window, None if view is None else view.frames, references) for image in images]
    return latent, tuple(rows)


def remember_view(executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any]) -> Any:
    """Wrapper of `calc_cond_batch`: notes the whole latent and the areas, which ComfyUI crops away before the UNet runs."""
    height, width = x.shape[-2:]
    areas: dict[Any, Window] = {}
    texts: dict[Any, int] = {}
    references: dict[Any, tuple[ReferenceRegion | None, ...]] = {}
    for cond in (entry for entries in conds if entries is not None for entry in entries):
        text = cond.get("cross_attn")
        if text is not None:
            texts[cond["uuid"]] = text.shape[1]
        regions = of_conditioning(cond)
        if regions:
            references[cond["uuid"]] = regions
        if "area" in cond:
            half = len(cond["area"]) // 2
            area_height, area_width = cond["area"][:half][-2:]
            top, left = cond["area"][half:][-2:]
            areas[cond["uuid"]] = (top, left, min(height - top, area_height), min(width - left, area_width))
    options = model_options.get("transformer_options", {})
    latent, seen = context_window.place(options, (height, width), x.ndim)
    if areas and latent != (height, width):
        raise RuntimeError(f"a prompt's area and {context_window.SIDEWAYS} meet: where a mask lies is not known. Bypass one of the nodes.")
    options = {**options, VIEW: View(latent, areas, seen, texts, context_window.frames(options, x.ndim), references)}
    with compiled.as_it_must_run(model_options):
        return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})
