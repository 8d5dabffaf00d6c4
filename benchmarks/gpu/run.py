"""`nox -s gpu`: every check of what only a GPU can show, within a time budget; the figures go to benchmarks/results/gpu-<card>.json.

`nox -s gpu -- --small` runs every check at toy shapes, on a CPU too. `nox -s gpu -- pack FOLDER` gathers what another machine needs.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from demo.pack import load_pack

from .. import figures as results
from . import layers, memory, steps, training, transformers
from .checks import FAILED, PASSED, Check, Outcome, Setting, run_all

HALF, BRAIN = torch.float16, torch.bfloat16


def checks(setting: Setting) -> list[Check]:
    """Every check, the shortest and most telling first, so that a small budget loses the least."""
    return [
        *layers.checks(setting), *steps.checks(setting), *transformers.checks(setting), *memory.checks(setting), *training.checks(setting),
        *steps.compile_checks(setting),
    ]  # fmt: skip


def setting_for(small: bool, folder: Path) -> Setting:
    """The GPU in half precision and bfloat16; toys on a CPU in single precision. SystemExit for real shapes without a GPU."""
    if not torch.cuda.is_available():
        if not small:
            raise SystemExit("PyTorch sees no GPU here. `--small` runs every check at toy shapes on the CPU.")
        return Setting(True, torch.device("cpu"), (torch.float32,), folder)
    return Setting(small, torch.device("cuda"), (HALF, BRAIN), folder)


def table(outcomes: Sequence[Outcome]) -> str:
    """What was done, with its figures, as Markdown."""
    lines = ["| check | state | seconds |", "|---|---|---|"]
    lines += [f"| {one.name} | {one.state}{f': {one.said}' if one.said else ''} | {one.seconds:.1f} |" for one in outcomes]
    figures = [figure for one in outcomes for figure in one.figures]
    return "\n".join([*lines, "", results.markdown("Figures", figures)])


def write(outcomes: Sequence[Outcome], setting: Setting, command: str, minutes: float, out: Path) -> None:
    """Keep all outcomes and figures as JSON; called after every check, so that a run that is cut off leaves what it had."""
    content = {
        "name": out.stem, "command": command, "date": datetime.date.today().isoformat(), "machine": results.machine(),
        "small": setting.small, "minutes": round(minutes, 2), "checks": [one.as_dict for one in outcomes],
        "figures": [asdict(figure) for one in outcomes for figure in one.figures],
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def file_for(setting: Setting, part: bool) -> Path:
    """Where the figures are kept: by the card's name; a part's and toys' are no results and go with the folder."""
    card = torch.cuda.get_device_name() if setting.device.type == "cuda" else "cpu"
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return (setting.folder if part or setting.small else results.FOLDER) / f"{name}.json"


def measure(setting: Setting, minutes: float, only: Sequence[str] = (), out: Path | None = None) -> list[Outcome]:
    """Run the checks whose names hold one of `only` (all without), print each as it ends, and keep them."""
    started, outcomes = time.monotonic(), []
    chosen = [check for check in checks(setting) if not only or any(word in check.name for word in only)]
    if not chosen:
        raise SystemExit(f"no check has {' or '.join(only)} in its name; there are: {'; '.join(check.name for check in checks(setting))}")
    command = " ".join([f"nox -s gpu -- --minutes {minutes:g}", *(f"--only '{word}'" for word in only)])
    gc.freeze()  # what is loaded by now stays: collecting garbage before every measurement need not walk through it
    for outcome in run_all(chosen, setting, minutes):
        outcomes.append(outcome)
        print(f"{outcome.state}: {outcome.name} ({outcome.seconds:.1f} s){f': {outcome.said}' if outcome.said else ''}", flush=True)
        write(outcomes, setting, command, (time.monotonic() - started) / 60, out or file_for(setting, bool(only)))
    return outcomes


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] == "pack":
        from . import pack

        return pack.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="nox -s gpu --", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="toy shapes: every check in about a minute, on a CPU too")
    parser.add_argument("--minutes", type=float, default=8.0, help="no check is begun that would not end within this time")
    parser.add_argument(
        "--only", action="append", default=[], help="only checks with this in their name; may be given several times; kept with --out alone"
    )
    parser.add_argument("--out", type=Path, help="the JSON file, instead of benchmarks/results/gpu-<card>.json")
    options = parser.parse_args(arguments)
    load_pack()
    with tempfile.TemporaryDirectory(prefix="maskprompt-gpu-", ignore_cleanup_errors=True) as folder:
        setting = setting_for(options.small, Path(folder))
        outcomes = measure(setting, options.minutes, options.only, options.out)
        print(table(outcomes), flush=True)
    missed = [figure.name for one in outcomes for figure in one.figures if figure.met is False]
    failed = [one.name for one in outcomes if one.state == FAILED]
    print(
        f"\n{sum(one.state == PASSED for one in outcomes)} of {len(outcomes)} checks done, {len(failed)} failed, {len(missed)} bars missed."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
