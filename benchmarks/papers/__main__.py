"""`python -m benchmarks.papers PAPER`: a paper's own table on its own data, the published figures beside those measured here.

Trains, paints, scores and writes the table; killed, the same command goes on to the same table:

    python -m benchmarks.papers dreamcom --comfyui ComfyUI --checkpoint sd-v1-5-inpainting.ckpt --data MureCom --out murecom \\
        --clip clip-vit-base-patch32 --dino dino-vits16 --lpips alexnet-owt-7be5be79.pth

MureCom and DreamEditBench for dreamcom, COCO for mcgm, the DreamBooth set for mask-controlnet, COCO for meca (docs/papers.md). On several
GPUs: `accelerate launch -m benchmarks.papers ...`; on several machines with one disk: the same command with --share 1/3, 2/3 and 3/3.

Or scores what was painted elsewhere, by whatever painted it, one folder for each setting:

    python -m benchmarks.papers dreamcom --data MureCom --painted "masked=out/masked" --painted "plain=out/plain" \\
        --clip clip-vit-base-patch32 --dino dino-vits16 --lpips alexnet-owt-7be5be79.pth --out murecom

DreamCom: `<folder>/<Category>/<fg1>/<background>_<n>.png`, as large as the background. Mask-ControlNet:
`<folder>/<subject>/prompt<k>_<n>.png`, k counting that subject's prompts from 0. MECA: any pictures below the folder, against COCO's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.pack import load_pack

from . import arguments, data, dreamcom, mask_controlnet, mcgm, meca, published, scoring, table
from .published import Published
from .scoring import Kept, Models
from .work import Share, Work

EXPERIMENTS: Mapping[str, Callable[[Work], Any]] = {
    "dreamcom": dreamcom.Experiment, "mcgm": mcgm.Experiment, "mask-controlnet": mask_controlnet.Experiment, "meca": meca.Experiment,
}  # fmt: skip


def main(given: Sequence[str]) -> int:
    options = arguments.parser(__doc__ or "").parse_args(given)
    command = "python -m benchmarks.papers " + " ".join(given)
    if options.checkpoint:
        return _whole(options, command)
    if options.paper == "mcgm":
        found = published.MCGM
        print(f"MCGM's paper reports no score of pictures: {found.source}, {found.settings}. With --checkpoint ours are measured.")
        return 0
    named = [_named(one) for one in options.painted]
    load_pack()
    try:
        models = _models(options)
        values = {name: _scores(options, folder, models) for name, folder in named}
    except (ValueError, RuntimeError, OSError) as error:
        return _failed(options, error)
    print(table.write(_table(options), values, command, options.out))
    return 0


def _whole(options: Any, command: str) -> int:
    """Trains, paints and scores; the exit status."""
    work: Work | None = None
    try:
        if options.painted:
            raise ValueError("--painted is for what was painted elsewhere: leave it out, or --checkpoint.")
        share = Share.read(options.share)
        if options.comfyui:
            os.environ["COMFYUI_PATH"] = str(options.comfyui)
        _start(options)
        models = _models(options)
        work = Work(options, share, options.out)
        experiment = EXPERIMENTS[options.paper](work)
        experiment.begin()
        print(f"{options.paper}: {experiment.missing()} cases are to be painted, in {', '.join(experiment.rows)}", file=sys.stderr)
        for item in share.of(experiment.items()):
            experiment.paint(item)
        if left := experiment.missing():
            print(f"Share {share.number + 1}/{share.count} is painted; {left} cases of others are not yet. The last one writes the table.")
            return 0
        values = experiment.scores(models, Kept(options.out / "cases.json", models.names), _told(options.out))
        print(table.write(_table(options), values, command, options.out / "table"))
        return 0
    except (ValueError, RuntimeError, OSError) as error:
        return _failed(options, error)
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was trained and painted is kept in {options.out}; the same command goes on.", file=sys.stderr)
        return 130
    finally:
        if work is not None:
            work.leave()


def _start(options: Any) -> None:
    """ComfyUI and the pack, on this process's device."""
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    load_pack()
    from maskprompt.training.command import comfyui

    comfyui.start_comfyui(comfyui.find_comfyui(os.environ.get("COMFYUI_PATH") or _fetched()), cpu=False)
    for path in options.register:
        comfyui.register(path)


def _fetched() -> str:
    """The ComfyUI that nox has fetched, which the pack was loaded with."""
    from demo import setup

    return str(setup.comfyui_path())


def _failed(options: Any, error: Exception) -> int:
    print(f"{options.paper}: {error}", file=sys.stderr)
    return 1


def _told(what: Path) -> Callable[[int, int], None]:
    def tell(done: int, count: int) -> None:
        print(f"\r{what}: {done} of {count} cases", end="\n" if done == count else "", file=sys.stderr, flush=True)

    return tell


def _scores(options: Any, folder: Path, models: Models) -> scoring.Scores:
    kept = Kept(options.out.with_suffix(".cases.json"), models.names)
    kept.file.parent.mkdir(parents=True, exist_ok=True)
    tell = _told(folder)
    if options.paper == "dreamcom":
        return scoring.insertions(data.murecom(options.data)[: options.cases], folder, models, kept, tell)
    if options.paper == "mask-controlnet":
        return scoring.prompted(data.dreambooth(options.data)[: options.cases], folder, models, kept, tell)
    painted = sorted(one for one in folder.rglob("*") if one.suffix.lower() in data.PICTURES)
    if not painted:
        raise ValueError(f"there is no picture in {folder}: name the folder with what was painted.")
    real = sorted({one.picture for one in data.coco(options.data)})[: options.cases]
    return scoring.sets({"": painted}, real, models)[""]


def _models(options: Any) -> Models:
    from maskprompt.models.scores import encoders, pairs, sets

    seen = options.sam if options.paper == "mcgm" else None
    given = (options.clip, options.dino, options.lpips, options.inception, seen)
    if not any(given):
        raise ValueError("no model is named: give --clip, --dino, --lpips, --inception or, for mcgm, --sam, as far as scores need them.")
    return Models(
        None if options.clip is None else encoders.load(options.clip, encoders.CLIP),
        None if options.dino is None else encoders.load(options.dino, encoders.DINO),
        None if options.lpips is None else pairs.load_lpips(str(options.lpips)),
        None if options.inception is None else sets.load_inception(str(options.inception)),
        None if seen is None else _sam(seen),
        " ".join(Path(one).name if one else "-" for one in given),
    )


def _sam(name: str) -> Any:
    from maskprompt.training.command import comfyui

    return comfyui.load_sam(name)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
