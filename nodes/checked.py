"""What comes into a node, checked at its border by the node's own schema: `@checked` on `execute`.

Values that come through links are not looked at by ComfyUI: any number, text or type may arrive. So each input's declaration is read once
more here. What an input must be beyond its declaration, the node asks itself (`checks.py` has the words).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from . import checks

Execute = TypeVar("Execute", bound=Callable[..., Any])

NEEDED: dict[str, str] = {
    "MODEL": "a model",
    "CLIP": "a text encoder (CLIP)",
    "VAE": "a VAE",
    "CLIP_VISION": "a CLIP vision model",
    "CONTROL_NET": "a control network",
    "MASKPROMPT_CROP": "the crop of Crop Around Box",
    "MASKPROMPT_SAM": "a SAM model",
    "MASKPROMPT_MASK_ADAPTER": "the adapter of a Mask-ControlNet",
    "MASKPROMPT_MASK_ENCODER": "a mask encoder",
    "MASKPROMPT_MECA": "a MECA adapter",
}
"""What an input of each type needs, in words."""
PLAIN = (str, bytes, int, float, complex, list, tuple, dict, type, Tensor, nn.Module)
"""What is certainly no such object."""
BEYOND = 1e30
"""No number is larger."""
NOTHING: dict[str, str] = {
    "CLIP": "no text encoder was given (the checkpoint holds none): wire the CLIP of the checkpoint, or Load CLIP.",
    "VAE": "no VAE was given (the checkpoint holds none): wire Load VAE.",
}
"""What is said where a link of a type brings nothing, and why it may."""
OWN_WORDS = frozenset({"CLIP_VISION", "CONTROL_NET", "MASKPROMPT_MASK_ENCODER"})
"""Types of which the nodes say themselves what nothing means."""
BARE = re.compile(r"embedding:\s*(?=$|[()])")
FILES = "_name"
"""Choices of files are checked by the nodes, which say where the files belong."""


def checked(execute: Execute) -> Execute:
    """Check every given input of a V3 node's `execute` by its schema, and call it with what the checks return.

    Missing optional inputs stay so, and None is the default. ValueError in the artist's words for anything else.
    """
    parameters = inspect.signature(execute)

    @wraps(execute)
    def run(cls: Any, *args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(cls, *args, **kwargs).arguments
        named = {name: value for name, value in given.items() if name not in ("cls", _rest(parameters))}
        named |= given.get(_rest(parameters), {})
        title, lists, declared = _declared(_original(cls))
        for name, value in named.items():
            if name in declared:
                named[name] = _each(value, declared[name], title, lists)
        return execute(cls, **named)

    return cast(Execute, run)


def _rest(parameters: inspect.Signature) -> str:
    """The name under which a function takes further named values, "" if it takes none."""
    return next((one.name for one in parameters.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD), "")


def _original(cls: Any) -> Any:
    """The class that was written: ComfyUI runs a shallow copy of it, a new one each time."""
    return next(one for one in cls.__mro__ if "define_schema" in vars(one) and "execute" in vars(one))


@cache
def _declared(cls: Any) -> tuple[str, bool, dict[str, Any]]:
    """A node's title, whether its inputs come as lists, and its inputs by name."""
    schema = cls.define_schema()
    return schema.display_name, bool(schema.is_input_list), {one.id: one for one in schema.inputs}


def _each(value: Any, declared: Any, node: str, lists: bool) -> Any:
    """A value by its declaration, or each of a list. Of an optional list what brings nothing (a switch that is off) is left out."""
    if not lists:
        return _one(value, declared, node, lists)
    if isinstance(value, (list, tuple)) and declared.optional and getattr(declared, "default", None) is None:
        value = [one for one in value if one is not None]
    return [_one(one, declared, node, lists) for one in value] if isinstance(value, (list, tuple)) else value


def _one(value: Any, declared: Any, node: str, lists: bool) -> Any:
    """One value by its declaration. None, where the input is optional, is its default. Which picture of a list is broken, the node says."""
    name = declared.id
    kind = declared.get_io_type()
    if value is None and declared.optional:
        return getattr(declared, "default", None)
    if isinstance(value, str):
        _whole_characters(value, name, node)
    if kind == "IMAGE":
        return checks.image(value, name, node, finite=not lists)
    if kind == "MASK":
        # Of no masks at all an optional input says what it means.
        none = declared.optional and isinstance(value, Tensor) and len(value.shape) > 0 and len(value) == 0
        return value if none else checks.mask(value, name, node)
    if kind == "INT":
        return checks.whole(value, name, node, *_range(declared))
    if kind == "FLOAT":
        return _number(value, declared, node)
    if kind == "STRING":
        return _text(value, name, node)
    if kind == "BOOLEAN":
        return _switch(value, name, node)
    if kind == "COMBO":
        return value if name.endswith(FILES) and isinstance(value, str) else checks.choice(value, name, node, declared.options)
    if kind == "LATENT":
        return _latent(value, name, node)
    if kind == "CONDITIONING":
        return _conditioning(value, name, node)
    if kind in NEEDED and (value is None or isinstance(value, PLAIN) or type(value) is object):
        if value is None and kind in OWN_WORDS:
            return None
        if value is None and kind in NOTHING:
            raise ValueError(NOTHING[kind])
        found = "nothing" if value is None else type(value).__name__
        raise ValueError(f"{name}: {found} was given, but {node} needs {NEEDED[kind]}. Wire an output of the type {kind} to it.")
    return value


def _range(declared: Any) -> tuple[Any, Any]:
    lowest = -(2**63) if declared.min is None else declared.min
    highest = 2**64 if declared.max is None else declared.max
    return lowest, highest


def _number(value: Any, declared: Any, node: str) -> float:
    """A finite number, not below what the widget offers; how far it may go above, the node itself says."""
    lowest, highest = _range(declared)
    found = float(value) if isinstance(value, float) else checks.number(value, declared.id, node, -BEYOND, BEYOND)
    if not math.isfinite(found) or not lowest <= found <= BEYOND:
        raise ValueError(f"{node}: {declared.id} is {value}. A number from {lowest:g} to {highest:g} is needed.")
    return found


def _whole_characters(value: str, name: str, node: str) -> None:
    """ValueError for a text that cannot be written down: ComfyUI prints what an error says, and half of a pair would end its worker."""
    broken = [character for character in value if "\ud800" <= character <= "\udfff"]
    if broken or "\0" in value:
        raise ValueError(f"{node}: {name} holds a character that is none (NUL, or half of a pair). Type it anew.")


def _text(value: Any, name: str, node: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{node}: {name} must be a text, got {type(value).__name__}.")
    if BARE.search(value):
        raise ValueError(f"{node}: {name} says embedding: without a name. Write the name of a file in models/embeddings right after it.")
    return value


def _switch(value: Any, name: str, node: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{node}: {name} is a switch, on or off, got {type(value).__name__}.")


def _latent(value: Any, name: str, node: str) -> dict[str, Any]:
    """A LATENT whose samples are float [B, C, (frames,) h, w], nowhere empty, of finite numbers."""
    samples = value.get("samples") if isinstance(value, dict) else None
    if not isinstance(samples, Tensor):
        raise ValueError(f"{node}: {name} must be a latent, got {type(value).__name__}. Wire a LATENT output to it.")
    if samples.ndim not in (4, 5) or 0 in samples.shape:
        raise ValueError(f"{node}: {name} is a latent of the shape {list(samples.shape)}; [batch, channels, height, width] is needed.")
    if not samples.is_floating_point() or not bool(samples.isfinite().all()):
        raise ValueError(f"{node}: {name} is a latent with values that are no numbers (NaN) or infinite: a node before it failed.")
    return value


def _conditioning(value: Any, name: str, node: str) -> list[Any]:
    """CONDITIONING: pairs of text [B, tokens, width], finite, and a dict."""
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{node}: {name} must be a prompt, got {'an empty one' if value == [] else type(value).__name__}. Wire a text node."
        )
    for entry in value:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[0], Tensor) or not isinstance(entry[1], dict):
            raise ValueError(f"{node}: {name} is no whole prompt (CONDITIONING). Wire a text node's output to it.")
        if entry[0].ndim != 3 or 0 in entry[0].shape:
            raise ValueError(f"{node}: {name} is a prompt of the shape {list(entry[0].shape)}; [batch, tokens, width] is needed.")
        if not bool(entry[0].isfinite().all()):
            raise ValueError(f"{node}: {name} is a prompt with values that are no numbers (NaN) or infinite: the text encoder failed.")
    return value
