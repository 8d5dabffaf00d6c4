"""MCGM's table (Skaik et al., section 4) on the tiny model, by the judge: poses by mask, subjects of a single picture.

Eight pictures of one to three subjects that the tiny model never saw. Of each, MCGM is trained whole and without mask tokens
(Break-A-Scene), of those of two subjects also without the mask tokens' attention loss; then the subjects are painted on another ground
with ten masks in other poses. Trainings, painted pictures and scores stay in demo/work/mcgm under keys of their settings, which know
nothing of the code: delete that folder after a change to what trains or paints.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo import judge, scenes, tiny_model
from demo.painter import SAMPLER, SCHEDULER, Painter
from demo.subjects import Subject

from ..cache import Kept, image_of, pictures_in, records_in, sha
from ..figures import Figure, apart, mean, size_of, write
from .mcgm_methods import BASELINE, BLANK, ONE, SHAPED, WHOLE, WITHOUT_LOSS, Method, Trained, tokens_of
from .mcgm_pictures import PICTURES, SIZE, grounds, poses, rendered
from .mcgm_scores import Score, figures_of, mixed, no_worse, owners, score_of, wins
from .settings import beside_defaults

FORMAT = 1
WORK = tiny_model.ROOT / "demo" / "work" / "mcgm"
SHEET = tiny_model.ROOT / "demo" / "output" / "mcgm-table.png"
NAME = "subject-"
BATCH = 8
RATE = 5e-4
AVERAGE = 0.99
"""Of training all weights, as the paper does. Its rate of 2e-6 is for layers ten times as wide, a batch of 1 and a model that knows its
subjects' kinds."""
STEPS = 15
CFG = 4.0
"""Of painting."""
PAPER = {
    "steps": 400, "weight_steps": 400, "method": "full", "learning_rate": 2e-6, "batch_size": 1, "size": 512, "background": "plain",
    "move_subjects": False, "attention_weight": 0.01, "mask_attention_weight": 0.3, "background_weight": 0.0, "mask_tokens": "paper",
    "average": 0.0,
}  # fmt: skip
"""Of Train Poseable Subjects' inputs, as sections 3 and 4 of the paper have them."""


@dataclass(frozen=True)
class Size:
    """How large a run is; the figures are kept only of the whole one."""

    pictures: int = len(PICTURES)
    seeds: int = 4
    poses: int = 10
    steps: int = 50
    weight_steps: int = 850


@dataclass
class Bench:
    """Trains, paints and judges; each thing once."""

    size: Size
    painter: Painter = field(default_factory=Painter)
    eye: judge.Judge = field(default_factory=judge.load)

    def __post_init__(self) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        self.kept = Kept(WORK, {"format": FORMAT, "checkpoint": sha(tiny_model.CHECKPOINT.read_bytes())})
        self.eyes = sha(judge.FILE.read_bytes())

    def options(self, picture: tuple[Subject, ...], trained: Trained) -> Any:
        from maskprompt.training.mcgm.options import Options, with_preset

        words = tuple(subject.shape for subject in picture)
        if trained.preset:
            method = "full" if trained.preset == "paper" else "lora"
            made = with_preset(Options(words, method=method, size=SIZE, checkpointing=False), trained.preset)
            return replace(made, **dict(trained.changed))
        usual = Options(words, self.size.steps, self.size.weight_steps, rate=RATE, method="full", batch=BATCH, size=SIZE)
        weight = usual.mask_attention_weight if trained.mask_attention else 0.0
        made = replace(usual, masks=trained.masks, mode=trained.mode, mask_attention_weight=weight, average=AVERAGE, checkpointing=False)
        return replace(made, **dict(trained.changed))

    def folder(self, picture: tuple[Subject, ...], trained: Trained) -> Path:
        """Where what was learned lies, or is to."""
        pixels = sha(rendered(picture).image.tobytes())
        return self.kept.file("learned", picture=pixels, options=asdict(self.options(picture, trained)))

    def learned(self, picture: tuple[Subject, ...], trained: Trained) -> Path:
        """The folder of a training's files: handles, LoRA, mask encoder, and the seconds that it took."""
        from safetensors.torch import save_file

        folder = self.folder(picture, trained)
        if not folder.is_dir():
            from maskprompt.conditioning import handles
            from maskprompt.models.mcgm import file as encoder_file
            from maskprompt.training.engine.job import run
            from maskprompt.training.mcgm.job import prepare

            started = time.monotonic()
            options = self.options(picture, trained)
            shown = rendered(picture)
            image = image_of(shown.image)[None]
            parts = self.painter.model, self.painter.clip, self.painter.vae
            done, outcome = run(prepare(*parts, image, torch.from_numpy(shown.masks), options))
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            own = []
            for number, (word, vectors) in enumerate(zip(options.words, outcome.vectors, strict=True)):
                handles.save(str(part), NAME + str(number), vectors, word)
                own.append(handles.Handle(NAME + str(number), word))
            save_file(outcome.lora, part / "lora.safetensors")
            if outcome.encoder is not None:
                encoder_file.save(outcome.encoder, encoder_file.About(tuple(own)), str(part / "encoder.safetensors"))
            about = {"seconds": time.monotonic() - started, "losses": done.losses}
            (part / "about.json").write_text(json.dumps(about), "utf-8")
            part.replace(folder)
        return folder

    def page(self, picture: tuple[Subject, ...], method: Method, seed: int) -> Path:
        """The file of one set of painted pictures, one below the other."""
        how = [method.masks, method.asked, seed, SAMPLER, SCHEDULER, STEPS, CFG]
        poses = sha(b"".join(one.masks.tobytes() for one in self.poses(picture)))
        return self.kept.file("painted", learned=self.folder(picture, method.trained).name, poses=poses, how=how).with_suffix(".png")

    def poses(self, picture: tuple[Subject, ...]) -> list[scenes.Rendered]:
        return poses(picture, self.size.poses)

    def painted(self, picture: tuple[Subject, ...], method: Method, seed: int) -> Tensor:
        """The subjects on another ground, once for each pose: [B, 128, 128, 3]."""
        return pictures_in(self.page(picture, method, seed), SIZE, lambda: self.paint(picture, method, seed))

    @torch.no_grad()
    def paint(self, picture: tuple[Subject, ...], method: Method, seed: int, readings: Any = None) -> Tensor:
        """As Load Poseable Subjects, Pose by Masks and KSampler do. `readings`, if given, get the attention to the mask tokens."""
        import comfy.sample
        from comfy.sd import load_lora_for_models
        from maskprompt.conditioning import mask_tokens
        from maskprompt.models.mcgm import file as encoder_file
        from safetensors.torch import load_file

        folder = self.learned(picture, method.trained)
        masks = torch.stack([torch.from_numpy(one.masks) for one in self.poses(picture)])
        learned: Any = load_lora_for_models(self.painter.model, self.painter.clip, load_file(folder / "lora.safetensors"), 1.0, 1.0)
        model, clip = learned
        finds = clip.tokenizer.clip_l
        finds.embedding_directory, before = str(folder), finds.embedding_directory
        try:
            handles = [f"embedding:{NAME}{number}" for number in range(len(picture))]
            named = " and ".join(handles if method.asked == "handle" else [f"a {one.shape}" for one in picture])
            text = torch.cat(
                [clip.encode_from_tokens(clip.tokenize(f"a photo of {named} on {ground}")) for ground in grounds(picture, len(masks))]
            )
            negative = clip.encode_from_tokens(clip.tokenize("")).expand(len(masks), -1, -1)
        finally:
            finds.embedding_directory = before
        if method.masks != "none":
            given = masks.amax(1, keepdim=True) if method.masks == "one" else masks
            encoder = encoder_file.load(str(folder / "encoder.safetensors")).network
            tokens = torch.stack([tokens_of(encoder, row, method.asked) for row in given]) * (method.masks != "blank")
            text = mask_tokens.append(text, tokens, 77)
            negative = mask_tokens.append(negative, torch.zeros_like(tokens), 77)
        if readings is not None:
            from maskprompt.attention import chain, probe

            wanted = tuple((column,) for column in range(77, text.shape[1]))
            model = chain.install(model, probe.Probe((wanted,), text.shape[1], readings))
        latent = torch.zeros(len(masks), 4, SIZE // 8, SIZE // 8)
        noise = comfy.sample.prepare_noise(latent, seed)
        done = comfy.sample.sample(
            model, noise, STEPS, CFG, SAMPLER, SCHEDULER, [[text, {}]], [[negative, {}]], latent, seed=seed, disable_pbar=True
        )  # fmt: skip
        return self.painter.vae.decode(done).clamp(0, 1)

    def shares(self, picture: tuple[Subject, ...], method: Method) -> list[float]:
        """Of the attention, how much each mask's token takes, on the average of cells and layers while the first pictures are painted."""
        from maskprompt.attention.maps import Readings

        readings = Readings()
        self.paint(picture, method, 0, readings)
        found = torch.cat([reading.maps.mean(1) for reading in readings.all()])
        return found.mean(0).tolist()

    def scores(self, picture: tuple[Subject, ...], method: Method, seed: int) -> list[Score]:
        pictures = self.painted(picture, method, seed)
        file = self.kept.file("scores", of=self.page(picture, method, seed).stem, judge=self.eyes).with_suffix(".json")

        def judged() -> list[Score]:
            parts = zip(self.poses(picture), judge.look(self.eye, pictures), owners(self.eye, picture, pictures), strict=True)
            return [score_of(picture, pose.masks, seen, whose) for pose, seen, whose in parts]

        return [Score(**{name: tuple(value) for name, value in one.items()}) for one in records_in(file, judged)]


def tables(bench: Bench) -> list[Figure]:
    """All figures, the most telling first. Without the mask attention loss only pictures of two subjects are learned."""
    chosen = PICTURES[: bench.size.pictures]

    @functools.cache
    def gathered(method: Method, counts: tuple[int, ...]) -> list[Score]:
        found: list[Score] = []
        for picture in (one for one in chosen if len(one) in counts):
            part = [score for seed in range(bench.size.seeds) for score in bench.scores(picture, method, seed)]
            overlap = np.asarray([score.overlap for score in part]).mean()
            present = np.asarray([score.present for score in part]).mean()
            print(f"{method.name}, {', '.join(one.name for one in picture)}: {overlap:.2f}, {present:.2f}", flush=True)
            found += part
        return found

    counts = tuple(sorted({len(picture) for picture in chosen}))
    figures = []
    for other in (BLANK, BASELINE):
        won = mean(f"shaped masks against {other.name}: pairs won", wins(gathered(SHAPED, counts), gathered(other, counts)))
        figures.append(replace(won, bar="\u2265 0.9", met=won.value >= 0.9))
    for other in (BLANK, BASELINE):
        figures.append(
            no_worse(f"shaped masks against {other.name}: the subject is there", gathered(SHAPED, counts), gathered(other, counts))
        )
    if 2 in counts:
        mixing = (mixed("", gathered(method, (2,))) for method in (SHAPED, WITHOUT_LOSS))
        figures.append(apart("2 subjects, shaped masks with against without their attention loss: mixing", *mixing, more=False))
    for method in (SHAPED, BLANK, BASELINE):
        figures += figures_of(method.name, gathered(method, counts))
    for number in counts:
        for method in (SHAPED, BLANK, BASELINE, *((WITHOUT_LOSS, ONE) if number == 2 else ())):
            figures += figures_of(f"{number} subject{'s' if number > 1 else ''}, {method.name}", gathered(method, (number,)))
    for method in (SHAPED, BLANK):
        taken = [share for picture in chosen for share in bench.shares(picture, method)]
        figures.append(mean(f"{method.name}: a mask token's share of the attention (evenly shared it were 0.013)", taken))
    seconds = [json.loads((bench.learned(picture, WHOLE) / "about.json").read_text("utf-8"))["seconds"] for picture in chosen]
    return [*figures, mean("seconds of training for one picture", seconds)]


def sheet(bench: Bench) -> None:
    """For a human: of each picture six poses, and what each method painted with the first noise."""
    from demo.contact_sheet import picture_of, save_sheet

    rows = []
    for picture in PICTURES[: bench.size.pictures]:
        marked = [picture_of(np.repeat(one.masks.max(0)[..., None], 3, 2)) for one in bench.poses(picture)[:6]]
        rows.append((", ".join(one.name for one in picture), [("learned from", picture_of(image_of(rendered(picture).image)))]
                     + [("mask", one) for one in marked]))  # fmt: skip
        for method in (SHAPED, BLANK, BASELINE, *((WITHOUT_LOSS,) if len(picture) == 2 else ())):
            scores = bench.scores(picture, method, 0)
            pictures = bench.painted(picture, method, 0)
            shown = [(f"{np.mean(score.overlap):.2f}", picture_of(one)) for score, one in zip(scores, pictures, strict=True)]
            rows.append((method.name, shown[:6]))
    save_sheet(SHEET, rows, 160)


def settings(options: Any) -> str:
    """What `bench.options` sets that Train Poseable Subjects has another default for, or the paper another value.

    A rate of 0 is the usual one.
    """
    from maskprompt.nodes.train_mcgm import TrainMCGM

    measured = {
        "steps": options.steps, "weight_steps": options.weight_steps, "method": options.method, "learning_rate": options.rate or 0.0,
        "batch_size": options.batch, "size": options.size, "background": options.background, "move_subjects": options.move,
        "attention_weight": options.attention_weight, "mask_attention_weight": options.mask_attention_weight,
        "background_weight": options.background_weight, "prior_weight": options.prior_weight,
        "mask_tokens": options.mode if options.masks else "off", "average": options.average,
    }  # fmt: skip
    return beside_defaults(measured, TrainMCGM, PAPER)


def main(command: str, arguments: Sequence[str] = ()) -> None:
    usual = Size()
    bench = Bench(size_of(usual, command, __doc__, arguments))
    figures = tables(bench)
    sheet(bench)
    how = bench.options(PICTURES[0], WHOLE)
    notes = {
        "settings other than the node's defaults or the paper's": settings(how),
        "training": f"{usual.steps} + {usual.weight_steps} steps of {BATCH} pictures of {SIZE} px, all weights, rate {RATE:g}, their "
        f"moving average ({AVERAGE:g}); "
        f"attention weight {how.attention_weight:g}, of mask tokens {how.mask_attention_weight:g} times that, background weight "
        f"{how.background_weight:g}",
        "painting": f"{SAMPLER}, {STEPS} steps, CFG {CFG}; 'a photo of (the handles) on (a ground)'",
        "overlap": "intersection over union of the subject's mask and the cells in which the judge sees an object in its colours",
        "the subject is there": "the judge finds an object of its shape, its two main colours the subject's, each 15 % or more",
        "not measured": "how well picture and text fit: a user study in the paper",
        "checkpoint": tiny_model.CHECKPOINT.name,
    }
    write("mcgm", command, figures, notes, bench.size == usual)
