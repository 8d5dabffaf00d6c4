"""What installers and ComfyUI read of the pack."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import zipfile

from demo.pack import ROOT

EXTENDING = {
    "models/mask_controlnet/control.py",
    "models/mask_controlnet/network.py",
}
"""Modules whose classes extend ComfyUI's own; nodes import them when they run."""


MOST = 3_000_000
"""Bytes of the archive that users install."""
MOST_IN_A_CHECKOUT = 60_000_000
"""Bytes of all files of the repository."""


def listed(*arguments: str) -> set[str]:
    """Files as `git ls-files` gives them: those of the repository, new ones that are not ignored included."""
    command = ["git", "ls-files", "-z", *arguments]
    return set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8").stdout.split("\0")) - {""}


def installed() -> set[str]:
    """What the registry packs: the repository's files but for those that .comfyignore names, which is read as a .gitignore."""
    every = listed("--cached", "--others", "--exclude-standard")
    left_out = listed("--cached", "--ignored", "--exclude-from=.comfyignore")
    left_out |= listed("--others", "--ignored", "--exclude-from=.comfyignore")
    return {name for name in every - left_out if (ROOT / name).is_file()}


def test_a_checkout_is_small() -> None:
    every = [ROOT / name for name in listed("--cached", "--others", "--exclude-standard")]
    assert sum(file.stat().st_size for file in every if file.is_file()) < MOST_IN_A_CHECKOUT


def test_what_users_install_is_small_and_whole() -> None:
    """Without demo, tests, benchmarks and the pictures of docs/; with all that runs, helps and opens."""
    names = installed()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(names):
            archive.write(ROOT / name, name)
    assert len(content.getvalue()) <= MOST
    assert not [name for name in names if name.startswith(("demo/", "tests/", "benchmarks/", "docs/pictures/", ".ci/"))]
    rooms = ("nodes", "attention", "conditioning", "images", "models", "training", "web", "workflows")
    wanted = {path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert wanted <= names
    assert {"__init__.py", "train.py", "README.md", "LICENSE", "pyproject.toml", "requirements.txt", "docs/troubleshooting.md"} <= names
    assert {f"web/docs/{node}.md" for node in ("MaskPromptSAMMask", "MaskPromptMaskedAttention")} <= names
    assert {"workflows/02 Paint an object into a box.json", "workflows/api/02 Paint an object into a box.json"} <= names


def test_requirements_are_pyprojects_dependencies() -> None:
    """ComfyUI Manager reads the one, the registry the other."""
    found = re.search(r"^dependencies = (\[.*?\])$", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)
    assert found is not None
    wanted = ast.literal_eval(found[1])
    assert (ROOT / "requirements.txt").read_text("utf-8").split("\n")[:-1] == wanted


def test_nothing_that_comfyui_brings_is_pinned() -> None:
    names = (ROOT / "requirements.txt").read_text("utf-8").lower()
    assert not any(name in names for name in ("torch", "numpy", "pillow", "transformers", "diffusers"))


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    """At a module's top only what every ComfyUI has: a missing segment_anything must not take the pack down."""
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "PIL", "comfy_api", "typing_extensions"}
    for file in [
        ROOT / "__init__.py",
        *(path for room in ("nodes", "attention", "conditioning", "images", "models", "training") for path in (ROOT / room).rglob("*.py")),
    ]:
        for node in ast.parse(file.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            extended = {"comfy"} if file.relative_to(ROOT).as_posix() in EXTENDING else set()
            assert {name.split(".")[0] for name in names} <= allowed | extended, f"{file} imports {names}"


def test_sources_can_be_read_by_any_system() -> None:
    """Some harnesses read files in Windows' western code page."""
    files = [file for file in ROOT.rglob("*.py") if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)]
    assert len(files) > 500
    for file in files:
        file.read_text("utf-8").encode("cp1252")
