"""MCGM's experiment (Skaik et al., section 4) on COCO: the things of one picture learned, then painted elsewhere in other things' outlines.

Beside it Break-A-Scene, the same without mask tokens. The paper asked 82 people which of two pictures fits the mask; here SAM is asked.
Training is the paper's; of sampling it states nothing, so it is as in Break-A-Scene's code: DDIM and its pipeline's defaults, 50 steps at
guidance 7.5. As in section 4, every picture and mask is brought to a square.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import data, pictures, posing, scoring
from .data import Scene
from .presets import Preset, chosen
from .sampling import Sampling, seed_of
from .scoring import Scores
from .work import Work

PRESETS = (
    Preset("paper", {"method": "full", "rate": 2e-6, "batch": 1, "size": 512}, Sampling("ddim", "ddim_uniform", 50, 7.5)),
    Preset("ours", {}, Sampling("dpmpp_2m", "karras", 25, 7.0)),
)
"""What a card holds; the rest is the training's own preset. Ours is of the workflow "Pose a subject by its mask"."""
LOSSES = {"paper": "paper", "ours": "recommended"}
PLACES = ("at the beach", "in the snow", "on the grass", "on a street")
NAME = "scene"


@dataclass(frozen=True)
class Method:
    """How a picture is learned, and painted: with masks ("shaped"), empty ones ("blank") or none at all."""

    name: str
    masks: str = "shaped"
    mask_attention: bool = True


WHOLE = Method("MCGM")
BASELINE = Method("Break-A-Scene", "none")
ABLATIONS = (Method("MCGM with blank masks", "blank"), Method("MCGM without mask attention loss", mask_attention=False))
"""Of Figures 5 and 9."""


@dataclass(frozen=True)
class Case:
    """A pose of a scene's things."""

    scene: Scene
    pose: int

    @property
    def name(self) -> str:
        return f"{self.scene.picture.stem}/pose{self.pose}"

    def text(self, names: tuple[str, ...]) -> str:
        """The prompt, with the things so named."""
        return f"a photo of {' and '.join(names)} {PLACES[self.pose % len(PLACES)]}"


class Experiment:
    """Learns each scene, paints it in each of its poses, and has the pairs of both methods judged."""

    def __init__(self, work: Work) -> None:
        from maskprompt.training.mcgm.options import Options

        self.work = work
        scenes = data.scenes(work.given.data)
        most = max(len(scene.poses) for scene in scenes)
        poses = [Case(scene, pose) for pose in range(most) for scene in scenes if pose < len(scene.poses)]
        self.cases = poses[: work.given.cases]
        methods = (WHOLE, BASELINE, *(ABLATIONS if work.given.ablations else ()))
        presets = chosen(work.given, Options, PRESETS)
        self.rows = {f"{method.name}, {preset.title}": (method, preset) for preset in presets for method in methods}

    def items(self) -> list[Scene]:
        return list(dict.fromkeys(case.scene for case in self.cases))

    def begin(self) -> None:
        """Nothing is shared by the scenes."""

    def paint(self, item: Scene) -> None:
        """Paints what is missing of a scene, by every row."""
        for row, (method, preset) in self.rows.items():
            for case in (one for one in self.cases if one.scene == item):
                make = functools.partial(self._painted, case, method, preset)
                self.work.paint(row, case.name, preset.pictures, self._key(case, method, preset), make)

    def missing(self) -> int:
        """How many cases are still to be painted."""
        return sum(
            not self.work.is_painted(row, case.name, preset.pictures, self._key(case, method, preset))
            for row, (method, preset) in self.rows.items()
            for case in self.cases
        )

    def scores(self, models: scoring.Models, kept: scoring.Kept, tell: Any) -> dict[str, Scores]:
        cases = [(case.scene, case.pose, case.text(case.scene.words)) for case in self.cases]
        found = {row: posing.posed(cases, self.work.folder(row), models, kept, tell) for row in self.rows}
        for row, (method, preset) in self.rows.items():
            baseline = f"{BASELINE.name}, {preset.title}"
            if method == WHOLE and "IoU" in found[row]:
                ours = posing.preferred(found[row], found[baseline])
                found[row]["preferred, %"] = ours
                found[baseline]["preferred, %"] = [100 - one for one in ours]
        return found

    def _options(self, scene: Scene, method: Method, preset: Preset) -> Any:
        from maskprompt.training.mcgm.options import Options, with_preset

        options = replace(with_preset(Options(scene.words), LOSSES[preset.name]), **preset.training)
        weight = options.mask_attention_weight if method.mask_attention else 0.0
        return replace(options, masks=method.masks != "none", mask_attention_weight=weight)

    def _about(self, scene: Scene, method: Method, preset: Preset) -> dict[str, Any]:
        options = self._options(scene, method, preset)
        return {"picture": self.work.content(scene.picture), "marks": [one.polygons for one in scene.things], "options": asdict(options)}

    def _key(self, case: Case, method: Method, preset: Preset) -> str:
        pose = [(self.work.content(one.picture), one.polygons) for one in case.scene.poses[case.pose]]
        how = [method.masks, asdict(preset.sampling), preset.pictures, case.text(case.scene.words), self.work.given.seed]
        return self.work.key(learned=self._about(case.scene, method, preset), pose=pose, how=how)

    def _learned(self, scene: Scene, method: Method, preset: Preset) -> Path:
        """The folder with `embeddings`, `loras` and `mcgm` in it, as ComfyUI's models folder has them."""
        from maskprompt.models.mcgm import store
        from maskprompt.training.mcgm.job import prepare

        def job() -> Any:
            options = self._options(scene, method, preset)
            return prepare(
                *self.work.painter.parts, pictures.square(scene.picture, options.size), pictures.marks(scene.things, options.size), options
            )

        def write(learned: Any, part: Path) -> None:
            store.save(NAME, scene.words, learned.vectors.__getitem__, learned.encoder, learned.lora, root=part)

        return self.work.trained(f"mcgm-{scene.picture.stem.replace('.', '-')}", self._about(scene, method, preset), job, write)

    @torch.no_grad()
    def _painted(self, case: Case, method: Method, preset: Preset) -> Tensor:
        """As Load Poseable Subjects, Pose by Masks and KSampler do: [pictures, S, S, 3]."""
        from comfy.sd import load_lora_for_models
        from maskprompt.models.mcgm import file as mask_encoder_file
        from maskprompt.models.mcgm import store
        from maskprompt.nodes.mcgm import EncodeMasks
        from safetensors.torch import load_file

        painter = self.work.painter
        folder = self._learned(case.scene, method, preset)
        size = self._options(case.scene, method, preset).size
        learned = folder / "loras" / f"{NAME}.safetensors"
        load: Any = functools.partial(load_lora_for_models, painter.model, painter.clip)
        model, clip = self.work.held(learned, lambda: load(load_file(learned), 1.0, 1.0))
        prompt = case.text(tuple(f"embedding:{name}" for name in store.handle_names(NAME, case.scene.words)))
        with finding(clip, folder / "embeddings"):
            positive, negative = (painter.text(text, clip) for text in (prompt, ""))
        if method.masks != "none":
            encoder = mask_encoder_file.load(str(folder / "mcgm" / f"{NAME}.safetensors"))
            masks = pictures.marks(case.scene.poses[case.pose], size) * (method.masks == "shaped")
            output: Any = EncodeMasks.execute(positive, negative, encoder, 1.0, masks, prompt)
            positive, negative = output.args
        latents = painter.empty(preset.pictures, size, size)
        return painter.paint(preset.sampling, positive, negative, latents, seed_of(case.name, self.work.given.seed), model)


@contextlib.contextmanager
def finding(clip: Any, folder: Path) -> Iterator[None]:
    """Inside `with`, the text encoders of a CLIP find the embeddings of a folder, and only those."""
    tokenizers = [one for one in vars(clip.tokenizer).values() if hasattr(one, "embedding_directory")]
    before = [one.embedding_directory for one in tokenizers]
    try:
        for one in tokenizers:
            one.embedding_directory = str(folder)
        yield
    finally:
        for one, directory in zip(tokenizers, before, strict=True):
            one.embedding_directory = directory
