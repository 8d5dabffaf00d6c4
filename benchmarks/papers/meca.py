"""The patch-enhanced mask encoder's experiment (section 4) on COCO: 50 references and 100 things, 5,000 pictures, their FID to COCO's.

The reference, whose own thing is hidden, drives everything around a thing's outline; inside the text names the thing. The adapter learns
from --train, or is given as --network. What is not here: the 100,000 advertising pictures, and the depth control that holds the product's
shape, so the FID's height says little beside the published one; its order of methods does. Sampling and training are the paper's.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import data, pictures, scoring
from .data import Instance
from .networks import network, print_of
from .presets import Preset, chosen
from .sampling import Sampling, seed_of
from .scoring import Scores
from .work import Work

PAPER = {
    "steps": 1_000_000, "rate": 1e-4, "weight_decay": 0.01, "batch": 64, "size": 512, "text_only": 0.05, "masked": 0.5, "text_dropout": 0.0,
    "blank": 0.0, "mode": "query", "visibility": "paper",
}  # fmt: skip
"""Section 4.1, and equations 1 and 6 to the letter."""
PRESETS = (
    Preset("paper", PAPER, Sampling("ddim", "ddim_uniform", 30, 7.5)),
    Preset("ours", {}, Sampling("dpmpp_2m", "karras", 25, 6.0)),
)
"""Ours: the training's own defaults, and the workflow "Two pictures and a text, each in its region"."""
REFERENCES = 50
THINGS = 100


@dataclass(frozen=True)
class Method:
    """With a text or none; the image in its region, or everywhere and whole, as a plain IP-Adapter has it."""

    name: str
    text: bool = True
    region: bool = True


METHODS = (Method("Image, by region", text=False), Method("Image and text, by region"))
ABLATION = Method("Image and text, everywhere", region=False)


@dataclass(frozen=True)
class Case:
    """A thing's outline on the ground of a reference."""

    reference: Instance
    thing: Instance

    @property
    def name(self) -> str:
        return f"{self.reference.picture.stem}/{self.thing.picture.stem}"

    @property
    def text(self) -> str:
        return f"a photo of a {self.thing.category}"


class Experiment:
    """Trains an adapter for each preset, paints each thing on each reference's ground, and measures the distance to COCO's pictures."""

    def __init__(self, work: Work) -> None:
        from maskprompt.training.meca.options import Options

        self.work = work
        if not work.given.clip_vision:
            raise ValueError("no vision model is named: give --clip-vision, such as CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors.")
        self.options = Options
        found = list({one.picture: one for one in data.coco(work.given.data)}.values())
        references = found[:REFERENCES]
        things = found[REFERENCES : REFERENCES + THINGS] or found[1:]  # a tiny folder's serve as both
        both = [Case(reference, thing) for thing in things for reference in references if reference.picture != thing.picture]
        self.cases = both[: work.given.cases]
        self.real = sorted(one for one in found[0].picture.parent.iterdir() if one.suffix.lower() in data.PICTURES)
        methods = (*METHODS, *([ABLATION] if work.given.ablations else []))
        presets = chosen(work.given, Options, PRESETS)
        self.rows = {f"{method.name}, {preset.title}": (method, preset) for preset in presets for method in methods}
        self.files: dict[str, Path] = {}

    @functools.cached_property
    def vision(self) -> Any:
        from maskprompt.training.command import comfyui

        return comfyui.load_clip_vision(self.work.given.clip_vision)

    def items(self) -> list[Case]:
        return self.cases

    def begin(self) -> None:
        """Trains the adapters."""
        self.files = {row: self._network(preset) for row, (_, preset) in self.rows.items()}

    def paint(self, item: Case) -> None:
        """Paints a case by every row, where it is missing."""
        for row, (_, preset) in self.rows.items():
            make = functools.partial(self._painted, item, row)
            self.work.paint(row, item.name, preset.pictures, self._key(item, row), make)

    def missing(self) -> int:
        """How many cases are still to be painted."""
        return sum(
            not self.work.is_painted(row, case.name, preset.pictures, self._key(case, row))
            for row, (_, preset) in self.rows.items()
            for case in self.cases
        )

    def scores(self, models: scoring.Models, kept: scoring.Kept, tell: Any) -> dict[str, Scores]:
        return scoring.sets({row: self._files(row) for row in self.rows}, self.real, models)

    def _files(self, row: str) -> list[Path]:
        return [one for case in self.cases for one in scoring.painted_of(self.work.folder(row), *case.name.split("/"))]

    def _network(self, preset: Preset) -> Path:
        from maskprompt.models.ip_adapter import file as meca_file
        from maskprompt.training.meca.job import prepare

        options = self.options(**preset.training)

        def job(examples: Any, process: int) -> Any:
            return prepare(*self.work.painter.parts, self.vision, examples, options, process=process)

        def write(learned: Any, part: Path) -> None:
            meca_file.save(learned.adapter.patcher.model, learned.adapter.about, str(part))

        return network(self.work, "meca", options, False, job, write)

    def _key(self, case: Case, row: str) -> str:
        method, preset = self.rows[row]
        seen = [[self.work.content(one.picture), one.polygons] for one in (case.reference, case.thing)]
        options = self.options(**preset.training)
        how = [case.text if method.text else "", method.region, options.size, options.visibility, options.threshold]
        how += [asdict(preset.sampling), preset.pictures, self.work.given.seed, self._vision]
        return self.work.key(network=print_of(self.work, self.files[row]), seen=seen, how=how)

    @functools.cached_property
    def _vision(self) -> str:
        from maskprompt.training.engine.checkpoint import signature_of

        return signature_of(self.vision.model)

    @torch.no_grad()
    def _painted(self, case: Case, row: str) -> Tensor:
        """As Hide in Reference, Image Prompt Region and KSampler do: [pictures, S, S, 3]."""
        from maskprompt.models.ip_adapter import adapter
        from maskprompt.nodes.meca import ApplyMECA
        from maskprompt.nodes.patch_visibility import PatchVisibility

        method, preset = self.rows[row]
        painter = self.work.painter
        options = self.options(**preset.training)
        reference = pictures.square(case.reference.picture, options.size)
        loaded = self.work.held(self.files[row], lambda: adapter.load(str(self.files[row])))
        outside = 1 - pictures.marks([case.thing], options.size)
        if method.region:
            visible = 1 - pictures.marks([case.reference], options.size)
            seen: Any = PatchVisibility.execute(self.vision, reference, visible, options.threshold, options.visibility)
            output, region, mode = seen.args[0], outside, "auto"
        else:
            output, region, mode = self.vision.encode_image(reference), None, "global"
        applied: Any = ApplyMECA.execute(painter.model, loaded, output, 1.0, mode, region, self.vision)
        texts = (painter.text(case.text if method.text else ""), painter.text(""))
        latents = painter.empty(preset.pictures, options.size, options.size)
        return painter.paint(preset.sampling, *texts, latents, seed_of(case.name, self.work.given.seed), applied.args[0])
