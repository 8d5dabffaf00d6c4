"""Carries the training of tiny-edit to a machine with a GPU and nothing else, and what it learned back.

    python -m demo.tiny_edit.pack gather FOLDER          here: all that the training needs, under 60 MiB
    python -m demo.tiny_edit.pack work --minutes 9 OUT   there, in that folder: trains, and writes pieces of under 16 MiB
    python -m demo.tiny_edit.pack join OUT               here: puts the pieces together into the training folder

There Python needs PyTorch, NumPy and Pillow. Scenes are drawn there by all of its cores while the GPU learns, so the folder carries the
world and not its pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import folders, latents, text, train
from .stages import stages_of

LIMIT = 60 * 2**20
PIECE = 15 * 2**20
MODULES: tuple[str, ...] = ("__init__", "autoencoder", "drawing", "photos", "scenes", "setup", "trainer")
"""Modules of `demo` that the training imports, beside this package."""
LIST = "pieces.json"
LIGHT: tuple[str, ...] = ("networks", "average")


def light(state: dict[str, Any]) -> dict[str, Any]:
    """A training's state without its optimizer, weights in fp16: a quarter of the bytes."""

    def halved(weights: dict[str, Any]) -> dict[str, Any]:
        return {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}

    small = {name: halved(state[name]) for name in LIGHT}
    return {**small, **{name: state[name] for name in ("step", "spent", "samples")}}


def gather(folder: Path, target: Path, anew: bool = False) -> int:
    """Copies code, world, autoencoder, vocabulary and (unless `anew`) the weights so far into an empty folder; returns its bytes."""
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; name a new folder")
    demo = Path(__file__).resolve().parent.parent
    (target / "demo").mkdir(parents=True)
    for name in MODULES:
        shutil.copy(demo / f"{name}.py", target / "demo")
    shutil.copytree(demo / "tiny_edit", target / "demo" / "tiny_edit", ignore=shutil.ignore_patterns("__pycache__"))
    training = target / "training"
    shutil.copytree(folders.world(folder), training / "world")
    text.Vocabulary.load(folder)
    shutil.copy(folder / text.FILE, training)
    shutil.copy(folder / latents.FILE, training)
    state = folder / train.STATE
    if state.is_file() and not anew:
        folders.save(light(torch.load(state, weights_only=True, map_location="cpu")), training / train.STATE)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    if size > LIMIT:
        raise ValueError(f"the folder has {size / 2**20:.1f} MiB; {LIMIT // 2**20} may travel")
    return size


def work(
    folder: Path, out: Path, minutes: float, autoencoder_minutes: float, stages: str, count: int, workers: int, more: list[str]
) -> None:
    """Trains for so many minutes in all: the autoencoder first if asked (then the transformer from nothing), and writes the pieces.

    The transformer's process begins at once, so that what it compiles is compiled by the time that there are records.
    """
    ends = time.monotonic() + 60 * minutes
    sizes = sorted({stage.size for stage in stages_of(stages)})
    halves = ["--halves"] if len(sizes) == 2 and sizes[1] == 2 * sizes[0] else []
    if len(sizes) > 1 and not halves:
        raise ValueError(f"the stages have pictures of {sizes} pixels; one size, or one and its half, would do")
    python = [sys.executable, "-u", "-m"]
    common = ["--folder", str(folder)]
    before = 0.0
    if autoencoder_minutes:
        for state in (train.STATE, latents.STATE):
            (folder / state).unlink(missing_ok=True)
        folders.forget_records(folder)
    elif (folder / train.STATE).is_file():
        before = torch.load(folder / train.STATE, weights_only=True, map_location="cpu")["spent"]
    options = ["--no-make", "--wait", "--records", str(count), "--stages", stages, "--minutes", str(before + minutes), *more]
    trainer = subprocess.Popen([*python, "demo.tiny_edit.train", *common, *options])
    maker: subprocess.Popen[bytes] | None = None
    try:
        if autoencoder_minutes:
            wide = ["--batch", "128"] if torch.cuda.is_available() else []
            start = folder / "autoencoder-start.pt"
            torch.save(latents.Latents.load(folder).autoencoder.state_dict(), start)
            options = [
                "--minutes",
                str(autoencoder_minutes),
                "--start",
                str(start),
                "--again",
                "--workers",
                str(max(1, workers // 2)),
                *wide,
            ]
            subprocess.run([*python, "demo.tiny_edit.latents", *common, *options], check=True)
        drawing = ["--size", str(sizes[-1]), "--count", str(count), "--workers", str(workers), *halves]
        maker = subprocess.Popen([*python, "demo.tiny_edit.shards", *common, *drawing], stdout=subprocess.DEVNULL)
        while trainer.poll() is None:
            if maker.poll():
                raise RuntimeError(f"drawing records ended with code {maker.returncode}; its words are above")
            if time.monotonic() > ends + 20:
                trainer.terminate()
            time.sleep(0.2)
        if trainer.returncode:
            raise RuntimeError(f"the training ended with code {trainer.returncode}; its words are above")
    finally:
        for process in (trainer, maker):
            if process is not None:
                process.terminate()
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    split(folder, out)


def split(folder: Path, out: Path) -> list[Path]:
    """Writes light state, autoencoder and log as one file in pieces, and a list with its sha256."""
    out.mkdir(parents=True, exist_ok=True)
    whole = {
        "state": light(torch.load(folder / train.STATE, weights_only=True, map_location="cpu")),
        "autoencoder": torch.load(folder / latents.FILE, weights_only=True, map_location="cpu"),
        "log": (folder / "training.log").read_text("utf-8"),
    }
    file = out / "whole.partial"
    torch.save(whole, file)
    data = file.read_bytes()
    file.unlink()
    pieces = []
    for number, begin in enumerate(range(0, len(data), PIECE)):
        pieces.append(out / f"piece-{number:02d}.bin")
        pieces[-1].write_bytes(data[begin : begin + PIECE])
    listed = {"sha256": hashlib.sha256(data).hexdigest(), "pieces": [piece.name for piece in pieces]}
    (out / LIST).write_text(json.dumps(listed), "utf-8")
    return pieces


def join(out: Path, folder: Path) -> None:
    """Puts the pieces together and writes state, autoencoder and log into the training folder; what was there is kept as `*.old`.

    Shards of another autoencoder are removed: the transformer could not read them.
    """
    listed = json.loads((out / LIST).read_text("utf-8"))
    data = b"".join((out / name).read_bytes() for name in listed["pieces"])
    if hashlib.sha256(data).hexdigest() != listed["sha256"]:
        raise ValueError(f"the pieces in {out} are not whole: their sha256 is not the one in {LIST}")
    folder.mkdir(parents=True, exist_ok=True)
    joined = folder / "joined.partial"
    joined.write_bytes(data)
    whole = torch.load(joined, weights_only=True, map_location="cpu")
    joined.unlink()
    for name, content in ((train.STATE, whole["state"]), (latents.FILE, whole["autoencoder"])):
        file = folder / name
        if file.is_file():
            if name == latents.FILE and not _same(torch.load(file, weights_only=True), content):
                folders.forget_records(folder)
            file.replace(file.with_name(f"{name}.old"))
        folders.save(content, file)
    with (folder / "training.log").open("a", encoding="utf-8") as log:
        log.write(f"joined from {out.name}:\n{whole['log']}")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two autoencoders encode alike: their encoders are equal."""
    return all(torch.equal(one[name], value) for name, value in other.items() if name.startswith("encoder."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    gathering = commands.add_parser("gather", help="put all that the training needs into a new folder")
    gathering.add_argument("target", type=Path)
    gathering.add_argument("--folder", type=Path, default=folders.DEFAULT)
    gathering.add_argument("--anew", action="store_true", help="without the weights so far: the transformer begins from nothing")
    working = commands.add_parser("work", help="train in such a folder")
    working.add_argument("out", type=Path)
    working.add_argument("--folder", type=Path, default=Path("training"))
    working.add_argument("--minutes", type=float, default=9, help="in all")
    working.add_argument("--autoencoder-minutes", type=float, default=0, help="of these; then the transformer begins anew")
    working.add_argument("--stages", default="128:256:5000,256:192")
    working.add_argument("--records", type=int, default=60_000)
    working.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="processes that draw")
    working.add_argument("--train", default="", help='options of demo.tiny_edit.train, as "--rate 2e-3 --cool 2 --compile 1.5"')
    joining = commands.add_parser("join", help="put the pieces together into the training folder")
    joining.add_argument("out", type=Path)
    joining.add_argument("--folder", type=Path, default=folders.DEFAULT)
    options = parser.parse_args()
    if options.command == "gather":
        print(f"{options.target}: {gather(options.folder, options.target, options.anew) / 2**20:.1f} MiB")
    elif options.command == "work":
        numbers = (options.minutes, options.autoencoder_minutes, options.stages, options.records, options.workers)
        work(options.folder, options.out, *numbers, shlex.split(options.train))
    else:
        join(options.out, options.folder)
        print(f"joined into {options.folder}")


if __name__ == "__main__":
    main()
