"""A custom-node folder for the tests: a node that gives values which no good node gives, and one that says whether a value is whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

HUGE = 10**400


def picture(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random numbers of this shape in 0..1."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(7))
    return (values * 255).to(dtype) if not dtype.is_floating_point and not dtype.is_complex else values.to(dtype)


def holed(value: torch.Tensor, hole: float) -> torch.Tensor:
    """The tensor with `hole` in its middle."""
    flat = value.flatten().clone()
    flat[len(flat) // 2] = hole
    return flat.reshape(value.shape)


SHAPES: dict[str, tuple[int, ...]] = {
    "empty batch": (0, 64, 96, 3), "no width": (1, 64, 0, 3), "one channel": (1, 64, 96, 1), "two channels": (1, 64, 96, 2),
    "four channels": (1, 64, 96, 4), "five channels": (1, 64, 96, 5), "one pixel": (1, 1, 1, 3), "a line": (1, 1, 96, 3),
    "batch of three": (3, 64, 96, 3), "odd size": (2, 61, 83, 3), "a mask": (1, 64, 96), "masks": (3, 64, 96), "no masks": (0, 64, 96),
    "flat": (64, 96), "a number": (), "five dimensions": (1, 1, 64, 96, 3), "channels first": (1, 3, 64, 96),
}  # fmt: skip
VALUES: dict[str, Callable[[], Any]] = {
    **{name: lambda shape=shape: picture(*shape) for name, shape in SHAPES.items()},
    **{
        f"{name} {str(kind).removeprefix('torch.')}": lambda shape=shape, kind=kind: picture(*shape, dtype=kind)
        for name, shape in (("picture", (1, 64, 96, 3)), ("mask", (1, 64, 96)))
        for kind in (torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool, torch.complex64)
    },
    **{
        f"{name} with {hole}": lambda shape=shape, hole=hole: holed(picture(*shape), hole)
        for name, shape in (("picture", (1, 64, 96, 3)), ("mask", (1, 64, 96)))
        for hole in (math.nan, math.inf, -math.inf, 1e30, -5.0)
    },
    "all NaN": lambda: torch.full((1, 64, 96, 3), math.nan),
    "empty mask": lambda: torch.zeros(1, 64, 96),
    "full mask": lambda: torch.ones(1, 64, 96),
    "strided": lambda: picture(1, 96, 64, 3).transpose(1, 2),
    "learning": lambda: picture(1, 64, 96, 3).requires_grad_(),
    "None": lambda: None, "True": lambda: True, "zero": lambda: 0, "minus one": lambda: -1, "half": lambda: 0.5,
    "NaN": lambda: math.nan, "infinite": lambda: math.inf, "minus infinite": lambda: -math.inf, "huge": lambda: HUGE,
    "huge negative": lambda: -HUGE, "1e308": lambda: 1e308, "complex": lambda: 1j, "numeric tensor": lambda: torch.tensor(3.0),
    "no text": lambda: "", "blanks": lambda: " \n\t", "NUL": lambda: "a\0b", "embedding": lambda: "embedding:",
    "embedding at the end": lambda: "a cat, embedding:", "broken weight": lambda: "((a:1e999)", "long": lambda: "word " * 5000,
    "characters": lambda: "\u732b \U0001f431 \ud800", "path": lambda: "../../etc/passwd", "NaN text": lambda: "NaN",
    "points": lambda: "1e400,3; 4", "open brackets": lambda: "[" * 5000, "JSON object": lambda: '{"x": {"x": []}}',
    "JSON points": lambda: '[{"x": 1e999, "y": "a"}]', "JSON huge": lambda: f'[{{"x": {HUGE}, "y": 2}}]', "comma": lambda: ",,,",
    "layers": lambda: "input 99, output -1", "bytes": lambda: b"abc", "object": object, "a type": lambda: int,
    "empty list": list, "list": lambda: [1, "a", None], "lists": lambda: [[[]]], "empty dict": dict,
    "dict": lambda: {"samples": 3}, "latent": lambda: {"samples": torch.zeros(1, 4, 8, 12)},
    "empty latent": lambda: {"samples": torch.zeros(0, 4, 8, 12)}, "wide latent": lambda: {"samples": torch.zeros(1, 16, 8, 12)},
    "video latent": lambda: {"samples": torch.zeros(1, 4, 3, 8, 12)}, 
    "broken latent": lambda: {"samples": torch.full((1, 4, 8, 12), math.nan)},
    "box": lambda: {"x": math.inf, "y": math.nan, "width": HUGE, "height": -HUGE}, "half a box": lambda: {"x": 3},
    "text box": lambda: {"x": "a", "y": None, "width": [], "height": {}}, 
    "boxes": lambda: [[{"x": 1, "y": 2, "width": 3, "height": 4}], []],
    "no boxes": lambda: [[]], "conditioning": lambda: [[torch.zeros(1, 77, 128), {}]],
    "wide conditioning": lambda: [[torch.zeros(1, 77, 999), {}]], "flat conditioning": lambda: [[torch.zeros(77), {}]],
    "half a conditioning": lambda: [[torch.zeros(1, 77, 128)]], "conditioning of nothing": lambda: [[None, None]],
    "broken conditioning": lambda: [[torch.full((1, 77, 128), math.nan), {"pooled_output": "x", "area": 3}]],
    "a module": lambda: torch.nn.Linear(2, 2), "weights": lambda: {"a": torch.zeros(2)},
}  # fmt: skip


class OddValue:
    """One of `VALUES`, by name."""

    CATEGORY = "tests"
    RETURN_TYPES = ("*",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (ComfyUI's name)
        return {"required": {"name": ("STRING", {"default": "None"})}}

    def give(self, name: str) -> tuple[Any]:
        """Make the value anew."""
        return (VALUES[name](),)


class Whole:
    """Says of any value whether the tensors in it hold numbers alone."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "look"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (ComfyUI's name)
        return {"required": {"value": ("*", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:  # noqa: N802  (ComfyUI's name)
        return True

    def look(self, value: Any) -> dict[str, Any]:
        """Report it as the node's output "whole"."""
        return {"ui": {"whole": [whole(value)]}}


def whole(value: Any, depth: int = 4) -> bool:
    """Whether no tensor in a value, its lists and dicts holds NaN or infinite numbers."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if depth and isinstance(value, Mapping):
        return all(whole(part, depth - 1) for part in value.values())
    if depth and isinstance(value, (list, tuple)):
        return all(whole(part, depth - 1) for part in value)
    return True


NODE_CLASS_MAPPINGS: dict[str, type] = {"OddValue": OddValue, "Whole": Whole}
