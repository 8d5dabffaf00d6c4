"""A tiny folder of each data set's layout, drawn here: `python -m benchmarks.papers.make_folder murecom FOLDER`.

So the tables run end to end without the real data, and on it only the folder's name changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from demo import scenes

SIZE = 128
KINDS: tuple[tuple[str, scenes.Paint], ...] = (
    ("heart", scenes.Paint("purple", "yellow", "stripes")), ("star", scenes.Paint("red", "white", "halves")),
)  # fmt: skip
PROMPTS = ("a {0} {1} on the beach", "a red {0} {1}")
LIVE_PROMPTS = ("a {0} {1} wearing a red hat",)


def murecom(root: Path, pictures: int = 3, backgrounds: int = 2) -> None:
    """Categories of one subject each, with masks; a second subject of the first category; a category of two words."""
    for number, (shape, paint) in enumerate(KINDS):
        name = shape.capitalize() if number else f"Big_{shape}"
        words = name.replace("_", " ")
        places = root / name / "bg"
        places.mkdir(parents=True)
        lines = []
        for index in range(backgrounds):
            _save(scenes.render(scenes.Scene((), scenes.GROUNDS[index], index), SIZE).image, places / f"{index}.jpg")
            lines.append(f"{words} {index}.jpg {30 + index} 40 {79 + index} 99")
        (places / "bbox.txt").write_text("\n".join(lines) + "\n", "utf-8")
        for own in range(2 - number):
            _subject(root / name / f"fg{own + 1}", shape, paint, pictures, 10 * own)


def dreambooth(root: Path, pictures: int = 3) -> None:
    """Two subjects and prompts_and_classes.txt, with both lists of prompts."""
    names = [f"striped_{KINDS[0][0]}", "dog"]
    for name, (shape, paint) in zip(names, KINDS, strict=True):
        _subject(root / "dataset" / name, shape, paint, pictures, 0, masks=False)
    lines = ["Classes", "", "subject_name,class", f"{names[0]},{KINDS[0][0]}", "dog,dog", "", "Prompts", ""]
    for title, prompts in (("Object Prompts", PROMPTS), ("Live Subject Prompts", LIVE_PROMPTS)):
        written = [f"'{prompt}'.format(unique_token, class_token)" for prompt in prompts]
        lines += [title, "", "prompt_list = [", ",\n".join(written), "]", ""]
    (root / "dataset" / "prompts_and_classes.txt").write_text("\n".join(lines), "utf-8")


def coco(root: Path, pictures: int = 3) -> None:
    """Pictures of one thing each, outlined by a polygon around its box; one crowd, which is to be left out."""
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, things = [], []
    for number in range(pictures):
        shape, paint = KINDS[number % len(KINDS)]
        drawn = scenes.render(scenes.Scene((scenes.Thing(shape, paint, 0.5, 0.5, 0.5),), scenes.GROUNDS[number], number), SIZE)
        _save(drawn.image, root / "val2017" / f"{number:012d}.jpg")
        left, top, width, height = scenes.box_of(drawn.masks[0])
        outline = [left, top, left + width, top, left + width, top + height, left, top + height]
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": SIZE, "height": SIZE})
        thing = {"image_id": number, "category_id": 1 + number % len(KINDS), "segmentation": [outline], "iscrowd": 0}
        things.append({**thing, "area": float(width * height)})
    things.append({**things[0], "iscrowd": 1, "segmentation": {"counts": [], "size": [SIZE, SIZE]}})
    categories = [{"id": 1 + number, "name": shape} for number, (shape, _) in enumerate(KINDS)]
    content = {"images": images, "annotations": things, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content), "utf-8")


LAYOUTS: dict[str, Callable[[Path], None]] = {"murecom": murecom, "dreambooth": dreambooth, "coco": coco}


def _subject(folder: Path, shape: str, paint: scenes.Paint, pictures: int, seed: int, masks: bool = True) -> None:
    folder.mkdir(parents=True)
    for number in range(pictures):
        thing = scenes.Thing(shape, paint, 0.5, 0.5, 0.5 + 0.05 * number, 5.0 * number)
        drawn = scenes.render(scenes.Scene((thing,), scenes.GROUNDS[(seed + number) % len(scenes.GROUNDS)], seed + number), SIZE)
        _save(drawn.image, folder / f"{number}.jpg")
        if masks:
            Image.fromarray((drawn.masks[0] > 0.5).astype(np.uint8) * 255).save(folder / f"{number}.png")


def _save(pixels: np.ndarray, file: Path) -> None:
    Image.fromarray(pixels).save(file, quality=95)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers.make_folder", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("layout", choices=[*LAYOUTS])
    parser.add_argument("folder", type=Path, help="a folder that is not there yet")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise SystemExit(f"{options.folder} is there already: name another one, so that nothing of yours is changed")
    LAYOUTS[options.layout](options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
