"""Every command of the repository. All sessions share one environment, built on first use in .cache/env.

MASKPROMPT_ENV: an environment folder of your own that has everything (nothing is installed into it).
COMFYUI_PATH: a ComfyUI of your own instead of the one that is fetched into .cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or CACHE / "ComfyUI")
OLDEST_PYTHON = (3, 10)

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"

WORKERS = min(4, os.cpu_count() or 1)
"""Processes of pytest: each has a ComfyUI server of its own, and its share of the cores."""
NEEDED = (
    "torch", "torchvision", "aiohttp", "segment_anything", "timm", "diffusers", "accelerate", "skimage", "sklearn", "websocket", "xdist",
    "torchmetrics", "torch_fidelity",
)  # fmt: skip


def interpreter(folder: Path) -> Path:
    """The Python of an environment folder, in whichever layout the system uses."""
    places = ("bin/python", "Scripts/python.exe", "python.exe")
    return next((folder / place for place in places if (folder / place).exists()), folder / places[os.name == "nt"])


def environment(session: nox.Session) -> Path:
    """The Python of the shared environment, made or brought up to date where it has to be."""
    own = os.environ.get("MASKPROMPT_ENV")
    if own:
        python = interpreter(Path(own))
        check = f"import importlib.util as u; print(*[n for n in {NEEDED!r} if u.find_spec(n) is None])"
        missing = subprocess.run([str(python), "-c", check], check=True, capture_output=True, text=True).stdout.split()
        if missing:
            session.error(f"MASKPROMPT_ENV is {own}, which lacks {', '.join(missing)}: install demo/requirements.txt into it, or unset it")
        return python
    if sys.version_info < OLDEST_PYTHON:
        session.error(f"Python 3.10 or newer is needed; nox runs on {sys.version.split()[0]}")
    folder = CACHE / "env"
    stamp = folder / "maskprompt-stamp.txt"
    if not (interpreter(folder).exists() and _same_python(interpreter(folder))):
        session.run(sys.executable, "-m", "venv", "--clear", str(folder), external=True)
    python = interpreter(folder)
    ours = nox.project.load_toml(ROOT / "pyproject.toml")["project"]["dependencies"]
    session.run(str(python), "-m", "demo.setup", "comfyui", external=True)
    lists = [ROOT / "demo" / "requirements.txt", COMFYUI / "requirements.txt"]
    wanted = hashlib.sha256("\n".join([*ours, *(path.read_text("utf-8") for path in lists)]).encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text("utf-8") != wanted:
        session.log("Installing PyTorch, ComfyUI's packages and ours into .cache/env (once; several GB) ...")
        files = [argument for path in lists for argument in ("-r", str(path))]
        session.run(str(python), "-m", "pip", "install", "--quiet", *files, *ours, external=True)
        stamp.write_text(wanted, "utf-8")
    return python


def _same_python(python: Path) -> bool:
    """Whether the environment was made with the Python that nox runs on, and still works."""
    asked = subprocess.run([str(python), "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False)
    return asked.stdout.split() == [str(part) for part in sys.version_info[:2]]


def start(session: nox.Session) -> Path:
    """The environment's Python, when everything that the sessions need is there."""
    python = environment(session)
    session.run(str(python), "-m", "demo.setup", external=True)
    return python


def _pyright_config() -> Path:
    """pyproject.toml's settings, and where ComfyUI lies and `maskprompt`, the name under which the tests load the pack."""
    pack = CACHE / "import" / "maskprompt"
    config = CACHE / "pyright.json"
    pack.parent.mkdir(exist_ok=True)
    if not pack.exists():
        try:
            pack.symlink_to(ROOT, target_is_directory=True)
        except OSError:  # Windows grants symbolic links to few accounts, junctions to all
            subprocess.run(["cmd", "/c", "mklink", "/J", str(pack), str(ROOT)], check=True)
    paths = [str(COMFYUI.resolve()), str(pack.parent), str(ROOT)]
    config.write_text(json.dumps({"extends": "../pyproject.toml", "extraPaths": paths}), "utf-8")
    return config


@nox.session
def demo(session: nox.Session) -> None:
    """Paint every bundled workflow in real ComfyUI with the tiny model; pictures go to demo/output."""
    python = start(session)
    session.run(str(python), "-m", "demo.run", *session.posargs, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Lint, types, and the tests but for the thorough ones; arguments after -- go to pytest (then only pytest runs)."""
    python = start(session)
    if not session.posargs:
        session.run(str(python), "-m", "ruff", "check", ".", external=True)
        session.run(str(python), "-m", "ruff", "format", "--check", ".", external=True)
        session.run(str(python), "-m", "pyright", "--project", str(_pyright_config()), "--pythonpath", str(python), external=True)
    if session.posargs:
        session.run(str(python), "-m", "pytest", *session.posargs, external=True)
    else:
        _pytest(session, python, "not thorough")


@nox.session
def thorough(session: nox.Session) -> None:
    """The tests that take long: every template painted in both renderers, whole programs and trainings, memory over many runs."""
    _pytest(session, start(session), "thorough")


def _pytest(session: nox.Session, python: Path, marked: str) -> None:
    """Run the tests of a mark in several processes, each file of tests in one of them.

    The files stay in their order, so that those that share a server or a browser follow each other and it is started once in a process.
    """
    threads = str(max(1, (os.cpu_count() or 1) // WORKERS))
    together = ["-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder", "-m", marked]
    session.run(str(python), "-m", "pytest", *together, env={"OMP_NUM_THREADS": threads}, external=True)


@nox.session
def train_tiny(session: nox.Session) -> None:
    """Train the tiny model and what goes with it. Hours on a CPU; resumes. `-- --minutes 600` for the UNet; `-- edit` trains tiny-edit."""
    python = start(session)
    if session.posargs[:1] == ["edit"]:
        given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        given.add_argument("--folder")
        given.add_argument("--no-wallpapers", action="store_true")
        known, options = given.parse_known_args(session.posargs[1:])
        place = ["--folder", known.folder] if known.folder else []
        without = ["--no-wallpapers"] if known.no_wallpapers else []
        session.run(str(python), "-m", "demo.tiny_edit.world", *without, external=True)
        session.run(str(python), "-m", "demo.tiny_edit.latents", *place, external=True)
        session.run(str(python), "-m", "demo.tiny_edit.train", *place, *options, external=True)
        session.run(str(python), "-m", "demo.tiny_edit.latents", "--decoder-only", *place, external=True)
        session.run(str(python), "-m", "demo.tiny_edit.train_judge", *place, external=True)
        return
    session.run(str(python), "-m", "demo.train_autoencoder", external=True)
    session.run(str(python), "-m", "demo.train_autoencoder", "--decoder-only", external=True)
    session.run(str(python), "-m", "demo.train_tiny", *session.posargs, external=True)
    session.run(str(python), "-m", "demo.train_judge", external=True)
    session.run(str(python), "-m", "demo.train_vision", external=True)
    session.run(str(python), "-m", "demo.train_meca", external=True)
    session.run(str(python), "-m", "demo.train_control", external=True)
    session.run(str(python), "-m", "demo.train_mask_controlnet", external=True)
    session.run(str(python), "-m", "demo.train_captioner", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure times and memory as ratios."""
    python = start(session)
    session.run(str(python), "-m", "benchmarks.speed.run", *session.posargs, external=True)


@nox.session
def tables(session: nox.Session) -> None:
    """Measure a table again: `nox -s tables -- tiny-model`."""
    python = start(session)
    session.run(str(python), "-m", "benchmarks.tables.run", *session.posargs, external=True)


@nox.session
def matrix(session: nox.Session) -> None:
    """Run the quick workflows on every ComfyUI from 0.16.3 on that can be had, into docs/compatibility.md; `-- 0.18.2` on one of them."""
    python = start(session)
    session.run(str(python), "-m", "demo.matrix", *session.posargs, external=True)


@nox.session
def gpu(session: nox.Session) -> None:
    """Check and measure what only a GPU can show, within 8 minutes; `-- --small` at toy sizes on a CPU, `-- pack FOLDER` for elsewhere."""
    python = start(session)
    session.run(str(python), "-m", "benchmarks.gpu.run", *session.posargs, external=True)
