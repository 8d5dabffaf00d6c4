"""What each row of a call's batch is: which half of CFG, which picture, and what it sees of the latent.

ComfyUI crops areas, tiles and context windows away before the model runs. `remember_view` notes the whole before it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from torch import Tensor

from . import compiled, context_window
from .grid import Size, Window
from .moment import Moment, Schedule, schedule_of
from .reference_regions import ReferenceRegion, of_conditioning

KEY = "maskprompt"
"""Under this key all of our wrappers stand."""
VIEW = "maskprompt_view"
HALVES = "maskprompt_halves"
"""The option that tells which half of CFG each conditioning belongs to, by its uuid."""
COPIES = "maskprompt_copies"
"""The option that tells, by its uuid, who sees the references that a copied conditioning brings (`read_of`)."""
PROMPT = "maskprompt_prompt"
"""The option that tells how many of a UNet's words are the prompt's, where regions' words follow them."""


Frames = tuple[tuple[int, ...], int]
"""The latent frames that are seen, and their number in all."""


@dataclass(frozen=True)
class Row:
    """One row of the batch: which half of CFG it belongs to (0 positive, 1 negative), which picture it is, what it sees of the latent.

    `frames` are the latent frames that it sees and their number in all, None if it sees all. `references` say of each reference of its
    prompt in order who sees it, None for one that is seen by all; empty if there is nothing to say.
    """

    half: int
    image: int
    window: Window
    frames: Frames | None = None
    references: tuple[ReferenceRegion | None, ...] = ()


@dataclass(frozen=True)
class View:
    """The whole latent's size, the area of every conditioning that has one (Conditioning Set Area) by its uuid, and what a call sees
    without one (all, or a context window's rows or columns).

    By uuid too: how many words a text has, who sees a prompt's references, and the frames of an area in time. `frames` are those of a
    context window. `schedule` is the running model's.
    """

    latent: Size
    areas: dict[Any, Window]
    seen: Window | None = None
    texts: dict[Any, int] = field(default_factory=dict[Any, int])
    frames: Frames | None = None
    references: dict[Any, tuple[ReferenceRegion | None, ...]] = field(default_factory=dict[Any, tuple[ReferenceRegion | None, ...]])
    times: dict[Any, Frames] = field(default_factory=dict[Any, Frames])
    schedule: Schedule | None = None


def moment_of(options: Mapping[str, Any], schedule: Schedule | None = None) -> Moment:
    """Gives the point of the sampling of a call, by the schedule of the model that runs, or the given one where nothing tells that."""
    sigma = float(options["sigmas"].max()) if "sigmas" in options else math.inf
    view: View | None = options.get(VIEW)
    told = None if view is None else view.schedule
    return Moment(sigma, told or schedule)


def rows_of(options: dict[str, Any], batch: int, size: Size) -> tuple[Size, tuple[Row, ...]]:
    """The whole latent's size, and what each row of a call is. `batch` and `size` are the call's own.

    Raises RuntimeError where a call shows only a part of the latent and nothing tells which.
    """
    halves = options.get("cond_or_uncond") or [0]
    named: dict[Any, int] = options.get(HALVES) or {}
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
    for chunk, place in enumerate(halves):
        uuid = uuids[chunk] if chunk < len(uuids) else None
        # Where the prompts are known by name, another one (Perp-Neg's empty prompt) is not the positive one.
        half = named.get(uuid, 1 if named and uuid is not None else place)
        window = (None if view is None else view.areas.get(uuid)) or seen
        references = () if view is None else view.references.get(uuid, ())
        frames = None if view is None else view.times.get(uuid, view.frames)
        if window[2:] != size:
            raise RuntimeError(
                f"a node paints this picture in tiles or crops ({size[1] * 8}x{size[0] * 8} of {latent[1] * 8}x{latent[0] * 8} pixels) "
                "without saying which, so a mask cannot be placed. Bypass the tiling node, or MaskPrompt's."
            )
        rows += [Row(half, image, window, frames, references) for image in images]
    return latent, tuple(rows)


def read_of(conds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives for each conditioning of a prompt the one whose text and references the model reads in its place, mostly itself.

    For a prompt's area ComfyUI puts a copy of it into the other prompt's list, with that prompt's `model_conds`: the very objects, which
    stand before the copies.
    """
    first: dict[int, dict[str, Any]] = {}
    texts = [(cond.get("model_conds") or {}).get("c_crossattn") for cond in conds]
    return [cond if text is None else first.setdefault(id(text), cond) for cond, text in zip(conds, texts, strict=True)]


def remember_halves(executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Any:
    """Wrapper of a guider's `predict_noise`: notes which conditionings are the positive prompt, and who sees the references of copies.

    Their order in a call does not tell: Dual CFG Guider runs the negative first, and Self-Attention Guidance the negative alone. A copy
    that ComfyUI gave another prompt, for its area, gets an id of its own: these entries belong to this sampling alone.
    """
    conds: dict[str, Any] = getattr(executor.class_obj, "conds", None) or {}
    halves: dict[Any, int] = {}
    copies: dict[Any, tuple[ReferenceRegion | None, ...]] = {}
    for name, entries in sorted(conds.items(), key=lambda named: named[0] != "positive"):
        known = [cond for cond in entries or () if "uuid" in cond]
        for cond, read in zip(known, read_of(known), strict=True):
            if cond["uuid"] in halves:
                cond["uuid"] = uuid4()
            halves[cond["uuid"]] = int(name != "positive")
            if read is not cond:
                copies[cond["uuid"]] = of_conditioning(read)
    told = {HALVES: halves if conds.get("positive") else {}, COPIES: copies}
    options = {**model_options.get("transformer_options", {}), **told}
    return executor(x, timestep, {**model_options, "transformer_options": options}, seed)


def innermost(options: dict[str, Any]) -> dict[str, Any]:
    """Gives transformer options in which our wrappers around the model stand innermost, as near the model as they can.

    So a node that answers for the model (EasyCache) does so for its own pass of the model, whatever the order in the graph.
    """
    from comfy.patcher_extension import WrappersMP

    wrappers = dict(options.get("wrappers", {}))
    for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL):
        if KEY in wrappers.get(kind, {}):
            others = {key: found for key, found in wrappers[kind].items() if key != KEY}
            wrappers[kind] = {**others, KEY: wrappers[kind][KEY]}
    return {**options, "wrappers": wrappers}


def text_of(cond: dict[str, Any]) -> Tensor | None:
    """Gives what the model reads of a conditioning [B, L, width]: of a copy made for its area that is not the text beside it."""
    read = getattr((cond.get("model_conds") or {}).get("c_crossattn"), "cond", None)
    return read if isinstance(read, Tensor) and read.ndim == 3 else cond.get("cross_attn")


def remember_view(executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any]) -> Any:
    """Wrapper of `calc_cond_batch`: notes the whole latent and the areas, which ComfyUI crops away before the UNet runs."""
    height, width = x.shape[-2:]
    times: dict[Any, Frames] = {}
    options = model_options.get("transformer_options", {})
    frames = context_window.frames(options, x.ndim)
    areas: dict[Any, Window] = {}
    texts: dict[Any, int] = {}
    references: dict[Any, tuple[ReferenceRegion | None, ...]] = {}
    copies: dict[Any, tuple[ReferenceRegion | None, ...]] = options.get(COPIES) or {}
    for cond in (entry for entries in conds if entries is not None for entry in entries):
        text = text_of(cond)
        if text is not None:
            texts[cond["uuid"]] = text.shape[1]
        regions = copies[cond["uuid"]] if cond["uuid"] in copies else of_conditioning(cond)
        if regions:
            references[cond["uuid"]] = regions
        if "area" in cond:
            half = len(cond["area"]) // 2
            area_height, area_width = cond["area"][:half][-2:]
            top, left = cond["area"][half:][-2:]
            areas[cond["uuid"]] = (top, left, min(height - top, area_height), min(width - left, area_width))
            if half == 3 and x.ndim == 5:
                shown, total = frames or (tuple(range(x.shape[2])), x.shape[2])
                times[cond["uuid"]] = (shown[cond["area"][3] :][: cond["area"][0]], total)
    latent, seen = context_window.place(options, (height, width), x.ndim)
    if areas and latent != (height, width):
        raise RuntimeError(f"a prompt's area and {context_window.SIDEWAYS} meet: where a mask lies is not known. Bypass one of the nodes.")
    schedule = schedule_of(getattr(model, "model_sampling", None))
    options = {**innermost(options), VIEW: View(latent, areas, seen, texts, frames, references, times, schedule)}
    with compiled.as_it_must_run(model_options):
        return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})
