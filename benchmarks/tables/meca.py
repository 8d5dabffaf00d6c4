"""The comparison of "Patch-enhanced Mask Encoder Prompt Image Generation" (section 4) on the tiny model, by the judge.

Each case has a reference (an object on a ground), a text that asks for another object on another ground, and a box: in the box the text
drives, everywhere else the reference's ground is to be seen and its object is not. Every set of painted pictures and what the judge says
of it is kept in demo/work/meca under a key of all that it is made from, and found again by the next run. The key knows nothing of the
code: delete that folder after a change to what paints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo import judge, subjects, tiny_model
from demo.painter import CFG, SAMPLER, STEPS, Painter

from ..cache import Kept, image_of, pictures_in, records_in, sha
from ..figures import Figure, size_of, write
from .meca_cases import PHOTO_EVERY, SIDES, Case, cases, regions_of, shown
from .meca_methods import GLOBAL, METHODS, OWN_QUERY, PAPER, QUERY, REGION, RENDER, WHOLE, Method
from .meca_scores import LEAK, MEASURES, OTHER, PURE, UNWANTED, Score, Scores, against, features, fid_figure, figures_of, judged

FORMAT = 1
WORK = tiny_model.ROOT / "demo" / "work" / "meca"
SHEET = tiny_model.ROOT / "demo" / "output" / "meca-table.png"
VISION = tiny_model.ROOT / "demo" / "tiny-clip-vision.safetensors"
ADAPTERS = {
    "region": tiny_model.ROOT / "demo" / "tiny-meca.safetensors",
    "query": tiny_model.ROOT / "demo" / "work" / "tiny-meca-query.safetensors",
}
"""By the mode that each was trained in. That of *query* is not shipped."""
PAGE = 32
"""Cases that are painted together: all methods paint a page from the same noise."""
RENDERS = 16
"""Of each case, for the FID. They cost next to nothing, and more of them make its estimate better."""


@dataclass(frozen=True)
class Size:
    """How large a run is; the figures are kept only of the whole one."""

    cases: int = 64
    seeds: int = 2


@dataclass
class Bench:
    """Paints and judges; each thing once."""

    size: Size
    work: Path = WORK
    checkpoint: Path = tiny_model.CHECKPOINT
    vision: Path = VISION
    adapters: Mapping[str, Path] = field(default_factory=lambda: ADAPTERS)
    painter: Painter = field(init=False)
    eye: judge.Judge = field(init=False)
    pages: list[list[Case]] = field(init=False)

    def __post_init__(self) -> None:
        commands = {file: f"demo.train_meca --threads 1 --mode {mode}" for mode, file in self.adapters.items()}
        for file, command in {self.vision: "demo.train_vision --threads 1", **commands}.items():
            if not file.is_file():
                raise SystemExit(f"there is no {file.name} in {file.parent.name}/: `python -m {command}` makes it")
        self.painter = Painter(self.checkpoint)
        self.eye = judge.load()
        from comfy.clip_vision import load

        self.work.mkdir(parents=True, exist_ok=True)
        self.kept = Kept(self.work, {"format": FORMAT})
        self.clip_vision: Any = load(str(self.vision))
        from maskprompt.models.ip_adapter import adapter

        self.loaded: dict[str, Any] = {mode: adapter.load(str(file)) for mode, file in self.adapters.items()}
        self.files = {name: sha(getattr(self, name).read_bytes()) for name in ("checkpoint", "vision")}
        self.of_adapters = {mode: sha(file.read_bytes()) for mode, file in self.adapters.items()}
        self.eyes = sha(judge.FILE.read_bytes())
        made = cases(self.eye, self.size.cases)
        self.pages = [made[start : start + PAGE] for start in range(0, len(made), PAGE)]

    def page(self, page: Sequence[Case], method: Method, seed: int) -> Path:
        """The file of one set of painted pictures, one below the other."""
        made = [shown(case.reference) for case in page]
        pictures = sha(b"".join(part.numpy().tobytes() for both in made for part in both))
        asked = [[case.text, case.box] for case in page]
        prompted = method.mode not in ("", RENDER)
        files = {**self.files, "adapter": self.of_adapters[method.adapter]} if prompted else {"checkpoint": self.files["checkpoint"]}
        how = [*list(asdict(method).values())[1:], seed, SAMPLER, STEPS, CFG]
        return self.kept.file("painted", pictures=pictures, asked=asked, files=files, how=how).with_suffix(".png")

    def painted(self, page: Sequence[Case], method: Method, seed: int) -> Tensor:
        """The pictures of a page [B, 128, 128, 3]."""
        return pictures_in(self.page(page, method, seed), subjects.SIZE, lambda: self.paint(page, method, seed))

    @torch.no_grad()
    def paint(self, page: Sequence[Case], method: Method, seed: int) -> Tensor:
        if method.mode == RENDER:
            renders = torch.stack([image_of(case.wanted(np.random.default_rng([seed, case.reference.seed]))) for case in page])
            return self.painter.vae.decode(self.painter.vae.encode(renders)).clamp(0, 1)
        model = self.painter.model
        if method.mode:
            from maskprompt.nodes.meca import ApplyMECA

            region = regions_of(page) if method.mode != "global" else None
            output, _ = self.encoded(page, method)
            (model,) = ApplyMECA.execute(
                model, self.loaded[method.adapter], output, method.weight, method.mode, region, self.clip_vision
            ).args
        # Another noise for each page, the same for all methods.
        noise = page[0].reference.seed + seed
        return self.painter.paint([case.text if method.text else "" for case in page], seed=noise, model=model)

    def encoded(self, page: Sequence[Case], method: Method) -> tuple[Any, Tensor]:
        """What CLIP Vision Encode or Hide in Reference gives for the references, and what the encoder saw of them [B, 128, 128, 3]."""
        images, masks = (torch.stack(parts) for parts in zip(*(shown(case.reference) for case in page), strict=True))
        if method.seen == WHOLE:
            return self.clip_vision.encode_image(images), images
        from maskprompt.models.clip_vision.patch_visibility import encode

        seen = encode(self.clip_vision, images, 1 - masks, method.threshold, method.seen)
        return seen.output, seen.preview

    def scores(self, page: Sequence[Case], method: Method, seed: int) -> list[Score]:
        pictures = self.painted(page, method, seed)
        file = self.kept.file("scores", of=self.page(page, method, seed).stem, judge=self.eyes).with_suffix(".json")
        return [Score(**one) for one in records_in(file, lambda: judged(self.eye, pictures, page))]

    def gathered(self, method: Method) -> Scores:
        """All scores of a method."""
        found: Scores = []
        for page in self.pages:
            found += [list(of_case) for of_case in zip(*(self.scores(page, method, seed) for seed in range(self.size.seeds)), strict=True)]
        print(f"{method.name}: {np.mean([score.pure for of_case in found for score in of_case]):.2f}", flush=True)
        return found

    def features(self, method: Method) -> np.ndarray:
        """Of all pictures of a method, by case and seed: [cases, seeds, C]."""
        seeds = range(self.size.seeds)
        parts = ([features(self.eye, self.painted(page, method, seed)) for seed in seeds] for page in self.pages)
        return np.concatenate([np.stack(part, 1) for part in parts])

    def wanted(self) -> np.ndarray:
        """Features of renders of what was asked: [cases · RENDERS, C]."""
        rng = np.random.default_rng(7)
        renders = torch.stack([image_of(case.wanted(rng)) for page in self.pages for case in page for _ in range(RENDERS)])
        return features(self.eye, renders)


BARRED = {
    (REGION, GLOBAL): (PURE, OTHER, LEAK), (REGION.hidden, GLOBAL.hidden): (PURE, OTHER, LEAK), (REGION.hidden, GLOBAL): (PURE, LEAK),
    (REGION.hidden, REGION): (LEAK,),
}  # fmt: skip
"""What has a bar, of which two methods."""
COMPARED = (*BARRED, (QUERY, GLOBAL), (QUERY.hidden, GLOBAL.hidden), (QUERY, REGION), (OWN_QUERY, QUERY), (OWN_QUERY, REGION))
"""Methods that are held against each other, in everything that is measured."""


def tables(bench: Bench) -> list[Figure]:
    """All figures, the comparisons first."""
    scores = {method: bench.gathered(method) for method in METHODS}
    photographs = [case.reference.photo is not None for page in bench.pages for case in page]
    wanted = bench.wanted()
    figures = []
    for one, two in COMPARED:
        for what in MEASURES:
            figure = against(f"{one.name}, against {two.name}: {what}", what, scores[one], scores[two], more=what not in UNWANTED)
            figures.append(figure if what in BARRED.get((one, two), ()) else figure.unbarred)
    for method, found in scores.items():
        figures += figures_of(method.name, found, photographs)
        figures.append(fid_figure(f"{method.name}: FID against renders", bench.features(method), wanted))
    return figures


def sheet(bench: Bench, count: int = 10) -> None:
    """For a human, of the first cases: the reference whole and, below, with its object hidden; each method's picture of the first seed,
    and what the judge finds wrong with it."""
    from demo.contact_sheet import picture_of, save_sheet

    every = bench.pages[0]
    rows = []

    def tiles(index: int, methods: Sequence[Method]) -> list[tuple[str, Image.Image]]:
        pairs = [(bench.scores(every, method, 0)[index], bench.painted(every, method, 0)[index]) for method in methods]
        return [(f"{short(method)}: {said(score)}", picture_of(picture)) for method, (score, picture) in zip(methods, pairs, strict=True)]

    _, previews = bench.encoded(every, REGION.hidden)
    for index, case in enumerate(every[:count]):
        box, _ = torch.broadcast_tensors(regions_of([case])[0][..., None] * 0.85, torch.zeros(3))
        reference, _ = shown(case.reference)
        whole = [method for method in METHODS if method.seen == WHOLE]
        hidden = [method for method in METHODS if method.seen != WHOLE]
        row = [("reference", picture_of(reference)), ("the box (black)", picture_of(box)), *tiles(index, whole)]
        rows.append((f"in the box: {case.text}; around it: the ground of {case.reference.caption()}", row))
        rows.append(("the reference's object hidden", [("what the encoder saw", picture_of(previews[index])), *tiles(index, hidden)]))
    save_sheet(SHEET, rows)


def short(method: Method) -> str:
    """A method's name under a picture."""
    if method.mode == RENDER:
        return "render"
    return method.way.removesuffix(" only").replace("\u03bb ", "") + (", eq. 1" if method.seen == PAPER else "")


def said(score: Score) -> str:
    """What is wrong with a picture, in a few words."""
    wrong = [] if score.ground else ["text's ground" if score.other else "other ground"]
    if not score.asked:
        wrong.append("empty" if not score.found else "colour" if score.shape else "shape" if score.colour else "object")
    return ", ".join([*wrong, *(["leak"] if score.leak else [])]) or "right"


def main(command: str, arguments: Sequence[str] = ()) -> None:
    usual = Size()
    bench = Bench(size_of(usual, command, __doc__, arguments))
    figures = tables(bench)
    sheet(bench)
    notes = {
        "painting": f"{SAMPLER}, {STEPS} steps, CFG {CFG}; whole pictures of {subjects.SIZE} px, \u03bb 1 unless told",
        "cases": f"every {PHOTO_EVERY}th reference is a photograph; boxes of {SIDES[0]} or {SIDES[1]} px; triples never seen in training",
        "region purity": "outside the box the judge names the reference's ground, and in it finds the text's object, in shape and colour",
        "in the box": "nine tenths of the object lie inside, and it fills an eighth",
        "ground": "the judge's features averaged outside the box only; a photograph's is right if named a photograph",
        "to the edge": f"every patch that the object touches is hidden (threshold 0); else {REGION.threshold:g}, the node's default",
        "leak": "an object of the reference's shape or colour anywhere; the text asks for another shape and another colour",
        "FID": f"mean features of the judge's deepest and last level, each in units of its deviation, {RENDERS} renders a case; jackknife",
        "intervals": "Wilson's, widened by the design effect of a case's seeds; differences of two methods are bootstrapped over the cases",
        "render": "the control: a render of what was asked through the autoencoder, so what a perfect painter would get",
        "checkpoint": bench.checkpoint.name,
    }
    write("meca", command, figures, notes, bench.size == usual)
