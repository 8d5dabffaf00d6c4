"""The comparison of "Patch-enhanced Mask Encoder Prompt Image Generation" (section 4) on the tiny model, by the judge.

Each case has a reference (an object on a ground), a text that asks for another object on another ground, and a box: in the box the text
drives, everywhere else the reference's ground is to be seen and its object is not. Every set of painted pictures and what the judge says
of it is kept in demo/work/meca under a key of all that it is made from, and found again by the next run. The key knows nothing of the
code: delete that folder after a change to what paints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from demo import judge, photos, scenes, subjects, tiny_model
from demo.painter import CFG, SAMPLER, STEPS, Painter

from ..cache import Kept, image_of, keep, keep_pictures, kept_pictures, sha
from ..figures import Figure, apart, mean, rate, size_of, write
from .tiny_model import in_box, mask_of, words

FORMAT = 1
WORK = tiny_model.ROOT / "demo" / "work" / "meca"
SHEET = tiny_model.ROOT / "demo" / "output" / "meca-table.png"
VISION = tiny_model.ROOT / "demo" / "tiny-clip-vision.safetensors"
ADAPTER = tiny_model.ROOT / "demo" / "tiny-meca.safetensors"
PAGE = 32
"""Cases that are painted together: all methods paint a page from the same noise."""
SIDES = (56, 64)
"""Of a box, in pixels of 128: 44 or 50 %, whole cells of the latents."""
PHOTO_EVERY = 5
"""Every so many-th reference is a photograph."""
RENDERS = 16
"""Of each case, for the FID. They cost next to nothing, and more of them make its estimate better."""
WHOLE = "whole"
HIDE = "hide"
PAPER = "paper"
RENDER = "render"
SEEN = {WHOLE: "whole reference", HIDE: "object hidden", PAPER: "object hidden as in eq. 1"}


@dataclass(frozen=True)
class Method:
    """How a picture is painted. `mode`: Apply MECA's ("": the text alone; `render`: not painted at all, but the render of what was
    asked through the autoencoder). `seen`: what the vision model sees of the reference."""

    way: str
    mode: str = ""
    seen: str = WHOLE
    text: bool = True
    weight: float = 1.0
    threshold: float = 0.5

    @property
    def name(self) -> str:
        return f"{self.way}, {SEEN[self.seen]}" if self.mode not in ("", RENDER) else self.way

    @property
    def hidden(self) -> Method:
        return replace(self, seen=HIDE)


RENDERED = Method("render of what was asked", RENDER)
TEXT = Method("text only")
IMAGE = Method("image only", "global", text=False)
GLOBAL = Method("global", "global")
FAINT = Method("global, λ 0.5", "global", weight=0.5)
REGION = Method("region", "region")
QUERY = Method("query", "query")
METHODS = (
    RENDERED, TEXT, *(one for method in (IMAGE, GLOBAL, FAINT, REGION, QUERY) for one in (method, method.hidden)),
    replace(REGION, seen=PAPER), Method("region, to the edge", "region", HIDE, threshold=0.0),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large a run is; the figures are kept only of the whole one."""

    cases: int = 64
    seeds: int = 2


@dataclass(frozen=True)
class Case:
    """`reference`: an object on a ground. `thing`: the object that the text asks for, as a render would have it in the box; `ground`:
    the ground of which the text speaks. `box` in pixels of 128: x, y, width, height."""

    reference: scenes.Scene
    thing: scenes.Thing
    ground: str
    box: subjects.Box

    @property
    def text(self) -> str:
        return words(self.thing.shape, self.thing.paint.colour, self.ground)

    @property
    def unwanted(self) -> scenes.Thing:
        return self.reference.things[0]

    def wanted(self, rng: np.random.Generator) -> np.ndarray:
        """What was asked, as a render: the text's object in the box on a ground like the reference's. uint8 [128, 128, 3]."""
        x, y, width, height = self.box
        room = min(width, height) / subjects.SIZE
        size = room * float(rng.uniform(0.85, 1.0))
        tilt = float(rng.uniform(-8, 8))
        across, down = (float(n) for n in rng.uniform(-0.5, 0.5, 2) * (room - size))
        place = {"x": (x + width / 2) / subjects.SIZE + across, "y": (y + height / 2) / subjects.SIZE + down}
        thing = replace(self.thing, size=size, tilt=tilt, **place)
        return scenes.render(replace(self.reference, things=(thing,), seed=int(rng.integers(2**31))), subjects.SIZE).image


@dataclass(frozen=True)
class Score:
    """What the judge says of one picture. `ground` and `other`: outside the box, the ground is the reference's, the text's. `found`,
    `shape`, `colour`: of the object in the box. `anywhere`: the object of the text is there, in the box or not. `same_shape` and
    `same_colour`: some object has those of the reference's. `off`: how far (CIEDE2000) the mean colour outside the box is from that
    of the reference's ground."""

    ground: bool
    other: bool
    found: bool
    shape: bool
    colour: bool
    anywhere: bool
    same_shape: bool
    same_colour: bool
    off: float

    @property
    def asked(self) -> bool:
        return self.shape and self.colour

    @property
    def pure(self) -> bool:
        return self.ground and self.asked

    @property
    def leak(self) -> bool:
        return self.same_shape or self.same_colour


Scores = list[list[Score]]
"""By case, then by seed."""


@torch.no_grad()
def grounds_of(eye: judge.Judge, pictures: Tensor, regions: Tensor) -> list[str]:
    """The judge's ground of a part of each picture [B, 128, 128, 3]: what it names grounds by is a mean over the picture, which is
    taken here over the part alone. `regions` [B, 128, 128] in 0..1, none empty.

    No pixel is painted over. Tried on 240 renders around a box of 44 to 50 % with another ground in it: that ground was never named, and
    a drawn one around it always rightly.
    """
    means = []
    for level in eye.levels(pictures.movedim(-1, 1))[: len(eye.down)]:
        weight = F.interpolate(regions[:, None].float(), size=level.shape[2:], mode="area")
        means.append((level * weight).sum((2, 3)) / weight.sum((2, 3)))
    return [judge.GROUND_NAMES[int(number)] for number in eye.ground(torch.cat(means, 1)).argmax(1)]


def cases(eye: judge.Judge, count: int, seed: int = 0) -> list[Case]:
    """Fewer are the first of more. No triple of shape, colour and ground was ever in training: not the reference's, nor the text's,
    nor that of what is wanted. No colour is lost on a ground, and the judge knows the ground of every reference."""
    return [_case(eye, number, np.random.default_rng([seed, number])) for number in range(count)]


def _case(eye: judge.Judge, number: int, rng: np.random.Generator) -> Case:
    photograph = number % PHOTO_EVERY == PHOTO_EVERY - 1
    ground = scenes.PHOTO if photograph else scenes.GROUNDS[number % len(scenes.GROUNDS)]
    source = photos.load(photos.HELD_OUT[number // PHOTO_EVERY % len(photos.HELD_OUT)]) if photograph else None
    while True:
        shapes, colours = ([str(name) for name in rng.permutation(list(names))[:2]] for names in (scenes.SHAPES, scenes.COLOURS))
        one, two = ((shapes[index], colours[index]) for index in (0, 1))
        if not (scenes.held_out(*one, ground) and scenes.held_out(*two, ground)):
            continue
        suiting = subjects.Subject(one[0], scenes.Paint(one[1], two[1], "halves")).grounds()
        others = [name for name in suiting if name != ground and scenes.held_out(*two, name)]
        photo = photos.crop(source, rng, subjects.SIZE) if source is not None else None
        if not others or (_lost(photo, (one[1], two[1])) if photo is not None else ground not in suiting):
            continue
        size = float(rng.uniform(0.36, 0.6))
        x, y = (float(n) for n in rng.uniform(size / 2, 1 - size / 2, 2))
        thing = scenes.Thing(one[0], scenes.Paint(one[1]), x, y, size, float(rng.uniform(-8, 8)))
        reference = scenes.Scene((thing,), ground, int(rng.integers(2**31)), photo)
        picture, mask = shown(reference)
        if grounds_of(eye, picture[None], 1 - mask[None]) != [ground]:
            continue
        width, height = (int(n) for n in rng.choice(SIDES, 2))
        left, top = (subjects.CELL * int(rng.integers((subjects.SIZE - side) // subjects.CELL + 1)) for side in (width, height))
        wanted = scenes.Thing(two[0], scenes.Paint(two[1]), 0.5, 0.5, 0.5)
        return Case(reference, wanted, str(rng.choice(others)), (left, top, width, height))


def _lost(photo: np.ndarray, colours: Sequence[str]) -> bool:
    mean = [float(value) for value in photo.mean((0, 1))]
    return any(subjects.distance(mean, scenes.COLOURS[name]) <= subjects.LOST for name in colours)


def shown(reference: scenes.Scene) -> tuple[Tensor, Tensor]:
    """The reference as a picture [128, 128, 3] in 0..1, and the mask of its object [128, 128]."""
    rendered = scenes.render(reference, subjects.SIZE)
    return image_of(rendered.image), torch.from_numpy(rendered.masks[0])


@dataclass
class Bench:
    """Paints and judges; each thing once."""

    size: Size
    work: Path = WORK
    checkpoint: Path = tiny_model.CHECKPOINT
    vision: Path = VISION
    adapter: Path = ADAPTER
    painter: Painter = field(init=False)
    eye: judge.Judge = field(init=False)
    pages: list[list[Case]] = field(init=False)

    def __post_init__(self) -> None:
        for file in (self.vision, self.adapter):
            if not file.is_file():
                raise SystemExit(f"there is no {file.name} in {file.parent.name}/: this table is measured with it")
        self.painter = Painter(self.checkpoint)
        self.eye = judge.load()
        from comfy.clip_vision import load

        self.work.mkdir(parents=True, exist_ok=True)
        self.kept = Kept(self.work, {"format": FORMAT})
        self.clip_vision: Any = load(str(self.vision))
        from maskprompt.models.ip_adapter import adapter

        self.loaded: Any = adapter.load(str(self.adapter))
        self.files = {name: sha(getattr(self, name).read_bytes()) for name in ("checkpoint", "vision", "adapter")}
        self.eyes = sha(judge.FILE.read_bytes())
        made = cases(self.eye, self.size.cases)
        self.pages = [made[start : start + PAGE] for start in range(0, len(made), PAGE)]

    def page(self, page: Sequence[Case], method: Method, seed: int) -> Path:
        """The file of one set of painted pictures, one below the other."""
        made = [shown(case.reference) for case in page]
        pictures = sha(b"".join(part.numpy().tobytes() for both in made for part in both))
        asked = [[case.text, case.box] for case in page]
        files = self.files if method.mode not in ("", RENDER) else {"checkpoint": self.files["checkpoint"]}
        how = [*list(asdict(method).values())[1:], seed, SAMPLER, STEPS, CFG]
        return self.kept.file("painted", pictures=pictures, asked=asked, files=files, how=how).with_suffix(".png")

    def painted(self, page: Sequence[Case], method: Method, seed: int) -> Tensor:
        """The pictures of a page [B, 128, 128, 3]."""
        file = self.page(page, method, seed)
        if not file.is_file():
            keep_pictures(file, self.paint(page, method, seed))
        return kept_pictures(file, subjects.SIZE)

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
            (model,) = ApplyMECA.execute(model, self.loaded, output, method.weight, method.mode, region, self.clip_vision).args
        # Another noise for each page, the same for all methods.
        noise = page[0].reference.seed + seed
        return self.painter.paint([case.text if method.text else "" for case in page], seed=noise, model=model)

    def encoded(self, page: Sequence[Case], method: Method) -> tuple[Any, Tensor]:
        """What CLIP Vision Encode or Patch Visibility gives for the references, and what the encoder saw of them [B, 128, 128, 3]."""
        images, masks = (torch.stack(parts) for parts in zip(*(shown(case.reference) for case in page), strict=True))
        if method.seen == WHOLE:
            return self.clip_vision.encode_image(images), images
        from maskprompt.models.clip_vision.patch_visibility import encode

        seen = encode(self.clip_vision, images, 1 - masks, method.threshold, method.seen)
        return seen.output, seen.preview

    def scores(self, page: Sequence[Case], method: Method, seed: int) -> list[Score]:
        pictures = self.painted(page, method, seed)
        file = self.kept.file("scores", of=self.page(page, method, seed).stem, judge=self.eyes).with_suffix(".json")
        if not file.is_file():
            text = json.dumps([asdict(one) for one in judged(self.eye, pictures, page)])
            keep(file, lambda part: part.write_text(text, encoding="utf-8"))
        return [Score(**one) for one in json.loads(file.read_text("utf-8"))]

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


def regions_of(page: Sequence[Case]) -> Tensor:
    """Where the image drives: all but the box, [B, 128, 128]."""
    return 1 - mask_of([case.box for case in page])


def judged(eye: judge.Judge, pictures: Tensor, page: Sequence[Case]) -> list[Score]:
    """The judge looks at whole pictures for objects, and for grounds at what lies outside the boxes."""
    regions = regions_of(page)
    return [
        _score(verdict, ground, picture, region, case)
        for verdict, ground, picture, region, case in zip(
            judge.look(eye, pictures), grounds_of(eye, pictures, regions), pictures, regions, page, strict=True
        )
    ]


def _score(verdict: judge.Verdict, ground: str, picture: Tensor, region: Tensor, case: Case) -> Score:
    shape = case.thing.shape
    colour = case.thing.paint.colour
    found = in_box(verdict, None, 1 - region)
    reference, mask = shown(case.reference)
    seen, wanted = (
        [float(value) * 255 for value in image[where > 0.5].mean(0)] for image, where in ((picture, region), (reference, 1 - mask))
    )
    return Score(
        ground == case.reference.ground, ground == case.ground,
        found is not None, found is not None and found.shape == shape, found is not None and found.colour == colour,
        any(one.shape == shape and one.colour == colour for one in verdict.objects),
        any(one.shape == case.unwanted.shape for one in verdict.objects),
        any(one.colour == case.unwanted.paint.colour for one in verdict.objects),
        subjects.distance(seen, wanted),
    )  # fmt: skip


@torch.no_grad()
def features(eye: judge.Judge, pictures: Tensor) -> np.ndarray:
    """What a picture is like, [B, C]: the means of the judge's deepest level, which grounds are named by, and of its last, which objects
    and colours are."""
    found = []
    for batch in pictures.split(32):
        levels = eye.levels(batch.movedim(-1, 1))
        found.append(torch.cat([levels[len(eye.down) - 1].mean((2, 3)), levels[-1].mean((2, 3))], 1))
    return torch.cat(found).double().numpy()


def fid(found: np.ndarray, wanted: np.ndarray) -> float:
    """Fréchet's distance between features [N, C] and [M, C] taken for normal distributions; the unit is about each feature's deviation in
    `wanted`.

    The covariances' mixed term is the nuclear norm of the product of their factors: exact for fewer pictures than features, where the
    square root of a singular matrix is not.
    """
    # One that hardly differs among renders would count for more than all others.
    unit = wanted.std(0) + 0.1 * wanted.std(0).mean()
    means = []
    factors = []
    for part in (found / unit, wanted / unit):
        means.append(part.mean(0))
        factors.append(np.linalg.qr((part - means[-1]) / math.sqrt(len(part) - 1), mode="r"))
    mixed = np.linalg.norm(factors[0] @ factors[1].T, "nuc")
    return float(((means[0] - means[1]) ** 2).sum() + sum((factor**2).sum() for factor in factors) - 2 * mixed)


def fid_figure(name: str, found: np.ndarray, wanted: np.ndarray) -> Figure:
    """The distance of [cases, seeds, C], its interval by leaving out one case at a time (a bootstrap's doubles would add to it)."""
    count = len(found)
    value = fid(found.reshape(-1, found.shape[-1]), wanted)
    left = [fid(np.delete(found, case, 0).reshape(-1, found.shape[-1]), wanted) for case in range(count)] if count > 2 else [value] * 2
    half = 1.96 * math.sqrt((count - 1) / count * float(((np.array(left) - np.mean(left)) ** 2).sum()))
    return Figure(name, value, value - half, value + half, found.shape[0] * found.shape[1])


def clustered_rate(name: str, right: Sequence[Sequence[bool]]) -> Figure:
    """The part of pictures that are right, by case and seed. Seeds of one case are no cases of their own: Wilson's interval is wider
    by the root of the design effect, which is what pictures of one case have in common."""
    figure = rate(name, [one for of_case in right for one in of_case])
    wider = math.sqrt(design_effect(right))
    low, high = (figure.value + wider * (end - figure.value) for end in (figure.low, figure.high))
    return replace(figure, low=max(0.0, low), high=min(1.0, high))


def design_effect(values: Sequence[Sequence[float]]) -> float:
    """How much more the mean of clusters of one size varies than that of as many single values: 1 if they have nothing in common, the
    clusters' size if they are of one mind."""
    found = np.asarray(values, np.float64)
    if len(found) < 2 or found.var() == 0:
        return 1.0
    return float(np.clip(found.shape[1] * found.mean(1).var(ddof=1) / found.var(ddof=1), 1.0, found.shape[1]))


PURE = "region purity"
GROUND = "ground outside the box is the reference's"
LEAK = "leak of the reference's object"
OTHER = "ground outside the box is the text's"
MEASURES = {
    PURE: "pure", GROUND: "ground", OTHER: "other",
    "the text's object in the box": "asked", "an object in the box": "found", "the text's object anywhere": "anywhere",
    LEAK: "leak", "leak of its shape": "same_shape", "leak of its colour": "same_colour",
}  # fmt: skip
"""What is measured, and `Score`'s name for it."""
UNWANTED = (OTHER, LEAK, "leak of its shape", "leak of its colour")
"""Of which less is better."""
BARRED = {
    (REGION, GLOBAL): (PURE, OTHER, LEAK), (REGION.hidden, GLOBAL.hidden): (PURE, OTHER, LEAK), (REGION.hidden, GLOBAL): (PURE, LEAK),
    (REGION.hidden, REGION): (LEAK,),
}  # fmt: skip
"""What has a bar, of which two methods."""
COMPARED = (*BARRED, (QUERY, GLOBAL), (QUERY.hidden, GLOBAL.hidden), (QUERY, REGION))
"""Methods that are held against each other, in everything that is measured."""


def each(measure: str, scores: Scores) -> list[list[bool]]:
    return [[bool(getattr(score, MEASURES[measure])) for score in of_case] for of_case in scores]


def figures_of(name: str, scores: Scores, photographs: Sequence[bool]) -> list[Figure]:
    """All but the FID. `photographs` says of which cases the reference is one."""
    figures = [clustered_rate(f"{name}: {what}", each(what, scores)) for what in MEASURES]
    figures.append(mean(f"{name}: colour of the ground off (CIEDE2000)", [_mean(score.off for score in row) for row in scores]))
    for kind, wanted in (("drawn grounds", False), ("photographs", True)):
        part = [of_case for of_case, photo in zip(scores, photographs, strict=True) if photo == wanted]
        if part:
            figures.append(clustered_rate(f"{name}: {GROUND}, {kind}", each(GROUND, part)))
    return figures


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def against(name: str, measure: str, one: Scores, two: Scores, more: bool) -> Figure:
    """The mean difference of two methods over the cases. The bar: `one` has more (or less) of it, and the two rates' intervals do not
    touch."""
    first, second = (each(measure, scores) for scores in (one, two))
    left, right = clustered_rate(name, first), clustered_rate(name, second)
    return apart(name, left, right, more, [_mean(a) - _mean(b) for a, b in zip(first, second, strict=True)])


def tables(bench: Bench) -> list[Figure]:
    """All figures, the comparisons first."""
    scores = {method: bench.gathered(method) for method in METHODS}
    photographs = [case.reference.photo is not None for page in bench.pages for case in page]
    wanted = bench.wanted()
    figures = []
    for one, two in COMPARED:
        for what in MEASURES:
            figure = against(f"{one.name}, against {two.name}: {what}", what, scores[one], scores[two], more=what not in UNWANTED)
            figures.append(figure if what in BARRED.get((one, two), ()) else replace(figure, bar="", met=None))
    for method, found in scores.items():
        figures += figures_of(method.name, found, photographs)
        figures.append(fid_figure(f"{method.name}: FID against renders", bench.features(method), wanted))
    return figures


def sheet(bench: Bench, count: int = 10) -> None:
    """For a human, of the first cases: the reference whole and, below, with its object hidden; each method's picture of the first seed,
    and what the judge finds wrong with it."""
    from demo.contact_sheet import contact_sheet, picture_of

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
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(SHEET)


def short(method: Method) -> str:
    """A method's name under a picture."""
    if method.mode == RENDER:
        return "render"
    return method.way.removesuffix(" only").replace("λ ", "") + (", eq. 1" if method.seen == PAPER else "")


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
        "painting": f"{SAMPLER}, {STEPS} steps, CFG {CFG}; whole pictures of {subjects.SIZE} px, λ 1 unless told",
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
