"""The judge of tiny-edit's world: which things a picture shows and where, how alike what it shows is to a subject, and which ground it is.

Nothing of it is learned from tiny-edit's pictures, and for things nothing is learned at all: a cut-out is compared with every place of the
picture (normalised correlation inside its outline, over sizes, tilts and flips), so it knows things that no training saw. Grounds are told
apart by a linear classifier on colours and edges, fitted to fresh renders. `accuracy` says how often it is right on other fresh renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes, things, world

SIDE = 64
"""Pixels of a side at which pictures are judged."""
SIZES: tuple[float, ...] = tuple(0.2 * 1.2**step for step in range(7))
TILTS: tuple[float, ...] = (-5.0, 5.0)
CLOSER = 6
"""How many of the likeliest things are looked at once more."""


@dataclass(frozen=True)
class Found:
    """A thing in a picture: its box (x, y, width, height) in parts of the picture, how like its cut-out it is there, at most 1, and its
    size, tilt and flip.

    `evidence` is what things are ranked by: a small cut-out finds something like itself in many a picture by chance, a large one does not.
    """

    code: str
    likeness: float
    evidence: float
    pose: tuple[float, float, bool]
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> float:
        """The middle of the box across the picture, 0 to 1."""
        return self.box[0] + self.box[2] / 2


class Templates:
    """The spectra of a thing's cut-outs [N, ...] at these sizes, tilts and flips."""

    def __init__(
        self,
        place: world.World,
        code: str,
        sizes: Sequence[float] = SIZES,
        tilts: Sequence[float] = TILTS,
        flips: Sequence[bool] = (False, True),
    ) -> None:
        masks: list[np.ndarray] = []
        colours: list[np.ndarray] = []
        self.boxes: list[tuple[int, int]] = []
        self.poses = [(size, tilt, flip) for size in sizes for tilt in tilts for flip in flips]
        for size, tilt, flip in self.poses:
            piece = scenes.cut_out(place, scenes.Placed(code, 0.5, 0.5, size, tilt, flip), SIDE * 2)
            half = piece.resize((max(2, piece.width // 2), max(2, piece.height // 2)))
            pixels = np.asarray(half, np.float32)[:SIDE, :SIDE] / 255
            height, width = pixels.shape[:2]
            canvas = np.zeros((4, SIDE, SIDE), np.float32)
            canvas[:, :height, :width] = pixels.transpose(2, 0, 1)
            masks.append(canvas[3])
            colours.append(canvas[:3])
            self.boxes.append((width, height))
        self.mask = torch.from_numpy(np.stack(masks))[:, None]
        colour = torch.from_numpy(np.stack(colours))
        self.count = self.mask.sum((1, 2, 3))
        weight = self.mask / self.count[:, None, None, None]
        own_means = (colour * weight).sum((2, 3), keepdim=True)
        self.structure = self.mask * (colour - own_means)
        self.joint = self.mask * (colour - own_means.mean(1, keepdim=True))
        self.structure_power = (self.mask * (colour - own_means) ** 2).sum((1, 2, 3))
        self.joint_power = (self.mask * (colour - own_means.mean(1, keepdim=True)) ** 2).sum((1, 2, 3))
        self.spectra = [torch.fft.rfft2(part).conj() for part in (self.mask, self.structure, self.joint)]


class Judge:
    """Compares pictures with the cut-outs of `codes`."""

    def __init__(self, place: world.World, codes: Sequence[str] = (*things.NAMED, *things.HELD_OUT)) -> None:
        self.place = place
        self.templates = {code: Templates(place, code) for code in codes}

    def look(self, picture: Tensor, codes: Sequence[str] = ()) -> list[Found]:
        """All things (of `codes`, or all) in a picture [3, H, W] in 0..1, the likeliest first, each at its best place.

        The first few are looked at once more, in sizes and tilts around those that were found.
        """
        small = F.interpolate(picture[None].float(), (SIDE, SIDE), mode="area")[0]
        plain = torch.fft.rfft2(small)
        squared = torch.fft.rfft2(small**2)
        found = [self._best(plain, squared, code, self.templates[code]) for code in codes or self.templates]
        found.sort(key=lambda one: -one.evidence)
        for number, one in enumerate(found[:CLOSER]):
            size, tilt, flip = one.pose
            tilts = [tilt + step for step in (-7, -3.5, 0, 3.5, 7)]
            closer = Templates(self.place, one.code, [size * part for part in (0.93, 1, 1.07)], tilts, [flip])
            found[number] = self._best(plain, squared, one.code, closer)
        return sorted(found, key=lambda one: -one.evidence)

    def likeness(self, picture: Tensor, code: str) -> Found:
        """The best place of a thing in a picture [3, H, W] in 0..1."""
        return self.look(picture, [code])[0]

    def things(self, picture: Tensor, count: int, codes: Sequence[str] = ()) -> list[Found]:
        """The `count` likeliest things whose places do not overlap by more than half."""
        chosen: list[Found] = []
        for one in self.look(picture, codes):
            if all(overlap(one.box, other.box) < 0.5 for other in chosen):
                chosen.append(one)
            if len(chosen) == count:
                break
        return chosen

    @staticmethod
    def _best(plain: Tensor, squared: Tensor, code: str, held: Templates) -> Found:
        """The mean of two correlations, with and without the mean colour, less where the picture has too little structure."""
        mask, structure, joint = held.spectra

        def correlate(spectrum: Tensor) -> Tensor:
            return torch.fft.irfft2(spectrum, (SIDE, SIDE))

        count = held.count[:, None, None]
        sums = correlate(mask * plain)
        power = correlate(mask[:, 0] * squared.sum(0))
        structure_power = (power - (sums**2).sum(1) / count).clamp_min(1e-4)
        joint_power = (power - sums.sum(1) ** 2 / (3 * count)).clamp_min(1e-4)
        structured = correlate((structure * plain).sum(1)) / (structure_power * held.structure_power[:, None, None]).sqrt()
        together = correlate((joint * plain).sum(1)) / (joint_power * held.joint_power[:, None, None]).sqrt()
        contrast = (structure_power / held.structure_power[:, None, None]).sqrt()
        likeness = ((structured + together) / 2 * (2 * contrast).clamp_max(1)).clamp(0, 0.999)
        evidence = -count.sqrt() * torch.log1p(-(likeness**2))
        for number, (width, height) in enumerate(held.boxes):
            evidence[number, SIDE - height + 1 :] = -1
            evidence[number, :, SIDE - width + 1 :] = -1
        best = int(evidence.argmax())
        number, place = divmod(best, SIDE * SIDE)
        y, x = divmod(place, SIDE)
        width, height = held.boxes[number]
        box = (x / SIDE, y / SIDE, width / SIDE, height / SIDE)
        return Found(code, float(likeness.flatten()[best]), float(evidence.flatten()[best]), held.poses[number], box)


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
