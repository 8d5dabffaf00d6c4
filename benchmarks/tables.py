"""`nox -s tables -- NAME`: the tables, on the tiny model."""

from __future__ import annotations

import sys

from .pack import load_pack

TABLES: tuple[str, ...] = ("tiny-model",)


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        raise SystemExit(f"no table named {', '.join(unknown)}; there are: {', '.join(TABLES)}")
    load_pack()
    for name in names or TABLES:
        from . import tiny_model

        tiny_model.main(f"nox -s tables -- {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
