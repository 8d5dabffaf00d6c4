"""What the Train nodes ask for: options as widgets, and what all of them have beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..training.engine import options as engine

LossMap = io.Custom("LOSS_MAP")
"""Core's type for Plot Loss Graph."""
LoraModel = io.Custom("LORA_MODEL")


def widget(options: type[Any], field: str, **more: Any) -> io.Input:
    """The input of an option of an options class; `more` in place of what the option says."""
    default, about = engine.described(options)[field]
    return of(about.name or field, default, about, more)


def of(name: str, default: Any, about: engine.Option, more: Mapping[str, Any] | None = None) -> io.Input:
    """The input of an option by its name and default."""
    known: dict[str, Any] = {"default": 0.0 if default is None else default, "tooltip": about.sentence, **about.more}
    if about.advanced:
        known |= {"optional": True, "advanced": True}
    known |= more or {}
    if about.choices:
        return io.Combo.Input(name, options=list(about.choices), **known)
    if isinstance(default, str):
        return io.String.Input(name, **known)
    if isinstance(default, bool):
        return io.Boolean.Input(name, **known)
    limits = (("min", about.lowest), ("max", about.highest), ("step", about.step))
    if isinstance(default, int):
        return io.Int.Input(name, **{key: int(limit) for key, limit in limits if limit is not None}, **known)
    rounded = {} if about.round is None else {"round": about.round}
    return io.Float.Input(name, **{key: limit for key, limit in limits if limit is not None}, **rounded, **known)


def widgets(options: type[Any], *fields: str) -> list[io.Input]:
    """Several of them."""
    return [widget(options, field) for field in fields]


def preview_every(default: int, most: int, what: str) -> io.Int.Input:
    """`what` is said of the picture: "Paints the subject every so many steps."."""
    return io.Int.Input(
        "preview_every", default=default, min=0, max=most, optional=True, advanced=True, tooltip=f"{what} 0: never.",
    )  # fmt: skip


def resume() -> io.Boolean.Input:
    return io.Boolean.Input(
        "resume", default=True, optional=True, advanced=True, tooltip="Go on where the same training was interrupted. Off: begin again.",
    )  # fmt: skip
