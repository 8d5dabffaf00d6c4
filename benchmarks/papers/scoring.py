"""Scores of what was painted for a paper's cases, by the pack's own scores, as each paper takes them; a run that was stopped goes on."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .data import Insertion, Prompted, Subject

Scores = dict[str, list[float]]
TOGETHER = 32


@dataclass(frozen=True)
class Models:
    """What scores are taken with; None leaves its scores out. `names` says which, so that kept scores are of the same."""

    clip: Any = None
    dino: Any = None
    lpips: Any = None
    inception: Any = None
    sam: Any = None
    names: str = ""


@dataclass(frozen=True)
class Kept:
    """Scores of single pictures in a file, under the picture's path, size and time and the models: a run that was stopped goes on.

    Each is a line of JSON, written behind the others when it is known; the file is read once.
    """

    file: Path
    names: str
    _held: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]], init=False, repr=False)

    def __post_init__(self) -> None:
        lines = self.file.read_text("utf-8").splitlines() if self.file.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError):  # a line that was cut off by a stop
                self._held.update(json.loads(line))

    def of(self, picture: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The scores that are kept of a picture, or what `measure` gives, which is kept then."""
        about = picture.stat()
        key = f"{picture.resolve()} {about.st_size} {about.st_mtime_ns} {self.names}"
        if key not in self._held:
            self._held[key] = measure()
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(f"\n{json.dumps({key: self._held[key]})}")
        return self._held[key]


def image_of(file: Path) -> Tensor:
    """A picture file as float32 [H, W, 3] in 0..1, upright, as trainings read it."""
    with Image.open(file) as opened:
        return torch.from_numpy(np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), np.float32) / 255)


def mask_of(file: Path) -> Tensor:
    """A mask file as float32 [H, W] in 0..1, upright."""
    with Image.open(file) as opened:
        return torch.from_numpy(np.asarray(ImageOps.exif_transpose(opened).convert("L"), np.float32) / 255)


def painted_of(folder: Path, name: str, case: str) -> list[Path]:
    """The pictures of a case: `folder/<subject>/<case>_<n>.png` or .jpg. ValueError in words if there is none."""
    named = re.compile(re.escape(case) + r"_\d+\.(png|jpe?g)", re.IGNORECASE)
    found = sorted(one for one in (folder / name).glob("*") if named.fullmatch(one.name))
    if not found:
        raise ValueError(f"nothing was painted for {name}, {case}: {folder / name / case}_0.png and further numbers are looked for.")
    return found


class Foregrounds:
    """The subjects' own foregrounds as vectors, worked out once for each subject and encoder."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Tensor] = {}

    def of(self, subject: Subject, encoder: Any) -> Tensor:
        """Unit vectors [N, D] of the subject's pictures, cut out where there is a mask."""
        from maskprompt.images import foreground

        key = (subject.name, id(encoder))
        if key not in self._known:
            pairs = zip(subject.pictures, subject.masks, strict=True)
            cut = [
                image_of(one) if mask is None else foreground.cut_out(image_of(one), mask_of(mask), foreground.KEEP) for one, mask in pairs
            ]
            self._known[key] = encoder.pictures(cut)
        return self._known[key]


def insertions(cases: Sequence[Insertion], folder: Path, models: Models, kept: Kept, tell: Callable[[int, int], None]) -> Scores:
    """DreamCom's scores (section 6.2), a value for each case: foreground against all references, background against what was there."""
    known = Foregrounds()

    def measure(case: Insertion, file: Path) -> dict[str, float]:
        from maskprompt.images import foreground
        from maskprompt.models.scores import pairs

        picture, before = image_of(file), image_of(case.place.picture)
        if picture.shape != before.shape:
            size = " x ".join(str(one) for one in before.shape[1::-1])
            raise ValueError(f"{file} is not of its background's size, {size}: scores of the background compare pixels one to one.")
        inside = torch.zeros(before.shape[:2])
        left, top, right, bottom = case.place.box
        inside[top:bottom, left:right] = 1
        cut = foreground.cut_out(picture, inside, foreground.KEEP)
        found = {"SSIM": pairs.ssim(picture, before, 1 - inside)}
        if models.lpips is not None:
            found["LPIPS"] = models.lpips.distance(picture, before, 1 - inside)
        for score, encoder in (("CLIP-I", models.clip), ("DINO", models.dino)):
            if encoder is not None:
                found[score] = float((encoder.pictures([cut]) @ known.of(case.subject, encoder).T).mean())
        return found

    return by_case(
        ((painted_of(folder, case.subject.name, case.place.picture.stem), lambda file, case=case: measure(case, file)) for case in cases),
        len(cases), kept, tell,
    )  # fmt: skip


def prompted(cases: Sequence[Prompted], folder: Path, models: Models, kept: Kept, tell: Callable[[int, int], None]) -> Scores:
    """Mask-ControlNet's scores (Table 1), a value for each case: whole pictures against the prompt and against all references."""
    known = Foregrounds()
    numbers: dict[str, int] = {}

    def measure(case: Prompted, file: Path) -> dict[str, float]:
        picture, found = image_of(file), dict[str, float]()
        if models.clip is not None and models.clip.reads_text:
            found["CLIP-T"] = float((models.clip.pictures([picture]) @ models.clip.texts([case.text()]).T).item())
        for score, encoder in (("CLIP-I", models.clip), ("DINO", models.dino)):
            if encoder is not None:
                found[score] = float((encoder.pictures([picture]) @ known.of(case.subject, encoder).T).mean())
        return found

    def each() -> Iterator[tuple[list[Path], Callable[[Path], dict[str, float]]]]:
        for case in cases:
            number = numbers[case.subject.name] = numbers.get(case.subject.name, -1) + 1
            yield painted_of(folder, case.subject.name, f"prompt{number}"), lambda file, case=case: measure(case, file)

    return by_case(each(), len(cases), kept, tell)


def reconstructed(subjects: Sequence[Subject], folder: Path, models: Models, kept: Kept) -> Scores:
    """Mask-ControlNet's scores of pictures painted again from their own hints (Table 2), a value for each; FID of all together."""
    from maskprompt.images import crops
    from maskprompt.models.scores import pairs
    from maskprompt.training.data import folder as pictures

    def original(picture: Path, painted: Tensor) -> Tensor:
        return crops.scale(pictures.colours(pictures.open_picture(picture))[None], *painted.shape[:2])[0]

    def measure(picture: Path, file: Path) -> dict[str, float]:
        painted = image_of(file)
        wanted = original(picture, painted)
        found = {"PSNR": pairs.psnr(painted, wanted), "SSIM": pairs.ssim(painted, wanted)}
        if models.lpips is not None:
            found["LPIPS"] = models.lpips.distance(painted, wanted)
        return found

    both = [
        (picture, painted_of(folder, one.name, f"reference{number}")[0]) for one in subjects for number, picture in enumerate(one.pictures)
    ]
    found: Scores = {}
    for picture, file in both:
        for score, value in kept.of(file, lambda file=file, picture=picture: measure(picture, file)).items():
            found.setdefault(score, []).append(value)
    if models.inception is not None and len(both) > 1:  # a single picture is no set
        found["FID"] = [_distance(models.inception, [file for _, file in both], [picture for picture, _ in both])]
    return found


def sets(rows: Mapping[str, Sequence[Path]], real: Sequence[Path], models: Models) -> dict[str, Scores]:
    """FID of each row's picture files to the real ones, and their IS: one value each."""
    from maskprompt.models.scores import sets as of_sets

    if models.inception is None:
        raise ValueError("FID needs --inception, the file of the Inception network.")
    theirs = _seen(models.inception, real)
    found = {}
    for row, pictures in rows.items():
        ours = _seen(models.inception, pictures)
        score = of_sets.inception_score(ours.logits, min(10, len(pictures)))[0]
        found[row] = {"FID": [of_sets.frechet_distance(ours.features, theirs.features)], "IS": [score]}
    return found


def _distance(inception: Any, ours: Sequence[Path], theirs: Sequence[Path]) -> float:
    from maskprompt.models.scores.sets import frechet_distance

    return frechet_distance(_seen(inception, ours).features, _seen(inception, theirs).features)


def _seen(inception: Any, files: Sequence[Path]) -> Any:
    """What Inception sees in picture files, of which few are in memory at a time."""
    from maskprompt.models.scores.sets import Seen

    parts = [inception.see([image_of(file) for file in files[first : first + TOGETHER]]) for first in range(0, len(files), TOGETHER)]
    return Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))


def by_case(
    cases: Iterator[tuple[list[Path], Callable[[Path], dict[str, float]]]], count: int, kept: Kept, tell: Callable[[int, int], None]
) -> Scores:
    """Each case's mean over its pictures, so that a case counts once however many were painted."""
    found: Scores = {}
    for number, (files, measure) in enumerate(cases, 1):
        of_pictures = [kept.of(file, lambda file=file, measure=measure: measure(file)) for file in files]
        for score in of_pictures[0]:
            found.setdefault(score, []).append(sum(one[score] for one in of_pictures) / len(of_pictures))
        tell(number, count)
    return found
