"""What the Train nodes ask for alike."""

from __future__ import annotations

from comfy_api.latest import io

LossMap = io.Custom("LOSS_MAP")
"""Core's type for Plot Loss Graph."""


def seed() -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**53, control_after_generate=False, tooltip="The same seed trains the same.")


def preview_every(default: int, most: int, what: str) -> io.Int.Input:
    """`what` is said of the picture: "Paints the subject every so many steps."."""
    return io.Int.Input(
        "preview_every", default=default, min=0, max=most, optional=True, advanced=True, tooltip=f"{what} 0: never.",
    )  # fmt: skip


def resume() -> io.Boolean.Input:
    return io.Boolean.Input(
        "resume", default=True, optional=True, advanced=True, tooltip="Go on where the same training was interrupted. Off: begin again.",
    )  # fmt: skip


def checkpointing() -> io.Boolean.Input:
    return io.Boolean.Input(
        "gradient_checkpointing", default=True, optional=True, advanced=True, tooltip="Needs far less memory and about a third more time.",
    )  # fmt: skip


def average(example: float, of: str = "the weights", last: str = "the last weights.") -> io.Float.Input:
    """`of`: what the average is of; `last`: what 0 takes."""
    return io.Float.Input(
        "average", default=0.0, min=0.0, max=0.9999, step=0.001, optional=True, advanced=True,
        tooltip=f"Keep a moving average of {of} with this decay, for example {example:g}. 0: {last}",
    )  # fmt: skip
