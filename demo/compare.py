"""Compares what two states of the pack paint and learn: `python -m demo.compare COMMIT [workflow ...]`.

The bundled workflows of an older commit run in real ComfyUI twice, with the pack as it was and as it is now, on the same models and
pictures; trainings take a few steps only. Every picture is compared by its pixels and every file of weights by its numbers, and a line
says what differs. Ends with 1 if anything does.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import run, stand_ins
from .server import ROOT, Prompt, Server, WorkflowError

SHORT: dict[str, int] = {"steps": 4, "weight_steps": 4}
"""Inputs of Train nodes by which the trainings are short."""
FLOAT32_STEP = 1e-6
"""Weights may differ by as much, relative to the largest of their tensor."""


@dataclass(frozen=True)
class Made:
    """What a workflow left: arrays by a name that both runs give. `said`: why there is none."""

    arrays: Mapping[str, np.ndarray]
    said: str = ""


def files_of(commit: str, folder: Path) -> Path:
    """The pack at a commit, in `folder`. subprocess.CalledProcessError if there is no such commit."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def prompts_of(pack: Path, names: Sequence[str]) -> dict[str, Prompt]:
    """The workflows of a pack in API form with the tiny model's files and sizes, those that make files before those that load them."""
    found: dict[str, Prompt] = {}
    for file in sorted((pack / "workflows" / "api").glob("*.json"), key=lambda path: ("train" not in path.stem, path.stem)):
        prompt: Prompt = json.loads(file.read_text("utf-8"))
        for entry in prompt.values():
            _make_tiny(entry["class_type"], entry["inputs"])
        if not names or file.stem in names:
            found[file.stem] = prompt
    return found


def _make_tiny(name: str, inputs: dict[str, object]) -> None:
    for field, value in inputs.items():
        if isinstance(value, list):
            continue
        if (name, field) in stand_ins.CHANGES:
            inputs[field] = stand_ins.CHANGES[name, field]
        if "Train" in name and field in SHORT:
            inputs[field] = SHORT[field]


def painted(pack: Path, prompts: Mapping[str, Prompt], folder: Path, made: Path | None) -> dict[str, Made]:
    """Runs the workflows with one state of the pack. `made`: a server's folder whose trained files are loaded in place of its own."""
    packs = {"ComfyUI-MaskPrompt": pack, "tiny-model-registration": ROOT / "demo" / "registration"}
    server = Server(run.setup.comfyui_path(), folder, packs)
    for kind, file in stand_ins.MODEL_FILES.values():
        server.add_model(kind, file)
    found: dict[str, Made] = {}
    with server:
        for name, prompt in prompts.items():
            run.add_photographs(server, run.photographs(prompt))
            if not any("Train" in entry["class_type"] for entry in prompt.values()):
                _hand_on(server, made or server.folder)
            before = set(weights_in(folder))
            try:
                result = server.run(prompt, None, run.LONGEST)
            except (WorkflowError, TimeoutError) as error:
                found[name] = Made({}, str(error))
                continue
            pictures = {
                f"{node} {prompt[node]['class_type']} {index}": np.asarray(Image.open(server.file_of(image)))
                for node, output in sorted(result.outputs.items())
                for index, image in enumerate(output.get("images", []))
            }
            weights = [file for file in sorted(weights_in(folder)) if file not in before]
            learned = {key: array for number, file in enumerate(weights) for key, array in numbers_of(file, number)}
            found[name] = Made(pictures | learned)
            print(f"  {name}: {result.seconds:.0f} s, {len(pictures)} pictures, {len(weights)} files of weights", flush=True)
    return found


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that a server in this folder has made."""
    own = [folder / "output", *(folder / "models" / kind for kind in run.MADE_FILES.values()), folder / "models" / "embeddings"]
    return [file for place in own for file in place.rglob("*.safetensors") if not file.is_symlink()]


def numbers_of(file: Path, number: int) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file of weights, by names that begin with its number."""
    from safetensors.torch import load_file

    for key, tensor in load_file(file).items():
        yield f"file {number} {key}", tensor.float().numpy()


def _hand_on(server: Server, made: Path) -> None:
    """Puts what the trainings of a server in the folder `made` saved where this one's loaders look for it."""
    for kind in (*run.MADE_FILES.values(), "embeddings"):
        for file in (made / "models" / kind).glob("*.safetensors"):
            if not file.is_symlink() and made != server.folder:
                server.add_model(kind, file)
    for kind, name in run.MADE_BY:
        for file in sorted((made / "output" / kind).glob("*.safetensors"))[-1:]:
            server.add_model(kind, file, name)


def differences(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> list[str]:
    """What differs between what two runs made, in words; nothing if they are one."""
    told = [f"{name}: only in one of them" for name in sorted(one.keys() ^ two.keys())]
    for name in sorted(one.keys() & two.keys()):
        before = one[name]
        after = two[name]
        if before.shape != after.shape:
            told.append(f"{name}: {before.shape} was, {after.shape} is")
            continue
        apart = np.abs(before.astype(np.float64) - after.astype(np.float64))
        allowed = FLOAT32_STEP * float(np.abs(before).max(initial=0.0)) if before.dtype == np.float32 else 0.0
        if not apart.size or apart.max() <= allowed:
            continue
        told.append(f"{name}: {np.mean(apart > allowed):.2%} of the numbers differ, by {apart.max():.4g} at most")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit", help="the older state")
    parser.add_argument("workflows", nargs="*", help="names of its workflows; all of them if none is given")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="maskprompt-", ignore_cleanup_errors=True) as temporary:
        place = Path(temporary)
        old = files_of(options.commit, place / "pack")
        prompts = prompts_of(old, options.workflows)
        print(f"as it was at {options.commit}:", flush=True)
        before = painted(old, prompts, place / "before", None)
        print("as it is:", flush=True)
        after = painted(ROOT, prompts, place / "after", place / "before")
    different = 0
    for name in prompts:
        told = [one.said for one in (before[name], after[name]) if one.said] or differences(before[name].arrays, after[name].arrays)
        different += bool(told)
        print(f"{name}: {'; '.join(told) if told else f'{len(before[name].arrays)} pictures and tensors, all the same'}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
