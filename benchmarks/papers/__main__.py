"""`python -m benchmarks.papers PAPER`: a paper's own table on its own data, the published figures beside those measured here.

Scores what was painted, by whatever painted it, one folder for each setting:

    python -m benchmarks.papers dreamcom --data MureCom --painted "masked=out/masked" --painted "plain=out/plain" \\
        --clip clip-vit-base-patch32 --dino dino-vits16 --lpips alexnet-owt-7be5be79.pth --out murecom

DreamCom: `<folder>/<Category>/<fg1>/<background>_<n>.png`, as large as the background. Mask-ControlNet:
`<folder>/<subject>/prompt<k>_<n>.png`, k counting that subject's prompts from 0. MECA: any pictures below the folder, against COCO's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.pack import load_pack

from . import data, published, scoring, table
from .published import Published
from .scoring import Kept, Models


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.paper == "mcgm":
        found = published.MCGM
        print(f"MCGM's paper reports no score of pictures: {found.source}, {found.settings}. `nox -s tables -- mcgm` has ours.")
        return 0
    named = [_named(one) for one in options.painted]
    load_pack()
    try:
        models = _models(options)
        values = {name: _scores(options, folder, models) for name, folder in named}
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{options.paper}: {error}", file=sys.stderr)
        return 1
    command = "python -m benchmarks.papers " + " ".join(arguments)
    print(table.write(_table(options), values, command, options.out))
    return 0


def _scores(options: Any, folder: Path, models: Models) -> scoring.Scores:
    kept = Kept(options.out.with_suffix(".cases.json"), models.names)
    kept.file.parent.mkdir(parents=True, exist_ok=True)

    def tell(done: int, count: int) -> None:
        print(f"\r{folder}: {done} of {count} cases", end="\n" if done == count else "", file=sys.stderr, flush=True)

    if options.paper == "dreamcom":
        return scoring.insertions(data.murecom(options.data)[: options.cases], folder, models, kept, tell)
    if options.paper == "mask-controlnet":
        return scoring.prompted(data.dreambooth(options.data)[: options.cases], folder, models, kept, tell)
    painted = sorted(one for one in folder.rglob("*") if one.suffix.lower() in data.PICTURES)
    real = sorted({one.picture for one in data.coco(options.data)})[: options.cases]
    return scoring.sets(painted, real, models)


def _models(options: Any) -> Models:
    from maskprompt.models.scores import encoders, pairs, sets

    given = (options.clip, options.dino, options.lpips, options.inception)
    if not any(given):
        raise ValueError("no model is named: give --clip, --dino, --lpips or --inception, as far as the paper's scores need them.")
    return Models(
        None if options.clip is None else encoders.load(options.clip, encoders.CLIP),
        None if options.dino is None else encoders.load(options.dino, encoders.DINO),
        None if options.lpips is None else pairs.load_lpips(str(options.lpips)),
        None if options.inception is None else sets.load_inception(str(options.inception)),
        " ".join(one.name if one else "-" for one in given),
    )


def _table(options: Any) -> Published:
    """The published table of this paper and data; DreamCom's two data sets come in one layout and are told by the folder's name."""
    if options.paper == "dreamcom" and "dreamedit" in options.data.name.lower():
        return published.DREAMCOM_DREAMEDIT
    return published.TABLES[options.paper][0]


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not Path(folder).is_dir():
        raise SystemExit(f"--painted {text}: a name, an equals sign and a folder that is there are needed, such as masked=out/masked.")
    return name, Path(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paper", choices=[*published.TABLES])
    parser.add_argument("--data", type=Path, default=Path(), help="the data set's folder, as it is published")
    parser.add_argument("--painted", action="append", default=[], metavar="NAME=FOLDER", help="what was painted; once for each setting")
    parser.add_argument("--clip", type=Path, help="CLIP's folder, as transformers saves it, or a single file as Load CLIP Vision takes it")
    parser.add_argument("--dino", type=Path, help="DINO's folder")
    parser.add_argument("--lpips", type=Path, help="torchvision's alexnet-owt-7be5be79.pth")
    parser.add_argument("--inception", type=Path, help="weights-inception-2015-12-05-6726825d.pth")
    parser.add_argument("--cases", type=int, help="only so many of the first cases, for a trial")
    parser.add_argument(
        "--out", type=Path, default=Path("paper"), help="the table goes to OUT.md and OUT.json, single pictures' scores beside"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
