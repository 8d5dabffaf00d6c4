"""Mask-ControlNet's experiment (Huang et al., section 4) on the DreamBooth set: a subject kept, all around it by the set's prompts.

The network learns from --train, or is given as --network. References take turns; masks are the set's, else SAM's, as in the paper. The
pictures of Table 2 are the references themselves, painted again from their own hints. The paper states neither steps, rate nor sampling:
training is ControlNet's usual one, and sampling its pipeline's defaults, 50 steps of DDIM at guidance 7.5.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import data, pictures, scoring
from .data import Prompted, Subject
from .networks import network, print_of
from .presets import Preset, chosen
from .sampling import Sampling, seed_of
from .scoring import Scores
from .work import Work

PRESETS = (
    Preset("paper", {}, Sampling("ddim", "ddim_uniform", 50, 7.5), 4),
    Preset("ours", {}, Sampling("dpmpp_2m", "karras", 25, 6.0), 4),
)
"""Four pictures for each prompt, as the DreamBooth set's own protocol has it. Ours is of the workflow "Keep an object, paint its
surroundings"."""
MULTIPLE = 64
"""Sides of what is painted are multiples of it."""


@dataclass(frozen=True)
class Method:
    """With the object beside the reference, or the bare reference."""

    name: str
    masked: bool = True


WHOLE = Method("Mask-ControlNet")
ABLATION = Method("Mask-ControlNet without mask prompts", False)
"""Of Table 4."""


@dataclass(frozen=True)
class Case:
    """A prompt of a subject, or with none one of its pictures to be painted again."""

    subject: Subject
    number: int
    prompt: Prompted | None = None

    @property
    def name(self) -> str:
        return f"{self.subject.name}/{'prompt' if self.prompt else 'reference'}{self.number}"

    @property
    def text(self) -> str:
        return self.prompt.text() if self.prompt else f"a photo of a {self.subject.noun}"

    def pictures(self, preset: Preset) -> int:
        return preset.pictures if self.prompt else 1

    def shown(self, number: int) -> int:
        """Which of the subject's pictures is the reference of a case's picture."""
        return (number if self.prompt else self.number) % len(self.subject.pictures)


class Experiment:
    """Trains a network for each row, paints every subject by its prompts and its pictures again, and scores both."""

    def __init__(self, work: Work) -> None:
        from maskprompt.training.mask_controlnet.options import Options

        self.work = work
        self.prompted = data.dreambooth(work.given.data)[: work.given.cases]
        self.subjects = list(dict.fromkeys(one.subject for one in self.prompted))
        self.cases = [case for subject in self.subjects for case in self._cases(subject)]
        methods = (WHOLE, *([ABLATION] if work.given.ablations else []))
        presets = chosen(work.given, Options, PRESETS)
        self.rows = {f"{method.name}, {preset.title}": (method, preset) for preset in presets for method in methods}
        self.files: dict[str, Path] = {}

    def _cases(self, subject: Subject) -> list[Case]:
        prompts = [one for one in self.prompted if one.subject == subject]
        again = [Case(subject, number) for number in range(len(subject.pictures))]
        return [*(Case(subject, number, one) for number, one in enumerate(prompts)), *again]

    @functools.cached_property
    def sam(self) -> Any:
        from maskprompt.training.command import comfyui

        return comfyui.load_sam(self.work.given.sam) if self.work.given.sam else None

    def items(self) -> list[Subject]:
        return self.subjects

    def begin(self) -> None:
        """Trains the networks, once the masks are known to be there."""
        for subject in self.subjects:
            for number in range(len(subject.pictures)):
                self._mask(subject, number)
        self.files = {row: self._network(method, preset) for row, (method, preset) in self.rows.items()}

    def paint(self, item: Subject) -> None:
        """Paints what is missing of a subject, by every row."""
        for row, (_, preset) in self.rows.items():
            for case in (one for one in self.cases if one.subject == item):
                make = functools.partial(self._painted, case, row)
                self.work.paint(row, case.name, case.pictures(preset), self._key(case, row), make)

    def missing(self) -> int:
        """How many cases are still to be painted."""
        return sum(
            not self.work.is_painted(row, case.name, case.pictures(preset), self._key(case, row))
            for row, (_, preset) in self.rows.items()
            for case in self.cases
        )

    def scores(self, models: scoring.Models, kept: scoring.Kept, tell: Any) -> dict[str, Scores]:
        found = {}
        for row in self.rows:
            folder = self.work.folder(row)
            again = scoring.reconstructed(self.subjects, folder, models, kept)
            found[row] = {**scoring.prompted(self.prompted, folder, models, kept, tell), **again}
        return found

    def _mask(self, subject: Subject, number: int) -> Path:
        return pictures.mask_file(self.sam, subject.pictures[number], subject.masks[number], self.work.out / "masks")

    def _network(self, method: Method, preset: Preset) -> Path:
        from maskprompt.models.mask_controlnet import file as mask_controlnet_file
        from maskprompt.training.mask_controlnet.job import prepare
        from maskprompt.training.mask_controlnet.options import Options

        options = Options(**{"masked": method.masked, **preset.training})

        def job(examples: Any, process: int) -> Any:
            return prepare(*self.work.painter.parts, examples, options, process=process)

        def write(learned: Any, part: Path) -> None:
            mask_controlnet_file.save(learned.content, part)

        return network(self.work, "mask-controlnet", options, True, job, write)

    def _size(self, preset: Preset) -> int:
        return int(preset.training.get("size", 512))

    def _key(self, case: Case, row: str) -> str:
        _, preset = self.rows[row]
        shown = [case.shown(number) for number in range(case.pictures(preset))]
        seen = [self.work.content(case.subject.pictures[one], self._mask(case.subject, one)) for one in shown]
        how = [case.text, self._size(preset), asdict(preset.sampling), self.work.given.seed]
        return self.work.key(network=print_of(self.work, self.files[row]), seen=seen, how=how)

    @torch.no_grad()
    def _painted(self, case: Case, row: str) -> list[Tensor]:
        return [self._one(case, row, number) for number in range(case.pictures(self.rows[row][1]))]

    def _one(self, case: Case, row: str, number: int) -> Tensor:
        """As Object Hint, Apply ControlNet and KSampler do: [H, W, 3]."""
        from maskprompt.images import crops
        from maskprompt.images.masks import resize
        from maskprompt.models.mask_controlnet import control
        from maskprompt.nodes.mask_controlnet import MaskConcat

        _, preset = self.rows[row]
        painter = self.work.painter
        shown = case.shown(number)
        image, mask = pictures.opened(case.subject.pictures[shown], self._mask(case.subject, shown))
        height, width = crops.painting_size(crops.whole(*mask.shape), self._size(preset), MULTIPLE)
        network, adapter = self.work.held(self.files[row], lambda: control.load(str(self.files[row])))
        output: Any = MaskConcat.execute(adapter, crops.scale(image[None], height, width), resize(mask[None], height, width))
        hint = output.args[0].movedim(-1, 1)
        acting: Any = network.copy().set_cond_hint(hint, 1.0, (0.0, 1.0), vae=painter.vae)
        values = {"control": acting, "control_apply_to_uncond": False}
        seed = seed_of(f"{case.name}_{number}", self.work.given.seed)
        texts = (painter.text(case.text, **values), painter.text("", **values))
        return painter.paint(preset.sampling, *texts, painter.empty(1, height, width), seed)[0]
