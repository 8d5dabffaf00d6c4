"""DreamCom's tables (Lu et al., "DreamCom", Table 4; supplement, Table 1 and Figure 1) on the tiny model, by the judge.

Eight subjects that the tiny model never saw, each tuned in from pictures of it and painted into twenty backgrounds. Every LoRA and
every set of painted pictures is kept in demo/work/dreamcom under a key of its settings, the pictures it is made from and the checkpoint,
and found again by the next run. The key knows nothing of the code: delete that folder after a change to what trains or paints.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo import judge, scenes, subjects, tiny_model
from demo.painter import CFG, SAMPLER, Painter
from demo.subjects import SUBJECTS, Subject

from ..cache import Kept, image_of, keep, pictures_in, records_in, sha
from ..figures import Figure, mean, rate, size_of, write
from .dreamcom_methods import BEFORE, CAUSES, CHOICES, FEWER, FIVE, PARTS, SHOWN, WHOLE, Method, patched
from .dreamcom_scores import MARGIN, Score, at_most, beside_by_subject, colour_error, figures_of, said, ssim
from .settings import beside_defaults
from .tiny_model import in_box, mask_of

FORMAT = 2
WORK = tiny_model.ROOT / "demo" / "work" / "dreamcom"
SHEET = tiny_model.ROOT / "demo" / "output" / "dreamcom-table.png"
BATCH = 8
"""Crops a step: with 4, thin parts come out blurred more often (the star: 15 of 20 pictures right, against 19)."""
STEPS = 15
"""Of painting. The pictures hardly differ from those of the demo's 20."""
FEWER_SUBJECTS = 2
"""Of the table over the number of references, for which every subject is trained four times more."""
PAPER = {"steps": 400, "method": "full", "batch_size": 1, "size": 512, "masked_attention": True, "average": 0.0, "box_margin": 0.0}
"""Of Train a Subject's inputs, as sections 4 and 6 of the paper have them."""


@dataclass(frozen=True)
class Size:
    """How large a run is; the figures are kept only of the whole one."""

    subjects: int = len(SUBJECTS)
    seeds: int = 4
    backgrounds: int = 20
    steps: int = 400


@dataclass
class Bench:
    """Trains, paints and judges; each thing once."""

    size: Size
    work: Path = WORK
    checkpoint: Path = tiny_model.CHECKPOINT
    painter: Painter = field(init=False)
    eye: judge.Judge = field(init=False)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.painter = Painter(self.checkpoint)
        self.eye = judge.load()
        self.eyes = sha(judge.FILE.read_bytes())
        self.kept = Kept(self.work, {"format": FORMAT, "checkpoint": sha(self.checkpoint.read_bytes())})

    def options(self, subject: Subject, method: Method) -> Any:
        from maskprompt.training.dreamcom.options import Options

        return Options(
            noun=subject.shape, steps=self.size.steps, batch=BATCH, size=subjects.SIZE, masked_attention=method.masked, checkpointing=False
        )

    def lora(self, subject: Subject, method: Method) -> Path:
        """The file of what was learned, or is to be."""
        shown = known(subject, method.references)
        pictures = sha(b"".join(one.image.tobytes() + one.masks.tobytes() for one in shown))
        return self.kept.file("lora", pictures=pictures, options=asdict(self.options(subject, method))).with_suffix(".safetensors")

    def trained(self, subject: Subject, method: Method) -> tuple[dict[str, Tensor], float]:
        """The subject's LoRA, and the seconds that making it took: crops, their encoding and the training."""
        from maskprompt.training.data import references
        from maskprompt.training.dreamcom.job import prepare
        from maskprompt.training.engine.job import run
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        options = self.options(subject, method)
        file = self.lora(subject, method)
        if not file.is_file():
            shown = known(subject, method.references)
            pictures = [references.Reference(image_of(one.image), torch.from_numpy(one.masks[0])) for one in shown]
            started = time.monotonic()
            job = prepare(self.painter.model, self.painter.clip, self.painter.vae, pictures, options)
            _, learned = run(job)
            seconds = time.monotonic() - started
            about = {"subject": subject.name, "references": str(method.references), "seconds": f"{seconds:.1f}"}
            keep(file, lambda part: save_file({key: value.contiguous() for key, value in learned.lora.items()}, part, about))
        with safe_open(file, "pt") as kept:
            seconds = float(kept.metadata()["seconds"])
        return load_file(file), seconds

    def model(self, subject: Subject, method: Method, masks: Tensor) -> Any:
        """The model that paints: with the subject's LoRA and the method's masked attention."""
        from comfy.sd import load_lora_for_models

        model: Any = self.painter.model
        if method.references:
            model, _ = load_lora_for_models(model, None, self.trained(subject, method)[0], 1.0, 0)
        return patched(model, method, masks, self.painter.text([""]))

    def page(self, subject: Subject, method: Method, seed: int) -> Path:
        """The file of one set of painted pictures, one below the other."""
        shown, _, _ = self.backgrounds(subject)
        pictures = sha(b"".join(one.image.tobytes() + repr(one.box).encode() for one in shown))
        learned = self.lora(subject, method).stem if method.references else ""
        how: list[Any] = [method.cross, method.layers, subject.shape, seed, SAMPLER, STEPS, CFG]
        if (method.cross_layers, method.outside) != (WHOLE.cross_layers, WHOLE.outside):
            how += [method.cross_layers, method.outside]
        return self.kept.file("painted", backgrounds=pictures, lora=learned, how=how).with_suffix(".png")

    def painted(self, subject: Subject, method: Method, seed: int) -> Tensor:
        """All backgrounds with the subject in their boxes [B, 128, 128, 3], nothing pasted back."""

        def paint() -> Tensor:
            shown, images, masks = self.backgrounds(subject)
            model = self.model(subject, method, masks)
            words = [self.options(subject, method).prompt] * len(shown)
            return self.painter.inpaint(images, masks, words, seed=seed, steps=STEPS, model=model)

        return pictures_in(self.page(subject, method, seed), subjects.SIZE, paint)

    def backgrounds(self, subject: Subject) -> tuple[list[subjects.Background], Tensor, Tensor]:
        shown = places(subject, self.size.backgrounds)
        return shown, torch.stack([image_of(one.image) for one in shown]), mask_of([one.box for one in shown])

    def scores(self, subject: Subject, method: Method, seed: int) -> list[Score]:
        pictures = self.painted(subject, method, seed)
        page = self.page(subject, method, seed).stem
        file = self.kept.file("scores", of=page, subject=subject.name, judge=self.eyes).with_suffix(".json")
        return [Score(**one) for one in records_in(file, lambda: self.judged(subject, pictures))]

    def judged(self, subject: Subject, pictures: Tensor) -> list[Score]:
        """The judge looks at the box only, for nothing else was painted. Fidelity is of what it finds there, else of the whole box."""
        shown, images, masks = self.backgrounds(subject)
        verdicts = judge.look(self.eye, pictures, masks)
        found = [in_box(verdict, None, mask) for verdict, mask in zip(verdicts, masks, strict=True)]
        cut = torch.stack([mask[::2, ::2] if f is None else torch.from_numpy(f.mask).float() for f, mask in zip(found, masks, strict=True)])
        examples = known(subject, WHOLE.references)
        cut_outs = torch.stack([image_of(one.image) for one in examples]), torch.stack([torch.from_numpy(one.masks[0]) for one in examples])
        wanted = judge.features(self.eye, *cut_outs)
        fidelity = (judge.features(self.eye, pictures, cut) @ wanted.T).mean(1)
        return [
            Score(
                f is not None, f is not None and f.shape == subject.shape, f is not None and f.painted(*subject.colours),
                float(alike), None if f is None else colour_error(picture, f, subject), ssim(picture, image, mask), background.similar,
            )
            for f, alike, picture, image, mask, background in zip(found, fidelity, pictures, images, masks, shown, strict=True)
        ]  # fmt: skip


@functools.cache
def known(subject: Subject, count: int) -> list[scenes.Rendered]:
    return subjects.references(subject, count)


@functools.cache
def places(subject: Subject, count: int) -> list[subjects.Background]:
    return subjects.backgrounds(subject, count)


def tables(bench: Bench) -> list[Figure]:
    """All figures, the most telling first."""
    chosen = SUBJECTS[: bench.size.subjects]

    def gathered(method: Method, seeds: int = bench.size.seeds, among: Sequence[Subject] = chosen) -> list[Score]:
        found = []
        for subject in among:
            part = [score for seed in range(seeds) for score in bench.scores(subject, method, seed)]
            print(f"{method.name}, {subject.name}: {np.mean([score.success for score in part]):.2f}", flush=True)
            found += part
        return found

    before = figures_of("before", gathered(BEFORE))
    after = figures_of("after", gathered(WHOLE))
    figures = [at_most(before[0], 0.1), *before[1:], replace(after[0], bar="\u2265 0.85", met=after[0].value >= 0.85), *after[1:]]
    figures += figures_of("the subject itself, through the VAE", [score for subject in chosen for score in itself(bench, subject)])
    figures += [rate(f"after, {s.name}: appears in the box", [x.success for x in gathered(WHOLE, among=[s])]) for s in chosen]
    # A table of hours shares its machine: the least disturbed training tells what one takes.
    seconds = [bench.trained(subject, WHOLE)[1] for subject in chosen]
    figures += [
        at_most(mean("seconds of training for one subject, the least disturbed of all", [min(seconds)]), 240),
        mean("seconds of training for one subject", seconds),
        mean("the VAE alone: background SSIM", own_ssim(bench, chosen)),
    ]
    for title, methods, seeds, among in (
        ("parts", PARTS, bench.size.seeds, chosen),
        ("self-attention", CHOICES, bench.size.seeds, chosen),
        ("masked cross-attention", CAUSES, bench.size.seeds, chosen),
        ("references", (*FEWER, FIVE), bench.size.seeds, chosen[:FEWER_SUBJECTS]),
    ):
        for method in methods:
            figures += figures_of(f"{title}, {method.name}", gathered(method, seeds, among))
    for method in PARTS:
        for one in chosen:
            right = [score.success for score in gathered(method, among=[one])]
            figures.append(rate(f"parts, {method.name}, {one.name}: appears in the box", right))
    return figures + beside_by_subject(chosen, lambda method, subject: gathered(method, among=[subject]))


@torch.no_grad()
def itself(bench: Bench, subject: Subject) -> list[Score]:
    """The most that can be reached: the subject rendered into the boxes, as large as there is room, and passed through the VAE."""
    shown, _, _ = bench.backgrounds(subject)
    images = torch.stack([image_of(subjects.in_box(subject, background)) for background in shown])
    return bench.judged(subject, bench.painter.vae.decode(bench.painter.vae.encode(images)).clamp(0, 1))


@torch.no_grad()
def own_ssim(bench: Bench, chosen: Sequence[Subject]) -> list[float]:
    """What the VAE costs a background in which nothing is painted."""
    found = []
    for subject in chosen:
        _, images, masks = bench.backgrounds(subject)
        back = bench.painter.vae.decode(bench.painter.vae.encode(images)).clamp(0, 1)
        found += [ssim(*three) for three in zip(back, images, masks, strict=True)]
    return found


def sheet(bench: Bench) -> None:
    """For a human: two backgrounds of each subject, the first with a similar object, and what the judge says of each picture."""
    from demo.contact_sheet import picture_of, save_sheet

    rows = []
    for subject in SUBJECTS[: bench.size.subjects]:
        shown, images, _ = bench.backgrounds(subject)
        for index in range(min(2, len(shown))):
            x, y, width, height = shown[index].box
            marked = images[index].clone()
            marked[[y, y + height - 1], x : x + width] = marked[y : y + height, [x, x + width - 1]] = torch.tensor([1.0, 0.0, 1.0])
            row = [("reference", picture_of(image_of(one.image))) for one in known(subject, 2)] + [("box", picture_of(marked))]
            for name, method in SHOWN.items():
                score = bench.scores(subject, method, 0)[index]
                row.append((f"{name}: {said(score)}", picture_of(bench.painted(subject, method, 0)[index])))
            rows.append((subject.name, row))
    save_sheet(SHEET, rows, 192)


def main(command: str, arguments: Sequence[str] = ()) -> None:
    from maskprompt.nodes.train_dreamcom import TrainDreamCom

    usual = Size()
    bench = Bench(size_of(usual, command, __doc__, arguments))
    figures = tables(bench)
    sheet(bench)
    how = bench.options(SUBJECTS[0], WHOLE)
    notes = {
        "settings other than the node's defaults or the paper's": beside_defaults(
            {
                "steps": how.steps,
                "method": how.method,
                "learning_rate": how.rate or 0.0,
                "rank": how.rank,
                "batch_size": how.batch,
                "size": how.size,
                "masked_attention": how.masked_attention,
                "average": how.average,
                "box_margin": how.box_margin,
            },
            TrainDreamCom,
            PAPER,
        ),
        "training": f"{usual.steps} steps of {BATCH} crops of {subjects.SIZE} px, LoRA, rank 16, its usual rate, 'a photo of sks <shape>'",
        "painting": f"{SAMPLER}, {STEPS} steps, CFG {CFG}; nothing pasted back; background SSIM outside of the box and {MARGIN} px",
        "success": "the judge finds an object in the box, of the subject's shape, its two main colours the subject's, each 15 % or more",
        "fidelity": "mean cosine of the judge's features of the cut-out object (the box where none is found) and of the five references",
        "not measured": "compatibility of object and background: a user study in the paper",
        "checkpoint": bench.checkpoint.name,
    }
    write("dreamcom", command, figures, notes, bench.size == usual)
