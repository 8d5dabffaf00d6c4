"""`nox -s bench`: times and memory as ratios, both sides in one run on the same machine, taken in turns.

`nox -s bench -- attention` (or `step`, `sam`, ...) measures one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from demo.pack import load_pack

from ..figures import Figure, write
from . import attention, joint, meca, pointing, probe, references, sam, training, visibility

PARTS: dict[str, Callable[[], list[Figure]]] = {
    "attention": attention.attention,
    "step": attention.step,
    "sam": sam.sam,
    "pointing": pointing.pointing,
    "visibility": visibility.visibility,
    "meca": meca.meca,
    "training": training.training,
    "probe": probe.probe,
    "joint": joint.joint,
    "references": references.references,
}
INTERVALS = {"pointing": "quartiles of seconds"}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    load_pack()
    for name in names or PARTS:
        write(f"bench-{name}", f"nox -s bench -- {name}", PARTS[name](), {"interval": INTERVALS.get(name, "quartiles of paired ratios")})


if __name__ == "__main__":
    main(sys.argv[1:])
