"""Mask-ControlNet's tables (Huang et al., Tables 1, 2 and 4, Figure 8) on the tiny model, by the judge.

Objects that neither the tiny model nor its Mask-ControlNet was ever shown stand in a reference, on drawn grounds and on photographs, and
are to be painted in the same place on another ground. Painted pictures and scores stay in demo/work/mask-controlnet under keys of their
settings, which know nothing of the code: delete that folder after a change to what paints.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demo import judge, subjects, tiny_model, train_mask_controlnet
from demo.painter import CFG, SAMPLER, SCHEDULER, Painter
from demo.subjects import SUBJECTS, Subject

from ..cache import Kept, image_of, pictures_in, records_in, sha
from ..figures import Figure, mean, rate, size_of, write
from . import dreamcom
from .mask_controlnet_cases import GROUNDS, Case, cases_of, masks_of, pairs_of, pictures_of, real, rendered
from .mask_controlnet_scores import BESIDE, SAME, THERE, Score, compared, figures_of, frechet, most_within, perceptual, score_of

FORMAT = 1
WORK = tiny_model.ROOT / "demo" / "work" / "mask-controlnet"
SHEET = tiny_model.ROOT / "demo" / "output" / "mask-controlnet-table.png"
STEPS = 15
GUIDANCE = 2.0
"""Of painting; CFG of what is painted under a control network. At 4, the tiny model's usual one, the words, which do not name colours,
overdo those of the hint."""


@dataclass(frozen=True)
class Method:
    """How it is painted: a Mask-ControlNet "mask", one trained without masks "bare", one that learned from pairs "none" or "grounds"
    instead of given ones, inpainting around the object "outside", a LoRA of the object "tuned", or not at all: "real", the object rendered
    on the new ground, through the VAE."""

    name: str
    kind: str


MASK = Method("Mask-ControlNet", "mask")
BARE = Method("without the mask prompt (a ControlNet on the reference)", "bare")
BY_ITSELF = Method("pairs none (the picture is its own reference)", "none")
ON_GROUNDS = Method("pairs grounds (the object on another picture's ground)", "grounds")
OUTSIDE = Method("inpainting outside of the mask", "outside")
TUNED = Method("DreamCom's tuning, from text alone", "tuned")
REAL = Method("the object itself, through the VAE", "real")
TRAINED = {"bare": "--bare", "none": "--pairs none", "grounds": "--pairs grounds"}
"""What makes the file of a method that is not shipped."""


@dataclass(frozen=True)
class Size:
    """How large a run is; the figures are kept only of the whole one."""

    subjects: int = len(SUBJECTS)
    seeds: int = 2


@dataclass
class Bench:
    """Paints and judges; each thing once."""

    size: Size
    files: dict[str, Path] = field(
        default_factory=lambda: {
            "mask": train_mask_controlnet.FILE,
            "bare": tiny_model.ROOT / "demo" / "work" / train_mask_controlnet.BARE,
            "none": tiny_model.ROOT / "demo" / "work" / train_mask_controlnet.file_of("none"),
            "grounds": tiny_model.ROOT / "demo" / "work" / train_mask_controlnet.file_of("grounds"),
        }
    )
    painter: Painter = field(default_factory=Painter)
    eye: judge.Judge = field(default_factory=judge.load)

    def __post_init__(self) -> None:
        for kind, option in TRAINED.items():
            if not self.files[kind].is_file():
                command = f"python -m demo.train_mask_controlnet --threads 1 {option}"
                raise SystemExit(f"{self.files[kind].name} is not shipped: make it with `{command}` (about an hour of one core)")
        WORK.mkdir(parents=True, exist_ok=True)
        self.kept = Kept(WORK, {"format": FORMAT, "checkpoint": sha(tiny_model.CHECKPOINT.read_bytes())})
        self.eyes = sha(judge.FILE.read_bytes())

    @functools.cached_property
    def networks(self) -> dict[str, tuple[Any, Any]]:
        """CONTROL_NET and adapter of each file."""
        from maskprompt.models.mask_controlnet.control import load

        return {kind: load(str(file)) for kind, file in self.files.items()}

    @functools.cached_property
    def tuned(self) -> dreamcom.Bench:
        return dreamcom.Bench(dreamcom.Size())

    def page(self, cases: Sequence[Case], method: Method, seed: int) -> Path:
        weights = sha(self.files[method.kind].read_bytes()) if method.kind in self.files else ""
        what = sha(b"".join(case.rendered.image.tobytes() + f"{case.number} {case.prompt}".encode() for case in cases))
        how = [method.kind, weights, seed, SAMPLER, SCHEDULER, STEPS, CFG, GUIDANCE]
        return self.kept.file("painted", cases=what, how=how).with_suffix(".png")

    def painted(self, cases: Sequence[Case], method: Method, seed: int) -> Tensor:
        """A picture for each case: [B, 128, 128, 3]."""
        return pictures_in(self.page(cases, method, seed), subjects.SIZE, lambda: self.paint(cases, method, seed))

    @torch.no_grad()
    def paint(self, cases: Sequence[Case], method: Method, seed: int) -> Tensor:
        captions = [case.prompt for case in cases]
        if method.kind == "real":
            images = torch.stack([image_of(rendered(real(case)).image) for case in cases])
            return self.painter.vae.decode(self.painter.vae.encode(images)).clamp(0, 1)
        references = pictures_of(cases)
        masks = masks_of(cases)
        if method.kind == "outside":
            return self.painter.inpaint(references, 1 - masks, captions, seed, STEPS)
        if method.kind == "tuned":
            return self.by_tuning(cases, seed)
        return self.under_control(captions, self.networks[method.kind], references, masks, seed)

    def under_control(self, captions: list[str], network: tuple[Any, Any], references: Tensor, masks: Tensor, seed: int) -> Tensor:
        """As Object Hint, Apply ControlNet and KSampler do. Trained without masks, the reference is its own object."""
        import comfy.sample

        control, adapter = network
        hint = adapter.hint(references, masks if adapter.masked else torch.ones_like(masks))
        acting = control.copy().set_cond_hint(hint.movedim(-1, 1), 1.0, (0.0, 1.0), vae=self.painter.vae)
        values = {"control": acting, "control_apply_to_uncond": False}
        latent = torch.zeros(len(captions), 4, subjects.SIZE // 8, subjects.SIZE // 8)
        positive, negative = ([[self.painter.text(texts), dict(values)]] for texts in (captions, [""] * len(captions)))
        noise = comfy.sample.prepare_noise(latent, seed)
        done = comfy.sample.sample(
            self.painter.model, noise, STEPS, GUIDANCE, SAMPLER, SCHEDULER, positive, negative, latent, seed=seed, disable_pbar=True
        )
        return self.painter.vae.decode(done).clamp(0, 1)

    def by_tuning(self, cases: Sequence[Case], seed: int) -> Tensor:
        """With the LoRA of DreamCom's table, from text alone: DreamCom itself paints into a picture that is there."""
        from comfy.sd import load_lora_for_models

        found: list[Tensor] = []
        for subject in dict.fromkeys(case.subject for case in cases):
            lora, _ = self.tuned.trained(subject, dreamcom.WHOLE)
            model, _ = load_lora_for_models(self.painter.model, None, lora, 1.0, 0)  # pyright: ignore[reportArgumentType]
            token = self.tuned.options(subject, dreamcom.WHOLE).token
            captions = [f"a photo of {token} {subject.shape} on {case.ground}" for case in cases if case.subject == subject]
            found.append(self.painter.paint(captions, seed, subjects.SIZE, STEPS, CFG, model))
        return torch.cat(found)

    def scores(self, cases: Sequence[Case], method: Method, seed: int) -> list[Score]:
        pictures = self.painted(cases, method, seed)
        limits = [THERE, BESIDE, "nearer"]
        file = self.kept.file("scores", of=self.page(cases, method, seed).stem, judge=self.eyes, limits=limits).with_suffix(".json")
        return [Score(**one) for one in records_in(file, lambda: self.judged(cases, pictures, method))]

    def judged(self, cases: Sequence[Case], pictures: Tensor, method: Method) -> list[Score]:
        """What is tuned in has no place of its own: of it the judge takes the object of its shape, wherever it stands."""
        references = pictures_of(cases)
        masks = masks_of(cases)
        verdicts = judge.look(self.eye, pictures)
        places = F.avg_pool2d(masks, 2).numpy() > 0.5
        found = [
            verdict.best(case.subject.shape) if method.kind == "tuned" else most_within(verdict, place)
            for verdict, case, place in zip(verdicts, cases, places, strict=True)
        ]
        cut = [torch.from_numpy(place if one is None else one.mask).float() for one, place in zip(found, places, strict=True)]
        painted = judge.features(self.eye, pictures, torch.stack(cut))
        alike = (painted * judge.features(self.eye, references, masks)).sum(1)
        nearer = torch.ones(len(cases), dtype=torch.bool)
        for number in range(max(len(case.scene.things) for case in cases)):
            others = [case.number if number >= len(case.scene.things) else number for case in cases]
            marks = torch.stack([torch.from_numpy(case.rendered.masks[other]) for case, other in zip(cases, others, strict=True)])
            away = torch.tensor([other != case.number for case, other in zip(cases, others, strict=True)])
            nearer &= ~away | (alike > (painted * judge.features(self.eye, references, marks)).sum(1))
        wanted = torch.stack([image_of(rendered(real(case)).image) for case in cases])
        far = perceptual(self.eye, pictures, wanted)
        parts = zip(cases, pictures, wanted, verdicts, found, places, nearer.tolist(), alike.tolist(), far.tolist(), strict=True)
        return [score_of(*part) for part in parts]


def tables(bench: Bench) -> list[Figure]:
    """All figures, the most telling first."""
    chosen = SUBJECTS[: bench.size.subjects]

    @functools.cache
    def gathered(method: Method, cases: Any) -> list[Score]:
        found: list[Score] = []
        for subject in chosen:
            part = [score for seed in range(bench.size.seeds) for score in bench.scores(cases(subject), method, seed)]
            kept = np.mean([score.kept for score in part])
            ground = np.mean([score.ground for score in part])
            print(f"{method.name}, {subject.name}: {kept:.2f} kept, ground {ground:.2f}", flush=True)
            found += part
        return found

    figures = compared("with the mask prompt against without", gathered(MASK, cases_of), gathered(BARE, cases_of))
    for one, other in ((ON_GROUNDS, BY_ITSELF), (MASK, ON_GROUNDS)):
        held = compared(f"{one.name}, against {other.name}", gathered(one, cases_of), gathered(other, cases_of))
        figures += [figure.unbarred for figure in held]
    for method in (MASK, BARE, BY_ITSELF, ON_GROUNDS, OUTSIDE, TUNED, REAL):
        found = figures_of(method.name, gathered(method, cases_of))
        if method == MASK:
            found[2] = replace(found[2], bar="\u2265 0.85", met=found[2].value >= 0.85)
        figures += found
    both = gathered(MASK, pairs_of)
    right = [one.chosen and other.chosen for one, other in zip(both[::2], both[1::2], strict=True)]
    figures += [
        rate("two objects of one shape: the mask decides which of them appears", right, 0.9),
        rate("two objects of one shape: the marked one alone", [score.chosen for score in both]),
        rate("two objects of one shape: both of its colours are right", [score.colours for score in both]),
        rate("two objects of one shape: the other one as well", [score.beside for score in both]),
    ]
    return [*figures, *reconstruction(bench, chosen)]


def reconstruction(bench: Bench, chosen: Sequence[Subject]) -> list[Figure]:
    """Table 2: the reference itself is asked for. Of a photograph the prompt can say no more than that it is one."""
    figures = []
    for method in (MASK, BARE, BY_ITSELF, ON_GROUNDS, REAL):
        for kind, photographs in (("", False), (", photographs", True)):
            found: list[Score] = []
            pictures = []
            wanted = []
            for subject in chosen:
                references = [case for case in cases_of(subject)[::GROUNDS] if (case.scene.photo is not None) == photographs]
                asked = tuple(replace(case, ground=case.scene.ground) for case in references)
                for seed in range(bench.size.seeds):
                    found += bench.scores(asked, method, seed)
                    pictures.append(bench.painted(asked, method, seed))
                    wanted.append(pictures_of(asked))
            name = f"reconstruction, {method.name}{kind}"
            distance = frechet(bench.eye, torch.cat(pictures), torch.cat(wanted))
            figures += [
                Figure(f"{name}: Fréchet distance (judge's features)", distance, distance, distance, len(found)),
                mean(f"{name}: the object's PSNR", [score.psnr for score in found]),
                mean(f"{name}: the object's SSIM", [score.ssim for score in found]),
                mean(f"{name}: perceptual distance (judge's features)", [score.perceptual for score in found]),
            ]
    return figures


def sheet(bench: Bench) -> None:
    """For a human: each subject's first case of each reference by each method, and one pair."""
    from demo.contact_sheet import picture_of, save_sheet

    rows = []
    for subject in SUBJECTS[: bench.size.subjects]:
        cases = cases_of(subject)
        rows.append((subject.name, [(case.prompt, picture_of(image)) for case, image in zip(cases, pictures_of(cases), strict=True)][::2]))
        for method in (MASK, BARE, BY_ITSELF, ON_GROUNDS, OUTSIDE):
            shown = zip(bench.scores(cases, method, 0), bench.painted(cases, method, 0), strict=True)
            rows.append((method.name, [(f"{score.fidelity:.2f}", picture_of(image)) for score, image in shown][::2]))
        pairs = pairs_of(subject)
        shown = zip(pictures_of(pairs), bench.scores(pairs, MASK, 0), bench.painted(pairs, MASK, 0), strict=True)
        rows.append(("two objects", [entry for reference, score, image in shown
                                     for entry in (("", picture_of(reference)), (str(score.chosen), picture_of(image)))][:8]))  # fmt: skip
    save_sheet(SHEET, rows, 128)


def main(command: str, arguments: Sequence[str] = ()) -> None:
    usual = Size()
    bench = Bench(size_of(usual, command, __doc__, arguments))
    figures = tables(bench)
    sheet(bench)
    notes = {
        "pairs": "Mask-ControlNet and the one without the mask prompt learned from given pairs; all with the same settings",
        "painting": f"{SAMPLER}, {STEPS} steps, CFG {CFG}, under a control network {GUIDANCE}; 'a (shape) on (a ground)' names no colour",
        "the mask decides": "for either mask an object is found in its place whose features are nearer to the marked one's than to the "
        "other's, and the other's place is empty",
        "object fidelity": "cosine of the judge's features of the object in the reference and in the picture, in place of CLIP-I and DINO",
        "distorted or missing": f"the judge does not find its shape in both of its colours, with {SAME} of its mask's outline",
        "DreamCom's tuning": "is not told the place: its object is judged wherever it stands, but outline, PSNR and SSIM in the mask",
        "checkpoint": tiny_model.CHECKPOINT.name,
    }
    write("mask-controlnet", command, figures, notes, bench.size == usual)
