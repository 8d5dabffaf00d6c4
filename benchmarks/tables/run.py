"""`nox -s tables -- NAME`: the tables, on the tiny model. What follows a name and begins with -- is that table's own."""

from __future__ import annotations

import importlib
import sys

from demo.pack import load_pack

TABLES: dict[str, str] = {
    "tiny-model": "tiny_model",
    "dreamcom": "dreamcom",
    "meca": "meca",
    "mcgm": "mcgm",
    "mcgm-presets": "mcgm_presets",
    "mask-controlnet": "mask_controlnet",
    "paste-back": "paste_back",
    "sam": "sam",
    "regions": "regions",
    "tiny-edit": "tiny_edit",
    "tiny-things": "tiny_things",
    "references": "references",
    "transformer": "transformer",
}
"""The tables and the modules that measure them."""


def main(arguments: list[str]) -> None:
    first = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    names = arguments[:first]
    options = arguments[first:]
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        raise SystemExit(f"no table named {', '.join(unknown)}; there are: {', '.join(TABLES)}")
    load_pack()
    for name in names or TABLES:
        table = importlib.import_module(f".{TABLES[name]}", __package__)
        command = f"nox -s tables -- {name}"
        table.main(command, options) if options else table.main(command)


if __name__ == "__main__":
    main(sys.argv[1:])
