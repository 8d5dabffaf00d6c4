"""The program: a command line to a training, and what it says when that fails."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import comfyui, dreamcom, mask_controlnet, mcgm, meca
from .arguments import general_options
from .processes import Processes, UnreadyError, cpu_only
from .signals import Interrupted
from .work import Work

METHODS: list[Callable[[Any, argparse.ArgumentParser], None]] = [dreamcom.add, mcgm.add, meca.add, mask_controlnet.add]


def parser() -> argparse.ArgumentParser:
    """The command line: a sub-command for each method."""
    whole = argparse.ArgumentParser(prog="train.py", description="Trains a method of MaskPrompt. `train.py METHOD --help` explains it.")
    methods = whole.add_subparsers(metavar="METHOD", required=True)
    general = general_options()
    for add in METHODS:
        add(methods, general)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the program's); the exit status."""
    _print_any_letters()
    given = parser().parse_args(arguments)
    processes: Processes | None = None
    work: Work | None = None
    try:
        place = comfyui.find_comfyui(given.comfyui)
        cpu = given.cpu or cpu_only()
        processes = Processes(cpu)
        comfyui.start_comfyui(place, cpu)
        for path in given.register:
            comfyui.register(path)
        output = Path(given.out).expanduser() if given.out else place / "models" / given.folder / f"{given.title(given)}.safetensors"
        work = Work(given, processes, output)
        given.train(work)
        processes.leave()
        return 0
    except KeyboardInterrupt as stop:
        if _speaks(processes):
            print(f"\nInterrupted. {work.kept() if work and work.started else ''}", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT)
    except Exception as error:
        return _failed(error, given.verbose, processes, work)


def _print_any_letters() -> None:
    """Lets a prompt or a path in letters that the terminal, or the file that stands for it, has no code for be printed all the same."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _failed(error: Exception, verbose: bool, processes: Processes | None, work: Work | None) -> int:
    """Tells what went wrong, once if it went wrong for all processes alike; the exit status."""
    text = str(error) or type(error).__name__
    if isinstance(error, torch.cuda.OutOfMemoryError):
        text = f"the device ran out of memory. Smaller crops, a smaller batch, or a LoRA instead of all weights take less. ({text})"
    if verbose or not isinstance(error, (ValueError, RuntimeError, OSError)):
        traceback.print_exception(error)
    if processes is not None:
        try:
            processes.ready(problem=text)
        except UnreadyError as merged:
            error = merged
            text = str(merged)
    if _speaks(processes) or (work is not None and work.started):
        kept = f"\n{work.kept()}" if work is not None and work.started and work.processes.first else ""
        print(f"train.py: {text}{kept}", file=sys.stderr)
    return 1


def _speaks(processes: Processes | None) -> bool:
    """Whether this process tells what happened to all."""
    return processes.first if processes is not None else int(os.environ.get("LOCAL_RANK", 0)) == 0
