"""What MECA learns from: crops of pictures with captions, random regions, and their encoding, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...conditioning.texts import Texts
from ...images import masks
from ...models.clip_vision import patch_grid, patch_input, patch_visibility
from ..data.captions import Picture, Pictures
from ..data.pictures import finite
from .options import Options
from .random_masks import random_mask

AT_ONCE = 8
"""So many pictures go through the VAE and the vision model together."""
ENOUGH = 0.01
"""A picture's own mask must leave so much of the crop on either side, or a random region takes its place."""


@dataclass(frozen=True)
class Sample:
    """`image` float32 [S, S, 3] in 0..1; what the text says; `region` bool [S, S], or None for the whole picture; `blank`: no image."""

    image: Tensor
    text: str
    region: Tensor | None = None
    blank: bool = False


@dataclass(frozen=True)
class Examples:
    """Encoded samples, one entry for each in every field.

    `latents` [N, 4, h, w] as the VAE gives them. `features`: what the adapter's projection takes, the visible tokens of the last layer
    but one of the vision model, [M, features] each (`patch_visibility.own_tokens`). Zeros [1, features] are no image: just what
    `LoadedAdapter` gives the unconditional half of guidance, so that samples of text alone teach the adapter what no image is.
    `regions` [N, S, S], 0 or 1: where the image drives. `masked` bool [N]: whether the sample has a region; without one text and image
    both act everywhere (equation 4, lambda = 1), and `regions` is not looked at. `texts`: each sample's CONDITIONING.
    """

    latents: Tensor
    features: Sequence[Tensor]
    regions: Tensor
    masked: Tensor
    texts: Sequence[Any]

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, rows: slice) -> Examples:
        """Some of the samples."""
        return Examples(self.latents[rows], self.features[rows], self.regions[rows], self.masked[rows], self.texts[rows])


def encode(
    samples: Iterable[Sample],
    texts: Texts,
    vae: Any,
    clip_vision: Any,
    threshold: float = 0.5,
    visibility: str = patch_visibility.HIDE,
    on_group: Callable[[int], None] | None = None,
) -> Examples:
    """The samples through the VAE and the vision model, which of a sample with a region sees only the patches inside it.

    `texts` must know their texts. `visibility`: as in `Options`. `on_group` is told how many are done; what it raises interrupts.
    ValueError where the VAE gives no numbers.
    """
    latents: list[Tensor] = []
    features: list[Tensor] = []
    regions: list[Tensor] = []
    masked: list[bool] = []
    captions: list[str] = []
    # Not in inference mode, in which ComfyUI runs nodes: what is made there cannot take part in a gradient.
    with torch.inference_mode(False), torch.no_grad():
        for group in _groups(samples):
            latents.append(finite(vae.encode(torch.stack([one.image for one in group])).float().cpu()))
            whole = torch.ones(group[0].image.shape[:2], dtype=torch.bool)
            inside = [whole if one.region is None else one.region for one in group]
            features += _features(group, inside, clip_vision, threshold, visibility)
            regions += inside
            masked += [one.region is not None for one in group]
            captions += [one.text for one in group]
            if on_group is not None:
                on_group(len(captions))
    return Examples(
        torch.cat(latents), features, torch.stack(regions), torch.tensor(masked, dtype=torch.bool), [texts[text] for text in captions]
    )


class Source:
    """The samples of each chunk, the same ones whenever they are asked for: of pictures in an order that is shuffled anew each time
    round, cropped to squares, some of them with a region, without their image or without their text (see `Options`).

    A region is random; of a picture with a mask of its own it is this mask or all but it. `process` is one of several that learn
    together, each from samples of its own. `on_sample` is told how many of a chunk are encoded, and of how many.
    """

    def __init__(
        self,
        pictures: Pictures,
        clip: Any,
        vae: Any,
        clip_vision: Any,
        options: Options,
        process: int = 0,
        on_sample: Callable[[int, int], None] | None = None,
    ) -> None:
        self.pictures = pictures
        self.vae = vae
        self.clip_vision = clip_vision
        self.options = options
        self.process = process
        self.texts = Texts(clip)
        self.on_sample = on_sample
        self._round: tuple[int, Sequence[int]] = 0, self._shuffled(0)

    def __call__(self, chunk: int) -> Examples:
        count = self.options.samples(chunk)
        on_sample = self.on_sample
        first = chunk * self.options.steps_per_chunk * self.options.batch
        plans = [self._plan(number) for number in range(first, first + count)]
        return self._encoded(plans, None if on_sample is None else lambda done: on_sample(done, count))

    def shown(self) -> Examples:
        """One sample for previews: the first picture with its text, its image, and its mask or a random region."""
        return self._encoded([Plan(0, self.pictures.captions[0], True, False, np.random.default_rng(self.options.seed))], None)

    def _encoded(self, plans: Sequence[Plan], on_group: Callable[[int], None] | None) -> Examples:
        self.texts.know(plan.text for plan in plans)
        samples = (plan.sample(self.pictures[plan.picture], self.options) for plan in plans)
        return encode(samples, self.texts, self.vae, self.clip_vision, self.options.threshold, self.options.visibility, on_group)

    def _plan(self, number: int) -> Plan:
        """Of sample `number`. Its random numbers are its own, so that they do not depend on where a training begins or ends."""
        options = self.options
        rng = np.random.default_rng([self.options.seed, self.process, number])
        time, place = divmod(number, len(self.pictures))
        if self._round[0] != time:
            self._round = time, self._shuffled(time)
        picture = int(self._round[1][place])
        text_only, region, blank, textless = rng.random(4) < (options.text_only, options.masked, options.blank, options.text_dropout)
        caption = self.pictures.captions[picture]
        if text_only:
            return Plan(picture, caption, False, True, rng)
        return Plan(picture, "" if textless else caption, bool(region), bool(region and blank), rng)

    def _shuffled(self, time: int) -> Any:
        return np.random.default_rng([self.options.seed, self.process, time, 1]).permutation(len(self.pictures))


@dataclass(frozen=True)
class Plan:
    """What a sample will be: of which picture, with which text, whether with a region and without its image; `rng` draws the rest."""

    picture: int
    text: str
    region: bool
    blank: bool
    rng: np.random.Generator

    def sample(self, picture: Picture, options: Options) -> Sample:
        """Of the picture, which is `picture`. To be asked for once."""
        corner = self.rng.random(2) if options.random_crop else (0.5, 0.5)
        image, mask = square(picture, options.size, *corner)
        if options.flip and self.rng.random() < 0.5:
            image = image.flip(1)
            mask = None if mask is None else mask.flip(1)
        region = self._region(mask, options.size) if self.region else None
        return Sample(image.contiguous(), self.text, region, self.blank)

    def _region(self, mask: Tensor | None, size: int) -> Tensor:
        drawn = random_mask(size, self.rng)
        inverted = self.rng.random() < 0.5
        if mask is None or not ENOUGH <= float(mask.float().mean()) <= 1 - ENOUGH:
            return drawn
        return ~mask if inverted else mask


def square(picture: Picture, size: int, down: float = 0.5, right: float = 0.5) -> tuple[Tensor, Tensor | None]:
    """The picture [S, S, 3] and its mask [S, S], bool: the short side scaled to `size`, the long side's middle, or where 0..1 says."""
    height, width = picture.image.shape[:2]
    short = min(height, width)
    rows = max(size, round(height * size / short))
    columns = max(size, round(width * size / short))
    top = round((rows - size) * down)
    left = round((columns - size) * right)
    window = slice(top, top + size), slice(left, left + size)
    image = F.interpolate(picture.image.movedim(-1, 0)[None], size=(rows, columns), mode="bilinear", antialias=True)[0].clamp(0, 1)
    mask = None if picture.mask is None else masks.resize(picture.mask[None], rows, columns)[0][window] > 0.5
    return image.movedim(0, -1)[window].contiguous(), mask


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while group := list(islice(remaining, AT_ONCE)):
        yield group


def _features(group: Sequence[Sample], inside: Sequence[Tensor], clip_vision: Any, threshold: float, visibility: str) -> list[Tensor]:
    """Each sample's visible tokens [M, features] on the CPU, or zeros for none: of a blank one, and where no patch is visible."""
    encoder = patch_input.describe(clip_vision)
    size = group[0].image.shape[0]
    placed = patch_grid.place(size, size, encoder.size, "crop")
    shows_patches = patch_grid.visible(torch.stack(list(inside)), placed, encoder.size, encoder.patch, threshold).flatten(1).any(1)
    rows = [row for row, one in enumerate(group) if not one.blank and bool(shows_patches[row])]
    found = [torch.zeros(1, width_of(clip_vision))] * len(group)
    if rows:
        images = torch.stack([group[row].image for row in rows])
        visible = torch.stack([inside[row] for row in rows]).float()
        output = patch_visibility.encode(clip_vision, images, visible, threshold, visibility).output
        for row, tokens in zip(rows, patch_visibility.own_tokens(output), strict=True):
            found[row] = tokens.cpu()
    return found


def width_of(clip_vision: Any) -> int:
    """How many numbers each token of a vision model has. ValueError in words if it is not of a kind whose patches can be hidden."""
    patch_input.describe(clip_vision)
    return int(clip_vision.model.vision_model.embeddings.position_embedding.weight.shape[1])
