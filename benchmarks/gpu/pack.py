"""`nox -s gpu -- pack FOLDER`: one folder with all that a machine without a network needs beside torch to run the checks.

The repository's Python files, ComfyUI without its servers and large tokenizers, and the Python packages that a machine with torch and
transformers may lack, as wheels for Python 3.12 on Linux x86-64. Prints the one command to run there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from demo import setup

ROOT = Path(__file__).resolve().parents[2]
MOST = 40 * 1024 * 1024
"""Bytes that the folder may have."""
OURS = ("__init__.py", "attention", "benchmarks", "conditioning", "demo", "images", "models", "training")
"""What is taken of the repository."""
COMFYUI = (
    "comfy", "comfy_api", "comfy_config", "comfy_execution", "utils", "comfyui_version.py", "folder_paths.py", "latent_preview.py",
    "node_helpers.py", "nodes.py", "LICENSE",
)  # fmt: skip
TOO_LARGE = ("llama_tokenizer", "qwen25_tokenizer", "qwen35_tokenizer", "t5_tokenizer", "t5_pile_tokenizer")
"""Tokenizers of language models, which no check asks for."""
SUFFIXES = frozenset({".py", ".json", ".txt", ".yaml", ".model", ""})
NAMES = ("comfy-aimdo", "comfy-kitchen", "einops", "torchsde", "trampoline")
"""Packages that may be missing there. `comfy-kitchen` in its form without CUDA kernels: that one alone is larger than the folder may be."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_12_x86_64", "manylinux1_x86_64", "any")
PURE = frozenset({"comfy-kitchen"})
COMMAND = (
    "python3 -m pip install -q --no-index --no-deps --no-compile --target site wheels/*.whl && PYTHONPATH=site COMFYUI_PATH=ComfyUI "
    "python3 -m benchmarks.gpu.run --minutes 8 --out gpu.json"
)


def ours(folder: Path) -> None:
    """Copy the repository's Python files, and what the tiny model's registration reads."""
    for name in OURS:
        source = ROOT / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
            continue
        for file in (*source.rglob("*.py"), *source.rglob("registration/*.json")):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def comfyui(folder: Path) -> None:
    """Copy what a check imports of ComfyUI, without what is too large or for its server alone."""
    source = setup.comfyui_path()
    if not (source / "comfy").is_dir():
        raise SystemExit(f"no ComfyUI at {source}: run `nox -s tests` once, or set COMFYUI_PATH")
    for name in COMFYUI:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        for file in _files(source / name) if (source / name).is_dir() else ():
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _files(folder: Path) -> Iterable[Path]:
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        if file.is_file() and file.suffix in SUFFIXES and not any(part in TOO_LARGE or part == "__pycache__" for part in parts):
            yield file


def wheels(folder: Path) -> list[str]:
    """Fetch the packages as wheels, each in the version that ComfyUI asks for; give the names of those that could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = (setup.comfyui_path() / "requirements.txt").read_text("utf-8").split()
    missing = []
    for name in NAMES:
        wanted = next((one for one in asked if one.split("==")[0].lower() == name), name)
        platforms = ("any",) if name in PURE else PLATFORMS
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
        command += ["--implementation", "cp" if name not in PURE else "py", *(f"--platform={one}" for one in platforms)]
        done = subprocess.run([*command, "--dest", str(folder), wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            missing.append(name)
    return missing


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def gather(folder: Path, with_wheels: bool = True) -> list[str]:
    """Fill an empty or new folder; give the packages that could not be fetched. SystemExit if it gets larger than `MOST`."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: name a new folder, so that nothing of yours is replaced")
    (folder / "ComfyUI").mkdir(parents=True, exist_ok=True)
    ours(folder)
    comfyui(folder / "ComfyUI")
    missing = wheels(folder / "wheels") if with_wheels else []
    size = size_of(folder)
    if size > MOST:
        raise SystemExit(f"{folder} has {size / 2**20:.1f} MiB, and {MOST / 2**20:.0f} are the most")
    return missing


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="nox -s gpu -- pack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / ".cache" / "gpu", help="a new or empty folder")
    options = parser.parse_args(arguments)
    missing = gather(options.folder)
    print(f"{options.folder}: {size_of(options.folder) / 2**20:.1f} MiB")
    if missing:
        print(f"Could not be fetched, so they must be there: {', '.join(missing)}")
    print(f"In that folder, on a machine with Python 3.12, torch and a GPU:\n{COMMAND}")
    return 0
