"""Paints every bundled workflow that the two tiny models can serve in a real ComfyUI.

`python -m demo.run [workflow ...]` posts workflows/api/*.json to a headless server and leaves pictures
in demo/output/<workflow>/ and one page of all of them in demo/output/contact-sheet.png. A workflow is
named by its number or by words of its title: `python -m demo.run 2`, `python -m demo.run cut_out`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from . import edit_pictures, photos, setup, subject_pictures
from .contact_sheet import Picture, Row, before_and_after, save_sheet, thumbnail
from .progress import Progress
from .server import ROOT, Prompt, Result, Server, WorkflowError, has_accelerator
from .stand_ins import MODEL_FILES, TINY_EDIT, changed, for_tiny_edit, of_transformer, tiny_edit_is_there

WORKFLOWS = ROOT / "workflows"
OUTPUT = ROOT / "demo" / "output"
MADE_FILES: dict[str, str] = {"lora_name": "loras", "mcgm_name": "mcgm"}
"""The inputs of loaders that name files which other bundled workflows make: the folder below models/."""
MADE_BY: dict[tuple[str, str], str] = {
    ("loras", "dreamcom_subject.safetensors"): "20 Teach your subject",
    ("mcgm", "scene.safetensors"): "22 Learn the subjects of one picture",
}
"""These files, by their folder and the name that they have in the workflows which load them: the workflow that makes each."""
STRIP = ROOT / "docs" / "pictures" / "before-and-after.jpg"
"""What the README shows first: what tiny-edit made of pictures in these workflows."""
IN_STRIP: tuple[str, ...] = (
    "04 Replace what is in the mask, FLUX 2 klein",
    "10 Insert my product, FLUX 2 klein",
    "12 New background, product untouched, FLUX 2 klein",
    "13 Two references, two places, FLUX 2 klein",
)
LANES = 2
"""Servers that share the workflows where there is no GPU."""
LONGEST = 1800
"""Seconds that one workflow may take, on a slow machine."""


def photographs(prompt: Prompt) -> list[str]:
    """The picture files that a workflow loads, in its own order."""
    return [entry["inputs"]["image"] for entry in prompt.values() if entry["class_type"] in ("LoadImage", "LoadImageMask")]


def add_photographs(server: Server, names: Iterable[str]) -> None:
    """Puts the pictures that the workflows name into the server's input folder: real photographs, and what the demo's artist brings."""
    for name in names:
        stem = Path(name).stem
        pixels = subject_pictures.load(stem) if stem in subject_pictures.names() else photos.load(stem)
        Image.fromarray(pixels).save(server.input / name)


def add_pictures(server: Server, prompt: Prompt) -> None:
    """Puts the pictures that a workflow loads into the server's input folder: for tiny-edit, things of the world that it knows."""
    names = photographs(prompt)
    if not for_tiny_edit(prompt):
        add_photographs(server, names)
        return
    for name in names:
        Image.fromarray(edit_pictures.load(Path(name).stem)).save(server.input / name)


def stage(folder: Path, *arguments: str, more: Mapping[str, Path] | None = None, threads: int = 0) -> Server:
    """A server, not started yet, with the pack, the tiny model's registration, `more` packs, and every model file that there is."""
    packs = {"ComfyUI-MaskPrompt": ROOT, "tiny-model-registration": ROOT / "demo" / "registration", **(more or {})}
    server = Server(setup.comfyui_path(), folder, packs, arguments, threads)
    for kind, file in (*MODEL_FILES.values(), *TINY_EDIT.items()):
        if file.exists():
            server.add_model(kind, file)
    return server


def matching(wanted: str, titles: Iterable[str]) -> list[str]:
    """The titles that `wanted` means: the title itself, the one of that number, or all that have its words. ValueError if there is none."""
    titles = list(titles)
    if wanted in titles:
        return [wanted]
    if wanted.isdigit():
        found = [title for title in titles if re.match(rf"0*{int(wanted)}\b", title)]
        if found:
            return found
    words = {word.lstrip("0") for word in re.findall(r"[a-z0-9]+", wanted.lower())}
    found = [title for title in titles if words and words <= {word.lstrip("0") for word in re.findall(r"[a-z0-9]+", title.lower())}]
    if not found:
        raise ValueError(f"no workflow {wanted}; there are {'; '.join(titles)}")
    return found


def workflows(names: Iterable[str] = ()) -> dict[str, Prompt]:
    """The bundled workflows in API form by title, in their order: all of them, or those that `names` mean, as in `matching`."""
    files = {path.stem: path for path in sorted((WORKFLOWS / "api").glob("*.json"))}
    chosen = {title for name in names for title in matching(name, files)}
    return {title: json.loads(path.read_text("utf-8")) for title, path in files.items() if not chosen or title in chosen}


def workflow(name: str) -> Prompt:
    """The one bundled workflow in API form that `name` means, as in `matching`; ValueError if it means several."""
    found = workflows([name])
    if len(found) > 1:
        raise ValueError(f"{name} may mean each of {'; '.join(found)}: write its number")
    return next(iter(found.values()))


def paintable(prompts: dict[str, Prompt]) -> dict[str, Prompt]:
    """Those of the workflows for all of whose models the demo has a small one."""
    there = tiny_edit_is_there()
    return {name: prompt for name, prompt in prompts.items() if not of_transformer(prompt) or (there and for_tiny_edit(prompt))}


def makers_of(prompt: Prompt) -> list[str]:
    """The workflows that make the files which this one loads."""
    inputs = [entry["inputs"] for entry in prompt.values()]
    return [MADE_BY[folder, given[field]] for given in inputs for field, folder in MADE_FILES.items() if field in given]


def in_order(prompts: dict[str, Prompt]) -> dict[str, Prompt]:
    """The workflows, each after those that make the files it loads; these are added where they are missing."""
    ordered: dict[str, Prompt] = {}
    for name, prompt in prompts.items():
        makers = makers_of(prompt)
        ordered |= {**(workflows(makers) if makers else {}), name: prompt}
    return ordered


def together(prompts: dict[str, Prompt]) -> list[dict[str, Prompt]]:
    """The workflows in parts that need nothing of each other: each with those that load what it makes; those that train longest first."""
    first = {name: next(iter(makers_of(prompt)), name) for name, prompt in prompts.items()}
    parts = [{name: prompts[name] for name in prompts if first[name] == maker} for maker in dict.fromkeys(first.values())]
    return sorted(parts, key=_steps, reverse=True)


def _steps(prompts: dict[str, Prompt]) -> int:
    """Training steps of all of the workflows, as the demo changes them."""
    entries = [entry for prompt in prompts.values() for entry in changed(prompt).values() if "Train" in entry["class_type"]]
    return sum(entry["inputs"].get(field, 0) for entry in entries for field in ("steps", "weight_steps"))


def hand_on(server: Server, workflow: str) -> None:
    """Sees to it that what a workflow has just made lies where the next one looks for it; RuntimeError if it made nothing.

    Train Poseable Subjects puts its files there itself, under the name that it was given. What a Save node left in the output folder, with
    the time in its name, is put there, as an artist would.
    """
    for folder, name in (file for file, maker in MADE_BY.items() if maker == workflow):
        saved = sorted((server.output / folder).glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        if saved:
            server.add_model(folder, saved[-1], name)
        elif not (server.folder / "models" / folder / name).is_file():
            raise RuntimeError(f"workflow {workflow} left no {name} in models/{folder}, and no other file in {server.output / folder}")


def collect(name: str, prompt: Prompt, result: Result, server: Server) -> Row:
    """Copies what a workflow loaded and saved to demo/output/<name>/ and returns its row of the contact sheet."""
    folder = OUTPUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = [(Path(file).stem, server.input / file) for file in photographs(prompt)]
    for node in sorted(result.outputs, key=lambda key: [int(part) for part in re.findall(r"\d+", key)]):
        title = prompt[node].get("_meta", {}).get("title", prompt[node]["class_type"])
        images = result.outputs[node].get("images", [])
        found += [(f"{title} {i + 1}" if len(images) > 1 else title, server.file_of(image)) for i, image in enumerate(images)]
    pictures = []
    for index, (label, source) in enumerate(found):
        target = folder / f"{index}-{re.sub(r'[^a-z0-9]+', '-', label.lower()).strip('-')}{source.suffix}"
        shutil.copyfile(source, target)
        pictures.append((label, target))
    return name, pictures


def paint(server: Server, prompts: dict[str, Prompt]) -> list[Row]:
    """Runs the workflows one after the other; WorkflowError names the one that failed."""
    rows = []
    for name, prompt in prompts.items():
        add_pictures(server, prompt)
        try:
            result = server.run(changed(prompt), Progress(name), LONGEST)
        except WorkflowError as error:
            raise WorkflowError(f"workflow {name}: {error}") from error
        hand_on(server, name)
        rows.append(collect(name, prompt, result, server))
        print(f"\r{name}: done in {result.seconds:.1f} s, {len(rows[-1][1])} pictures in {OUTPUT / name}".ljust(100), flush=True)
    return rows


def paint_all(prompts: dict[str, Prompt]) -> list[Row]:
    """Paints workflows with servers that share them; WorkflowError names one that failed.

    On a CPU two servers have half of the cores each: at the tiny models' size two threads are hardly faster than one.
    """
    parts = together(prompts)
    lanes = 1 if has_accelerator() else min(LANES, os.cpu_count() or 1, len(parts))
    ends: list[dict[str, Prompt]] = [{}] * lanes
    waiting = deque([*parts, *ends])

    def painted(lane: int, folder: Path) -> list[Row]:
        rows: list[Row] = []
        server = stage(folder, threads=(os.cpu_count() or 1) // lanes if lanes > 1 else 0)
        try:
            with server:
                while part := waiting.popleft():
                    rows += paint(server, part)
        except BaseException:
            waiting.extendleft(ends)
            raise
        finally:
            if server.log.is_file():
                shutil.copyfile(server.log, OUTPUT / f"server{lane or ''}.log")
        return rows

    with tempfile.TemporaryDirectory(prefix="maskprompt-", ignore_cleanup_errors=True) as folder, ThreadPoolExecutor(lanes) as pool:
        found = [pool.submit(painted, lane, Path(folder) / str(lane)) for lane in range(lanes)]
        rows = {row[0]: row for lane in found for row in lane.result()}
    return [rows[name] for name in prompts]


def demo(names: Iterable[str], thumbnails: bool) -> None:
    """Fetches what is missing, paints the workflows and makes the contact sheet, and with `thumbnails` the workflows' own.

    Without names all that the tiny models can paint. ValueError for names of others.
    """
    asked = workflows(names)
    chosen = paintable(asked)
    others = "; ".join(sorted(asked.keys() - chosen.keys()))
    if not chosen:
        raise ValueError(f"{others}: the demo has no small model for this. Load it in ComfyUI with the files that it names.")
    setup.get_comfyui()
    setup.get_mobile_sam()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    print("Starting ComfyUI ...", flush=True)
    rows = paint_all(in_order(chosen))
    if others:
        print(f"Not painted, since the demo has no small model for them: {others}.")
        if not tiny_edit_is_there():
            print("tiny-edit paints most of them once it is trained and `python -m demo.tiny_edit.files demo` has been run.")
    save_sheet(OUTPUT / "contact-sheet.png", rows)
    if thumbnails:
        renew_pictures(dict(rows))


def renew_pictures(painted: Mapping[str, Sequence[tuple[str, Picture]]]) -> None:
    """Saves the workflows' thumbnails, and the row of before and after if all that it shows were painted."""
    ends = {name: (pictures[0][1], pictures[-1][1]) for name, pictures in painted.items()}
    for name, (before, after) in ends.items():
        thumbnail(before, after).save(WORKFLOWS / f"{name}.jpg", quality=88)
    if ends.keys() >= set(IN_STRIP):
        before_and_after([ends[name] for name in IN_STRIP]).save(STRIP, quality=88)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workflows", nargs="*", help="numbers, or words of the titles, of bundled workflows; all of them if none is given")
    parser.add_argument(
        "--thumbnails", action="store_true", help="also renew workflows/<name>.jpg, and the README's row, from what was painted"
    )
    options = parser.parse_args(arguments)
    try:
        demo(options.workflows, options.thumbnails)
    except (RuntimeError, OSError, ValueError) as error:
        print(f"\nThe demo failed: {error}\nComfyUI's log: {OUTPUT / 'server.log'}", file=sys.stderr)
        return 1
    print(f"All pictures on one page: {OUTPUT / 'contact-sheet.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
