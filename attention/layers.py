"""The attention layers of a UNet: their keys, as ComfyUI's patches name them, and named choices among them.

A layer is `(name, block, index)`: `("input", 4, 0)` is the first transformer of input block 4. Works on
anything shaped like ComfyUI's UNetModel (SD 1.x, 2.x, SDXL and their inpainting forms).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

Layer = tuple[str, int, int]
Preset = Literal["paper", "reference code", "all"]
PRESETS: tuple[str, ...] = get_args(Preset)
THIRDS = ("first third", "middle third", "last third")
"""Choices by depth, in the order in which the layers run."""


def is_unet(model: Any) -> bool:
    """Whether a diffusion model has a UNet's blocks."""
    return hasattr(model, "input_blocks") and hasattr(model, "output_blocks")


def layers_of(unet: Any) -> tuple[Layer, ...]:
    """Every attention layer of the UNet in the order in which they run.

    Raises TypeError where there are none: the model is no UNet (Flux, SD 3 and other transformers have no such blocks).
    """
    parts = (("input", getattr(unet, "input_blocks", ())), ("middle", ()), ("output", getattr(unet, "output_blocks", ())))
    middle = getattr(unet, "middle_block", None)
    found: list[Layer] = []
    for name, blocks in parts:
        for block, modules in enumerate([middle] if name == "middle" and middle is not None else blocks):
            for module in modules:
                if getattr(module, "time_stack", None) is not None:
                    raise TypeError(
                        "this UNet has layers over time (SVD, SV3D). This node takes SD 1.5, SD 2.1 and SDXL models, and their inpainting "
                        "forms."
                    )
                for index, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                    if getattr(transformer, "disable_self_attn", False):
                        raise TypeError(
                            "this UNet's self-attention reads the text (SDXS, SD x4 upscaler). This node takes SD 1.5, SD 2.1 and SDXL "
                            "models, and their inpainting forms."
                        )
                    found.append((name, block, index))
    if not found:
        raise TypeError(
            f"this model ({type(unet).__name__}) is not a UNet with attention layers. "
            "This node takes SD 1.5, SD 2.1 and SDXL models, and their inpainting forms."
        )
    return tuple(found)


def levels_of(unet: Any) -> dict[Layer, int]:
    """How often each layer's grid is the latent's halved: 0 for the outermost layers of SD 1.5, 3 for its middle."""
    level = 0
    levels = {}
    for name, blocks in (("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks)):
        for block, modules in enumerate(blocks):
            for module in modules or ():
                kind = type(module).__name__
                level += (kind == "Downsample") - (kind == "Upsample")
                for index in range(len(getattr(module, "transformer_blocks", ()))):
                    levels[(name, block, index)] = level
    return levels


def preset(name: str, layers: tuple[Layer, ...]) -> frozenset[Layer]:
    """The layers that DreamCom's masked self-attention works on.

    paper: all but the outer two thirds of the decoder's blocks, which blend object and background (section 4.3: "the
    last 6 layers of the U-Net decoder", which are 6 of 9 in SD 1.5 and 2.1; 4 of 6 in SDXL).
    reference code: the outer five ninths of the decoder's blocks, which the published code masks (5 of 9, 3 of 6).
    all: every layer. first, middle and last third: by depth.
    Of a transformer, which has no decoder, paper is all but the last third, and reference code the last third.
    """
    if name == "all":
        return frozenset(layers)
    transformer = not any(layer[0] == "output" for layer in layers)
    if transformer and name in PRESETS:
        last = preset("last third", layers)
        return last if name == "reference code" else frozenset(layers) - last
    if name in THIRDS:
        number = THIRDS.index(name)
        return frozenset(layers[len(layers) * number // 3 : len(layers) * (number + 1) // 3])
    blocks = sorted({block for part, block, _ in layers if part == "output"})
    if name == "paper":
        outer = set(blocks[len(blocks) - round(len(blocks) * 6 / 9) :])
        return frozenset(layer for layer in layers if layer[0] != "output" or layer[1] not in outer)
    if name == "reference code":
        outer = set(blocks[len(blocks) - round(len(blocks) * 5 / 9) :])
        return frozenset(layer for layer in layers if layer[0] == "output" and layer[1] in outer)
    raise ValueError(f"unknown choice of layers {name!r}; known: {', '.join((*PRESETS, *THIRDS))}")


def parse(text: str, layers: tuple[Layer, ...]) -> frozenset[Layer]:
    """The layers that a text names: "input 1, middle 0, output 3.1".

    A block without an index means all its transformers; capitals and spaces do not matter. Raises ValueError, naming what the model
    has, for anything else.
    """
    blocks = list(dict.fromkeys(f"{name} {block}" for name, block, _ in layers))
    example = f"Write for example: {blocks[0]}, {blocks[-1]}"
    chosen: set[Layer] = set()
    for part in (" ".join(piece.lower().split()) for piece in text.split(",")):
        if not part:
            continue
        found = [layer for layer in layers if part in (f"{layer[0]} {layer[1]}", describe(layer))]
        if not found:
            raise ValueError(f"this model has no attention layer {part!r}. It has: {', '.join(blocks)}. {example}")
        chosen.update(found)
    if not chosen:
        raise ValueError(f"the list of layers is empty. {example}")
    return frozenset(chosen)


def describe(layer: Layer) -> str:
    """A layer as `parse` reads it: "output 3.1"."""
    return f"{layer[0]} {layer[1]}.{layer[2]}"
