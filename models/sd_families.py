"""The families of Stable Diffusion's UNets, told apart by a few of their sizes. Every message of the pack takes their names from here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family: its `name`, its UNet's `channels` at full resolution and number of cross-attention `layers`, its text's width `context`."""

    name: str
    channels: int
    layers: int
    context: int


FAMILIES = (Family("SD 1.5", 320, 16, 768), Family("SD 2.1", 320, 16, 1024), Family("SDXL", 320, 70, 2048))


def in_brackets(context: int, channels: int | None = None, layers: int | None = None) -> str:
    """Names the family with text of this width, and with these sizes if they are given, for the end of a sentence: " (SD 1.5)".

    Nothing for what is none of them.
    """
    for family in FAMILIES:
        if family.context == context and channels in (None, family.channels) and layers in (None, family.layers):
            return f" ({family.name})"
    return ""


def text_width(context: int) -> str:
    """Says a text's width in words: "width 768 (SD 1.5)"."""
    return f"width {context}{in_brackets(context)}"


def unet(channels: int, context: int) -> str:
    """Says a UNet's sizes in words: "a UNet of 320 channels with text of width 768 (SD 1.5)"."""
    return f"a UNet of {channels} channels with text of width {context}{in_brackets(context, channels=channels)}"


def attention(layers: int, context: int) -> str:
    """Says what an image prompt's adapter fits in words: "16 attention layers and text of width 768 (SD 1.5)"."""
    return f"{layers} attention layers and text of width {context}{in_brackets(context, layers=layers)}"
