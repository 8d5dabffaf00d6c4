"""The command line's options that several methods share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..engine.options import Option, described


def number(kind: type[int] | type[float] = int, lowest: float = 0, highest: float = math.inf, multiple: int = 1) -> Callable[[str], float]:
    """Reads a number from `lowest` to `highest` for argparse."""

    def read(text: str) -> float:
        value = kind(text)
        if not lowest <= value <= highest or value == math.inf or (multiple > 1 and value % multiple):
            limits = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}{f' and a multiple of {multiple}' if multiple > 1 else ''}")
        return value

    read.__name__ = "number" if kind is float else "whole number"
    return read


def usual_or(read: Callable[[str], float]) -> Callable[[str], float | None]:
    """Reads what `read` reads, and 0, which is the usual value, as None."""

    def value(text: str) -> float | None:
        return read(text) or None

    value.__name__ = "number"
    return value


def general_options() -> argparse.ArgumentParser:
    """What every method takes."""
    parser = argparse.ArgumentParser(add_help=False)
    where = parser.add_argument_group("where things are")
    where.add_argument("--comfyui", metavar="FOLDER", help="ComfyUI, if it is neither in COMFYUI_PATH nor around this pack")
    where.add_argument(
        "--checkpoint", metavar="FILE", required=True, help="what is trained: a file, or the name of one in ComfyUI's models/checkpoints"
    )
    where.add_argument(
        "--register",
        metavar="PATH",
        action="append",
        default=[],
        help="a Python file or package to import first, which makes ComfyUI know a model that it does not know by itself; its code is run",
    )
    where.add_argument("--cpu", action="store_true", help="train on the processor even if there is a GPU")
    files = parser.add_argument_group("what is written")
    files.add_argument(
        "--out", metavar="FILE", help="what was learned, .safetensors (default: in ComfyUI's models/loras, ipadapter or controlnet)"
    )
    files.add_argument("--overwrite", action="store_true", help="replace --out if it exists, and a state of another training")
    files.add_argument(
        "--state", metavar="FILE", help="the state of an interrupted training, from which the same command goes on (default: beside --out)"
    )
    files.add_argument(
        "--save-every", metavar="STEPS", type=number(lowest=1), default=100, help="how often the state is written (%(default)s)"
    )
    files.add_argument("--preview", metavar="FOLDER", help="paint what has been learned into this folder")
    files.add_argument(
        "--preview-every", metavar="STEPS", type=number(lowest=1), default=100, help="how often (%(default)s), and at the end"
    )
    files.add_argument("--verbose", action="store_true", help="show ComfyUI's messages, and where in the program an error arose")
    return parser


def add_options(
    group: Any, options: type[Any], *fields: str, flags: Mapping[str, str] | None = None, usual: Mapping[str, str] | None = None
) -> None:
    """Arguments of a method's options, each by its field's name or by another of `flags`; `usual` says what is taken without."""
    for field in fields:
        default, about = described(options)[field]
        flag = (flags or {}).get(field, f"--{field.replace('_', '-')}")
        add_option(group, flag, field, default, about, (usual or {}).get(field, ""))


def add_option(group: Any, flag: str, name: str, default: Any, about: Option, usual: str = "") -> None:
    """One argument, which becomes attribute `name`."""
    otherwise = usual or ("on" if default is True else "off" if default is False else "%(default)s")
    told = f"{about.sentence.replace('%', '%%').rstrip('.')} ({otherwise})"
    group.add_argument(flag, dest=name, default=default, help=told, **_reading(default, about))


def _reading(default: Any, about: Option) -> dict[str, Any]:
    """How argparse reads an option. A whole number may go beyond where a node's widget ends."""
    if about.choices:
        return {"choices": about.choices}
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(default, str):
        return {}
    lowest = about.lowest or 0
    if isinstance(default, int):
        return {"type": number(int, lowest, multiple=int(about.step or 1))}
    if default is None:
        return {"type": usual_or(number(float))}
    return {"type": number(float, lowest, math.inf if about.highest is None else about.highest)}
