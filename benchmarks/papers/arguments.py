"""The command line of `python -m benchmarks.papers`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import published

PRESETS = ("paper", "ours", "both")


def parser(about: str) -> argparse.ArgumentParser:
    """Everything that any paper's table takes; `about` explains it all."""
    whole = argparse.ArgumentParser(
        prog="python -m benchmarks.papers", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("paper", choices=[*published.TABLES])
    whole.add_argument("--data", type=Path, default=Path(), help="the data set's folder, as it is published")
    whole.add_argument("--cases", type=_count, help="only so many of the first cases, for a trial")
    whole.add_argument("--out", type=Path, default=Path("paper"), help="where everything goes: a folder with --checkpoint, else OUT.md ...")
    _add_scores(whole.add_argument_group("the models that score"))
    _add_whole(whole.add_argument_group("to train and to paint as well"))
    scored = whole.add_argument_group("to score what was painted elsewhere")
    scored.add_argument("--painted", action="append", default=[], metavar="NAME=FOLDER", help="what was painted; once for each setting")
    return whole


def _add_scores(group: Any) -> None:
    group.add_argument("--clip", type=Path, help="CLIP's folder, as transformers saves it, or a single file as Load CLIP Vision takes it")
    group.add_argument("--dino", type=Path, help="DINO's folder")
    group.add_argument("--lpips", type=Path, help="torchvision's alexnet-owt-7be5be79.pth")
    group.add_argument("--inception", type=Path, help="weights-inception-2015-12-05-6726825d.pth")
    group.add_argument("--sam", help="a SAM file: finds the objects of pictures without masks; MCGM: what was painted in a mask's place")


def _add_whole(group: Any) -> None:
    group.add_argument("--checkpoint", metavar="FILE", help="what learns and paints: a file, or the name of one in ComfyUI's folder")
    group.add_argument("--comfyui", metavar="FOLDER", help="ComfyUI, if it is not in COMFYUI_PATH")
    group.add_argument(
        "--register", metavar="PATH", action="append", default=[],
        help="a Python file or package to import first, which makes ComfyUI know another model; its code is run",
    )  # fmt: skip
    group.add_argument("--preset", choices=PRESETS, default="paper", help="whose settings: the paper's, ours, or a row of each")
    group.add_argument("--ablations", action="store_true", help="the rows of the paper's ablations too: more is trained and painted")
    group.add_argument("--pictures", type=_count, metavar="N", help="pictures of each case, in place of the preset's")
    group.add_argument("--paint-steps", type=_count, metavar="N", help="sampling steps, in place of the preset's")
    group.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE",
        help="an option of the training in place of the preset's, such as --set method=lora or --set size=768: train.py --help tells them",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of the noise that is painted from")
    group.add_argument("--share", metavar="K/N", help="do only part K of N, on a disk that all parts see; accelerate launch sets it itself")
    group.add_argument("--save-every", type=_count, metavar="STEPS", default=100, help="how often a training's state is written")
    group.add_argument("--train", type=Path, metavar="FOLDER", help="Mask-ControlNet, MECA: what the network learns from: COCO's folder")
    group.add_argument("--network", type=Path, metavar="FILE", help="Mask-ControlNet, MECA: a trained file, in place of a training")
    group.add_argument("--clip-vision", metavar="FILE", help="MECA: the vision model, a file or the name of one in ComfyUI's folder")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
