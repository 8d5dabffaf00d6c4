"""The tiny model's gates, and masked attention against plain, by the judge.

200 captions whose triple (shape, colour, ground) training never showed; boxes on photographs that training never showed.
`--only PART` measures a part of it and leaves the other kept figures as they are.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo import judge, photos, scenes, tiny_model
from demo.painter import CFG, SAMPLER, STEPS, Painter

from ..figures import FOLDER, Figure, machine, mean, rate, write

SHEET = tiny_model.ROOT / "demo" / "samples.jpg"
HELD = [
    (shape, colour, ground)
    for shape in scenes.SHAPES for colour in scenes.COLOURS for ground in scenes.GROUNDS
    if scenes.held_out(shape, colour, ground)
]  # fmt: skip


def words(shape: str, colour: str, ground: str | None = None) -> str:
    """The caption of one object, as training wrote it."""
    scene = scenes.Scene((scenes.Thing(shape, scenes.Paint(colour), 0.5, 0.5, 0.5),), ground or "")
    return scene.caption(with_ground=ground is not None)


def judged(eye: judge.Judge, count: int = 600, seed: int = 99) -> list[Figure]:
    """How well the judge itself sees: fresh renders of one plain object."""
    from demo import train_judge

    accuracy = train_judge.right_of(eye, seed=seed, count=count)
    return [rate(f"judge on fresh renders: {name} right", values, 0.97) for name, values in accuracy.items()]


def judged_in_patterns(eye: judge.Judge, count: int = 600, seed: int = 99) -> list[Figure]:
    """The same of objects in patterns, such as DreamCom's subjects: both of an object's colours must be named."""
    from demo import train_judge

    accuracy = train_judge.right_of(eye, seed=seed, count=count, pattern=True)
    return [
        rate("judge on fresh patterned renders: shape right", accuracy["shape"], 0.95),
        rate("judge on fresh patterned renders: both colours right", accuracy["colour"], 0.95),
    ]


def captions(painter: Painter, eye: judge.Judge, count: int = 200, seed: int = 0) -> tuple[list[Figure], Tensor]:
    """Held-out captions of one object: rates of right ground, colour, shape; and the pictures."""
    order = np.random.default_rng(seed).permutation(len(HELD))[:count]
    chosen = [HELD[index] for index in order]
    pictures = torch.cat(
        [painter.paint([words(*triple) for triple in chosen[start : start + 50]], seed=seed + start) for start in range(0, len(chosen), 50)]
    )
    verdicts = judge.look(eye, pictures)
    found = [verdict.best(shape) for verdict, (shape, _, _) in zip(verdicts, chosen, strict=True)]
    return [
        rate("ground right", [v.ground == t[2] for v, t in zip(verdicts, chosen, strict=True)], 0.9),
        rate("colour right", [f is not None and f.colour == t[1] for f, t in zip(found, chosen, strict=True)], 0.9),
        rate("shape right", [f is not None and f.shape == t[0] for f, t in zip(found, chosen, strict=True)], 0.8),
        rate("exactly one object", [len(v.objects) == 1 for v in verdicts]),
    ], pictures


def two_objects(painter: Painter, eye: judge.Judge, count: int = 64, seed: int = 1) -> list[Figure]:
    """Captions of two objects ("a red star and a blue ball on sand"): each of the two, left and right, with its own colour."""
    rng = np.random.default_rng(seed)
    drawn = [scenes.random_scene(rng, two=1, allow_held_out=True) for _ in range(count)]
    verdicts = judge.look(eye, painter.paint([scene.caption() for scene in drawn], seed=seed))
    right: dict[str, list[bool]] = {"two objects": [], "shape of each": [], "colour of each": []}
    for scene, verdict in zip(drawn, verdicts, strict=True):
        right["two objects"].append(len(verdict.objects) == 2)
        for index, thing in enumerate(scene.things):
            seen = verdict.objects[index] if len(verdict.objects) == 2 else None
            right["shape of each"].append(seen is not None and seen.shape == thing.shape)
            right["colour of each"].append(seen is not None and seen.colour == thing.paint.colour)
    return [rate(f"two objects: {name}", values) for name, values in right.items()]


def photographs(rng: np.random.Generator, count: int) -> np.ndarray:
    """Square crops of the held-out photographs, uint8 [count, 128, 128, 3]."""
    pictures = [photos.load(name) for name in photos.HELD_OUT]
    return np.stack([photos.crop(pictures[index % len(pictures)], rng) for index in range(count)])


def random_box(rng: np.random.Generator, low: float = 0.0, high: float = 1.0) -> tuple[int, int, int, int]:
    """x, y, width, height of a box of 48 to 72 pixels in a 128-pixel picture, between two fractions of its width."""
    width, height = (int(n) for n in rng.integers(48, min(72, int((high - low) * 128)) + 1, 2))
    return int(rng.integers(int(low * 128), int(high * 128) - width + 1)), int(rng.integers(0, 128 - height + 1)), width, height


def mask_of(boxes: Sequence[tuple[int, int, int, int]]) -> Tensor:
    masks = torch.zeros(len(boxes), 128, 128)
    for mask, (x, y, width, height) in zip(masks, boxes, strict=True):
        mask[y : y + height, x : x + width] = 1
    return masks


def in_box(verdict: judge.Verdict, before: judge.Verdict | None, mask: Tensor) -> judge.Found | None:
    """The largest object of which at least nine tenths lie inside the box, and that fills an eighth of it; None if there is none.

    What the judge saw in the picture before is not counted as outside.
    """
    inside = mask[::2, ::2].numpy() > 0.5
    old = np.any([found.mask for found in before.objects], axis=0) if before is not None and before.objects else np.zeros_like(inside)
    best = None
    for found in verdict.objects:
        new = found.mask & ~(old & ~inside)
        if (new & inside).sum() >= max(0.9 * new.sum(), inside.sum() / 8) and (best is None or found.mask.sum() > best.mask.sum()):
            best = found
    return best


def boxes(painter: Painter, eye: judge.Judge, count: int = 200, seed: int = 2) -> list[Figure]:
    """An object painted into a box on a held-out photograph; the photograph must come back unchanged outside it."""
    from maskprompt.images import crops

    rng = np.random.default_rng(seed)
    pictures = torch.from_numpy(photographs(rng, count)).float() / 255
    masks = mask_of([random_box(rng) for _ in range(count)])
    chosen = [HELD[index] for index in rng.integers(len(HELD), size=count)]
    texts = [words(shape, colour) for shape, colour, _ in chosen]
    painted = torch.cat(
        [painter.inpaint(pictures[s : s + 50], masks[s : s + 50], texts[s : s + 50], seed=seed + s) for s in range(0, count, 50)]
    )
    whole = crops.Crop({"x": 0, "y": 0, "width": 128, "height": 128}, 128, 128, masks)
    pasted = crops.paste(pictures, painted, whole, feather=2)
    before = judge.look(eye, pictures)
    after = judge.look(eye, painted)
    found = [in_box(v, b, m) for v, b, m in zip(after, before, masks, strict=True)]
    same = [bool(torch.equal(p[m == 0], o[m == 0])) for p, o, m in zip(pasted, pictures, masks, strict=True)]
    return [
        rate("box: object inside the box", [f is not None for f in found], 0.9),
        rate("box: colour right", [f is not None and f.colour == t[1] for f, t in zip(found, chosen, strict=True)]),
        rate("box: shape right", [f is not None and f.shape == t[0] for f, t in zip(found, chosen, strict=True)]),
        rate("box: outside unchanged to the bit after Paste Back", same, 1.0),
    ]


def similar_object(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, list[tuple[str, str]], Tensor]:
    """Photographs that already hold an object of the asked shape in another colour, beside an empty box.

    Pictures, the box's masks, what is asked (shape, colour), the similar object's masks.
    """
    pictures = []
    asked = []
    boxes = []
    similar = []
    for photo in photographs(rng, count):
        shape, colour, other = scenes.SHAPES[rng.integers(len(scenes.SHAPES))], *rng.choice(list(scenes.COLOURS), 2, replace=False)
        left = rng.random() < 0.5
        thing = scenes.Thing(
            shape, scenes.Paint(str(other)), 0.25 if left else 0.75, float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.34, 0.44))
        )
        rendered = scenes.render(scenes.Scene((thing,), scenes.PHOTO, int(rng.integers(2**31)), photo))
        pictures.append(rendered.image)
        similar.append(rendered.masks[0])
        asked.append((shape, str(colour)))
        boxes.append(random_box(rng, 0.5, 1.0) if left else random_box(rng, 0.0, 0.5))
    return torch.from_numpy(np.stack(pictures)).float() / 255, mask_of(boxes), asked, torch.from_numpy(np.stack(similar))


def masked(painter: Painter, eye: judge.Judge, count: int = 100, seed: int = 3) -> list[Figure]:
    """Masked against plain attention, the same pictures and noise, where the photograph already holds a similar object."""
    from maskprompt.attention import chain, layers
    from maskprompt.attention.grid import RegionMask
    from maskprompt.attention.masked_attention import MaskedCrossAttention, MaskedSelfAttention

    pictures, masks, asked, _ = similar_object(np.random.default_rng(seed), count)
    texts = [words(shape, colour) for shape, colour in asked]
    scope = chain.Scope(layers.preset("paper", layers.layers_of(painter.model.get_model_object("diffusion_model"))))

    def variants(part: Tensor) -> dict[str, list[Any]]:
        region = RegionMask(part)
        cross = MaskedCrossAttention(region)
        own = MaskedSelfAttention(region, "paper", scope)
        apart = MaskedSelfAttention(region, "renormalised", scope)
        return {"plain": [], "cross": [cross], "self": [own], "cross + self": [cross, own], "cross + self renormalised": [cross, apart]}

    before = judge.look(eye, pictures)
    figures = []
    for name in variants(masks):
        painted = []
        for start in range(0, count, 50):
            part = slice(start, start + 50)
            patches = variants(masks[part])[name]
            model = chain.install(painter.model, *patches) if patches else painter.model
            painted.append(painter.inpaint(pictures[part], masks[part], texts[part], seed=seed + start, model=model))
        verdicts = judge.look(eye, torch.cat(painted))
        found = [in_box(v, b, m) for v, b, m in zip(verdicts, before, masks, strict=True)]
        right = [f is not None and f.shape == a[0] for f, a in zip(found, asked, strict=True)]
        errors = [judge.colour_error(f.mean, a[1]) for f, a in zip(found, asked, strict=True) if f is not None]
        figures += [
            rate(f"similar object beside, {name}: an object in the box", [f is not None for f in found]),
            rate(f"similar object beside, {name}: of the asked shape", right),
            mean(f"similar object beside, {name}: colour error (CIEDE2000)", errors),
        ]
    return figures


def sheet(pictures: Tensor, columns: int = 16) -> None:
    """The first 64 pictures as one."""
    rows = [torch.cat(list(pictures[start : start + columns]), 1) for start in range(0, 64, columns)]
    image = Image.fromarray((torch.cat(rows, 0).numpy() * 255).round().astype(np.uint8))
    image.save(SHEET, quality=88)


def captions_and_sheet(painter: Painter, eye: judge.Judge) -> list[Figure]:
    figures, pictures = captions(painter, eye)
    sheet(pictures)
    return figures


PARTS: dict[str, Callable[[Painter, judge.Judge], list[Figure]]] = {
    "judge": lambda painter, eye: judged(eye), "patterns": lambda painter, eye: judged_in_patterns(eye),
    "captions": captions_and_sheet, "two-objects": two_objects, "boxes": boxes, "masked": masked,
}  # fmt: skip


def merged(kept: Sequence[Figure], measured: Sequence[Figure]) -> list[Figure]:
    """The kept figures with those measured in their places; one that is new stands behind the last that begins with the same word."""
    figures = list(kept)
    for new in measured:
        names = [figure.name for figure in figures]
        if new.name in names:
            figures[names.index(new.name)] = new
        else:
            alike = [index for index, name in enumerate(names) if name.split()[0] == new.name.split()[0]]
            figures.insert(alike[-1] + 1 if alike else len(figures), new)
    return figures


def main(command: str, arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog=command, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}; the others' figures stay as they are kept"
    )
    part: str | None = parser.parse_args(arguments).only
    painter = Painter()
    eye = judge.load()
    notes = {"sampler": f"{SAMPLER}, {STEPS} steps, CFG {CFG}", "checkpoint": tiny_model.CHECKPOINT.name}
    if part is None:
        write("tiny-model", command, [figure for measure in PARTS.values() for figure in measure(painter, eye)], notes)
        return
    content = json.loads((FOLDER / "tiny-model.json").read_text("utf-8"))
    figures = merged([Figure(**figure) for figure in content.pop("figures")], PARTS[part](painter, eye))
    # All that is kept about the other figures, their date above all, stays; this part's own stands beside it.
    content[f"{part} alone"] = f"{datetime.date.today().isoformat()}, {machine()}"
    write("tiny-model", command, figures, {**content, **notes})
