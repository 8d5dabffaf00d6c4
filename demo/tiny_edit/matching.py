"""A second judge, by which the first is checked: it compares the cut-outs themselves with every place of a picture.

Normalised correlation inside a cut-out's outline, over sizes, tilts and flips. Nothing of it is learned. It is seldom wrong on renders,
whose outlines are a cut-out's own; what is bent it takes for something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes, things, world
from .judge import Found, Looking

SIDE = 64
"""Pixels of a side at which pictures are compared."""
SIZES: tuple[float, ...] = tuple(0.2 * 1.2**step for step in range(7))
TILTS: tuple[float, ...] = (-5.0, 5.0)
CLOSER = 6
"""How many of the likeliest things are looked at once more."""


@dataclass(frozen=True)
class Matched(Found):
    """A thing and the size, tilt and flip in which it was found.

    `evidence` is what things are ranked by: a small cut-out finds something like itself in many a picture by chance, a large one does not.
    """

    pose: tuple[float, float, bool]


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


class Matcher(Looking[Matched]):
    """Compares pictures with the cut-outs of `codes`."""

    def __init__(self, place: world.World, codes: Sequence[str] = (*things.NAMED, *things.HELD_OUT)) -> None:
        self.place = place
        self.templates = {code: Templates(place, code) for code in codes}

    def look(self, picture: Tensor, codes: Sequence[str] = ()) -> list[Matched]:
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

    @staticmethod
    def _best(plain: Tensor, squared: Tensor, code: str, held: Templates) -> Matched:
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
        return Matched(code, float(likeness.flatten()[best]), float(evidence.flatten()[best]), box, held.poses[number])
