"""The judge of tiny-edit's world: which things a picture shows and where, how alike what it shows is to a subject, and which ground it is.

Nothing of it is learned from tiny-edit's pictures. Things are found by a small network (`eye`), which learned on renders that were bent,
blurred and off colour, and are told apart by its embedding: a thing is whichever has renders like it, so it knows things that no training
saw, its own included. Grounds are told apart by a linear classifier on colours and edges, fitted to fresh renders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes, things, warps, world
from .eye import at, middle_of, read, scaled

FILE = Path(__file__).resolve().parent.parent / "tiny-edit-judge.safetensors"
SIDE = 64
"""Pixels of a side at which grounds are judged."""
EXAMPLES = 24
"""How many renders of a thing its place in the embedding is the mean of."""
SHARPNESS = 16.0
"""What cosines in the embedding are multiplied with before they are made probabilities."""


@dataclass(frozen=True)
class Found:
    """A thing in a picture: how like it is to its renders there, at most 1, what things are ranked by, and its box (x, y, width, height)
    in parts of the picture.
    """

    code: str
    likeness: float
    evidence: float
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> float:
        """The middle of the box across the picture, 0 to 1."""
        return self.box[0] + self.box[2] / 2


FoundT = TypeVar("FoundT", bound=Found)


class Looking(ABC, Generic[FoundT]):
    """Whatever finds things in pictures [3, H, W] in 0..1."""

    @abstractmethod
    def look(self, picture: Tensor, codes: Sequence[str] = ()) -> list[FoundT]:
        """All things (of `codes`, or all that it knows), the likeliest first, each at its best place."""

    def likeness(self, picture: Tensor, code: str) -> FoundT:
        """The best place of a thing."""
        return self.look(picture, [code])[0]

    def things(self, picture: Tensor, count: int, codes: Sequence[str] = ()) -> list[FoundT]:
        """The `count` likeliest things whose places do not overlap by more than half."""
        chosen: list[FoundT] = []
        for one in self.look(picture, codes):
            if all(overlap(one.box, other.box) < 0.5 for other in chosen):
                chosen.append(one)
            if len(chosen) == count:
                break
        return chosen


class Judge(Looking[Found]):
    """Knows the things of `codes`."""

    def __init__(self, place: world.World, codes: Sequence[str] = (*things.NAMED, *things.HELD_OUT), file: Path = FILE) -> None:
        self.codes = tuple(codes)
        self.eye = read(file).eval().requires_grad_(False)
        self.known = torch.stack([self._known(place, code) for code in codes])

    def _known(self, place: world.World, code: str) -> Tensor:
        """The mean embedding of renders of a thing alone, bent by half as much as those of the training at most, [64] of unit length."""
        rng = np.random.default_rng([7, int(code, 16)])
        generator = torch.Generator().manual_seed(int(code, 16))
        pictures: list[Tensor] = []
        owners: list[Tensor] = []
        for _ in range(EXAMPLES):
            ground = scenes.random_ground(rng, place.grounds())
            layout = scenes.random_layout(rng, [code], scenes.horizon_of(place, ground))
            rendered = scenes.render(place, scenes.Scene(layout, ground), 2 * SIDE)
            pictures.append(torch.from_numpy(rendered.image).permute(2, 0, 1).float() / 255)
            owners.append(torch.from_numpy(rendered.masks[0] > 0.5).to(torch.uint8))
        strength = torch.rand(EXAMPLES, generator=generator) / 2
        bent, whose = warps.bent(torch.stack(pictures), torch.stack(owners), strength, generator)
        boxes, _ = warps.boxes_of(whose, 1)
        embedded = at(self.eye(scaled(bent)).embedded, *middle_of(boxes[:, 0]))
        return F.normalize(embedded.mean(0), dim=0)

    @torch.no_grad()
    def look(self, picture: Tensor, codes: Sequence[str] = ()) -> list[Found]:
        """All things (of `codes`, or all) in a picture [3, H, W] in 0..1, the likeliest first, each at its best place."""
        seen = self.eye(scaled(picture[None]))
        alike = torch.einsum("nc,chw->nhw", self.known, seen.embedded[0])
        evidence = F.logsigmoid(seen.there) + torch.log_softmax(SHARPNESS * alike, 0)
        wanted = set(codes or self.codes)
        found: list[Found] = []
        for number, code in enumerate(self.codes):
            if code in wanted:
                row, column = divmod(int(evidence[number].argmax()), evidence.shape[-1])
                x, y, width, height = (float(part) for part in seen.boxes[0, :, row, column])
                found.append(Found(code, float(alike[number, row, column]), float(evidence[number, row, column]), (x, y, width, height)))
        return sorted(found, key=lambda one: -one.evidence)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The part of the smaller box that the other covers."""
    return max(inside(one, other), inside(other, one))


def inside(one: Sequence[float], other: Sequence[float]) -> float:
    """The part of the first box (x, y, width, height) that lies in the other."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height) / (one[2] * one[3])


def random_picture(rng: np.random.Generator, place: world.World, codes: Sequence[str], size: int = 128) -> tuple[scenes.Scene, Tensor]:
    """A fresh render of the things on a ground of training, and its picture [3, size, size] in 0..1."""
    ground = scenes.random_ground(rng, place.grounds())
    scene = scenes.Scene(scenes.random_layout(rng, list(codes), scenes.horizon_of(place, ground)), ground)
    return scene, torch.from_numpy(scenes.render(place, scene, size).image).permute(2, 0, 1).float() / 255


def features(picture: Tensor) -> np.ndarray:
    """Colours and edges of a picture [3, H, W] in 0..1: histograms of lightness and of hue and saturation in Lab, edges at two scales."""
    from skimage.color import rgb2lab

    small = F.interpolate(picture[None].float(), (SIDE, SIDE), mode="area")[0].permute(1, 2, 0).numpy()
    lab = rgb2lab(small)
    found = [np.histogram(lab[..., 0], 10, (0, 100), density=False)[0] / SIDE**2]
    found.append(np.histogram2d(lab[..., 1].ravel(), lab[..., 2].ravel(), 9, ((-60, 60), (-60, 60)))[0].ravel() / SIDE**2)
    found.append(lab.reshape(4, SIDE // 4, 2, SIDE // 2, 3).mean((1, 3)).ravel() / 50)
    for step in (1, 4):
        found.append(
            np.array([np.abs(np.roll(lab, step, axis)[step:, step:] - lab[step:, step:]).mean((0, 1)) for axis in (0, 1)]).ravel() / 10
        )
    return np.concatenate(found)


class GroundJudge:
    """Names the ground of a picture, from a linear classifier on `features` of `each` fresh renders of every ground of training."""

    def __init__(self, place: world.World, each: int = 20, seed: int = 0) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rng = np.random.default_rng(seed)
        names = [name for name in place.grounds() for _ in range(each)]
        rows = [features(picture_on(rng, place, name)) for name in names]
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, C=0.3)).fit(np.stack(rows), names)

    def name(self, picture: Tensor) -> str:
        """The ground's name."""
        return str(self.model.predict(features(picture)[None])[0])


def picture_on(rng: np.random.Generator, place: world.World, ground: str) -> Tensor:
    """A fresh render of one or two named things on a ground, [3, 64, 64] in 0..1."""
    base = scenes.random_ground(rng, [ground])
    codes = [things.NAMED[index] for index in rng.choice(len(things.NAMED), int(rng.integers(1, 3)), replace=False)]
    layout = scenes.random_layout(rng, codes, scenes.horizon_of(place, base))
    return torch.from_numpy(scenes.render(place, scenes.Scene(layout, base), SIDE).image).permute(2, 0, 1).float() / 255
