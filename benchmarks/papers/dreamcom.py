"""DreamCom's experiment (Lu et al., section 6): every subject learned from its references, then painted into its category's backgrounds.

The paper states the layers and five pictures a case. The rest is of its published code: 400 steps at 5e-6, and its pipeline's defaults, 50
steps at guidance 7.5. That code cuts out the box with half of its size around it, if it covers less than a quarter of the picture,
stretches the piece to the training's size and pastes the whole piece back; ours crops in proportion and pastes within the box alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import data, pictures, scoring
from .data import Insertion, Place, Subject
from .presets import Preset, chosen
from .sampling import Sampling, seed_of
from .scoring import Scores
from .work import Work

PRESETS = (
    Preset("paper", {"method": "full", "steps": 400, "rate": 5e-6, "batch": 1, "size": 512}, Sampling("ddim", "ddim_uniform", 50, 7.5), 5),
    Preset("ours", {}, Sampling("dpmpp_2m", "karras", 25, 7.0), 5),
)
"""Ours: the training's own defaults, a LoRA, and the workflow "Paint your subject into a box"."""
CONTEXT = 0.5
FEATHER = 4


@dataclass(frozen=True)
class Method:
    """Which parts of masked attention act: cross-attention while training and painting, self-attention while painting."""

    name: str
    cross: bool = True
    own: bool = True


WHOLE = Method("DreamCom")
ABLATIONS = (
    Method("DreamCom without masked cross-attention", cross=False),
    Method("DreamCom without masked self-attention", own=False),
    Method("DreamCom without both", False, False),
)
"""Of Table 4."""


class Experiment:
    """Trains a LoRA (or all weights' differences) for each subject, paints each of its cases, and scores them as section 6.2 says."""

    def __init__(self, work: Work) -> None:
        from maskprompt.training.dreamcom.options import Options

        self.work = work
        self.cases = data.murecom(work.given.data)[: work.given.cases]
        methods = (WHOLE, *(ABLATIONS if work.given.ablations else ()))
        presets = chosen(work.given, Options, PRESETS)
        self.rows = {f"{method.name}, {preset.title}": (method, preset) for preset in presets for method in methods}

    def items(self) -> list[Subject]:
        return list(dict.fromkeys(case.subject for case in self.cases))

    def begin(self) -> None:
        """Tells what is wrong before anything is trained."""
        for subject in self.items():
            _marked(subject)

    def paint(self, item: Subject) -> None:
        """Paints what is missing of a subject, by every row."""
        for row, (method, preset) in self.rows.items():
            for case in (one for one in self.cases if one.subject == item):
                make = functools.partial(self._painted, case, method, preset)
                self.work.paint(row, _name(case), preset.pictures, self._key(case, method, preset), make)

    def missing(self) -> int:
        """How many cases are still to be painted."""
        return sum(
            not self.work.is_painted(row, _name(case), preset.pictures, self._key(case, method, preset))
            for row, (method, preset) in self.rows.items()
            for case in self.cases
        )

    def scores(self, models: scoring.Models, kept: scoring.Kept, tell: Any) -> dict[str, Scores]:
        return {row: scoring.insertions(self.cases, self.work.folder(row), models, kept, tell) for row in self.rows}

    def _options(self, subject: Subject, method: Method, preset: Preset) -> Any:
        from maskprompt.training.dreamcom.options import Options

        return Options(**{"noun": subject.noun, "masked_attention": method.cross, **preset.training})

    def _about(self, subject: Subject, method: Method, preset: Preset) -> dict[str, Any]:
        files = [file for both in _marked(subject) for file in both]
        return {"pictures": self.work.content(*files), "options": asdict(self._options(subject, method, preset))}

    def _key(self, case: Insertion, method: Method, preset: Preset) -> str:
        place = [self.work.content(case.place.picture), case.place.box]
        how = [method.cross, method.own, preset.name, asdict(preset.sampling), preset.pictures, self.work.given.seed]
        return self.work.key(learned=self._about(case.subject, method, preset), place=place, how=how)

    def _learned(self, subject: Subject, method: Method, preset: Preset) -> Path:
        from maskprompt.training.data.references import Reference
        from maskprompt.training.dreamcom.job import prepare
        from safetensors.torch import save_file

        def job() -> Any:
            shown = [Reference(*pictures.opened(picture, mask)) for picture, mask in _marked(subject)]
            return prepare(*self.work.painter.parts, shown, self._options(subject, method, preset))

        def write(learned: Any, part: Path) -> None:
            save_file({name: value.contiguous() for name, value in learned.lora.items()}, part)

        name = "dreamcom-" + subject.name.replace("/", "-").replace(".", "-")
        return self.work.trained(name, self._about(subject, method, preset), job, write)

    def _model(self, subject: Subject, method: Method, preset: Preset) -> Any:
        from comfy.sd import load_lora_for_models
        from safetensors.torch import load_file

        learned = self._learned(subject, method, preset)
        load: Any = functools.partial(load_lora_for_models, self.work.painter.model, None)
        return self.work.held(learned, lambda: load(load_file(learned), 1.0, 0)[0])

    @torch.no_grad()
    def _painted(self, case: Insertion, method: Method, preset: Preset) -> Tensor:
        """The background with the subject in its box, `pictures` times: [B, H, W, 3]."""
        from maskprompt.nodes.crop import CropAroundBox
        from maskprompt.nodes.paste_back import PasteBack

        model = self._model(case.subject, method, preset)
        options = self._options(case.subject, method, preset)
        picture = scoring.image_of(case.place.picture)[None]
        box = _mask(case.place, picture)
        seed = seed_of(_name(case), self.work.given.seed)
        if preset.name == "paper":
            return self._as_published(model, picture, box, case.place, method, preset, options, seed)
        piece, mask, crop = _args(CropAroundBox.execute(picture, box, CONTEXT, options.size))
        painted = self._inpainted(model, piece, mask, method, preset, options.prompt, seed, keep=True)
        return _args(PasteBack.execute(picture, painted, crop, FEATHER))[0]

    def _as_published(self, model: Any, picture: Tensor, box: Tensor, place: Place, method: Method, preset: Preset, options: Any,
                      seed: int) -> Tensor:  # fmt: skip
        from maskprompt.images import crops

        height, width = picture.shape[1:3]
        left, top, right, bottom = surroundings(place.box, height, width)
        size = (options.size, options.size)
        piece = crops.scale(picture[:, top:bottom, left:right], *size)
        mask = F.interpolate(box[:, None, top:bottom, left:right], size, mode="nearest")[:, 0]
        painted = self._inpainted(model, piece, mask, method, preset, options.prompt, seed, keep=False)
        result = picture.repeat(len(painted), 1, 1, 1)
        result[:, top:bottom, left:right] = crops.scale(painted, bottom - top, right - left)
        return result

    def _inpainted(self, model: Any, piece: Tensor, mask: Tensor, method: Method, preset: Preset, prompt: str, seed: int,
                   keep: bool) -> Tensor:  # fmt: skip
        """As InpaintModelConditioning, Masked Attention and KSampler do; `keep`: with the noise mask."""
        from maskprompt.nodes.dreamcom import MaskedAttention

        painter = self.work.painter
        (masked,) = _args(MaskedAttention.execute(model, mask, method.cross, "paper" if method.own else "off", "paper"))
        hidden = (piece - 0.5) * (1 - mask.round()[..., None]) + 0.5
        values = {"concat_latent_image": painter.vae.encode(hidden), "concat_mask": mask[:, None]}
        latents = painter.vae.encode(piece).repeat(preset.pictures, 1, 1, 1)
        texts = (painter.text(prompt, **values), painter.text("", **values))
        return painter.paint(preset.sampling, *texts, latents, seed, masked, mask[:, None] if keep else None)


def surroundings(box: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """What the published code paints for a box (left, top, right, bottom): the box and half of its size around it, cut at the edges; the
    whole picture if the box covers a quarter of it or more."""
    left, top, right, bottom = box
    across, down = right - left, bottom - top
    if 4 * across * down >= height * width:
        return 0, 0, width, height
    x, y = int(CONTEXT * across), int(CONTEXT * down)
    return max(0, left - x), max(0, top - y), min(width, right + x), min(height, bottom + y)


def _marked(subject: Subject) -> Sequence[tuple[Path, Path]]:
    """The subject's pictures that have a mask, each with it."""
    found = [(picture, mask) for picture, mask in zip(subject.pictures, subject.masks, strict=True) if mask is not None]
    if not found:
        missing = subject.pictures[0].with_suffix(".png")
        raise ValueError(f"no picture of {subject.name} has a mask: {missing}, white on the subject, and so on for each are looked for.")
    return found


def _mask(place: Place, picture: Tensor) -> Tensor:
    box = torch.zeros(1, *picture.shape[1:3])
    left, top, right, bottom = place.box
    box[:, top:bottom, left:right] = 1
    return box


def _name(case: Insertion) -> str:
    return f"{case.subject.name}/{case.place.picture.stem}"


def _args(output: Any) -> tuple[Any, ...]:
    """What a node hands on."""
    return output.args
