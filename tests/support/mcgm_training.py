"""Subjects, samples and dense losses of MCGM's training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.supported_models
import pytest
import torch
from maskprompt.models.mcgm import mask_encoder
from maskprompt.training.engine import checkpoint, loop
from maskprompt.training.engine import job as engine
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.text_learner import TextLearner
from maskprompt.training.engine.trainable_weights import Adapted
from maskprompt.training.mcgm.examples import Examples
from maskprompt.training.mcgm.job import ready
from maskprompt.training.mcgm.loss import Prior
from maskprompt.training.mcgm.options import Options
from maskprompt.training.mcgm.scene import Scene
from maskprompt.training.mcgm.subjects import Subjects
from torch import Tensor

from demo import tiny_model
from demo.painter import Painter

from .learners import unet_of
from .models import random_model
from .text_learners import stock

WORDS = ("cat", "dog", "ball")
"""Each is one token of the text encoder, so an untrained handle is that word to the bit."""
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
TIMES = torch.tensor([700, 40])


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """For its text encoder and VAE.

    ComfyUI leaves the text encoder's last projection, which SD 1.5 has no use for, as the memory was: NaN would be equal to nothing.
    """
    painter = Painter()
    painter.clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.zero_()
    return painter


@pytest.fixture(scope="module")
def small() -> Any:
    """Fewer blocks than SD 1.5 has, where it is not the blocks that matter."""
    return unet_of(32, small=True)


def options(*words: str, **given: Any) -> Options:
    chosen: dict[str, Any] = {
        "steps": 2, "weight_steps": 2, "rate": 1e-3, "rank": 2, "size": 64, "checkpointing": False, "attention_weight": 0.01,
        "mask_attention_weight": 0.3, "background_weight": 0.0,
    }  # fmt: skip
    return Options(words or WORDS[:2], **{**chosen, **given})


def examples(*shown: Sequence[tuple[int, ...]], side: tuple[int, int] = (8, 8), seed: int = 0) -> list[Examples]:
    """For each list of subjects shown together: random latents, and for each subject a rectangle with a place and size of its own."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    height, width = side
    for rows in shown:
        marks = torch.zeros(len(rows), len(rows[0]), 8 * height, 8 * width)
        for picture in marks:
            for mark in picture:
                top, left = (int(torch.randint(0, 4 * length, (1,), generator=generator)) for length in side)
                mark[top : top + 3 * height + 3, left : left + 2 * width + 5] = 1
        cells = torch.stack([mask_encoder.cells(picture) for picture in marks])
        latents = torch.randn(len(rows), 4, height, width, generator=generator)
        small_ = marks.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2))
        assert bool(((small_ > 0) & (small_ < 1)).any())
        found.append(Examples(latents, cells, small_, torch.tensor([list(row) for row in rows])))
    return found


ONE_AND_TWO = ([(0,), (1,), (0,)], [(0, 1), (1, 0), (0, 1)])
"""Subjects shown: in three pictures one of two, in three both."""


@contextmanager
def subjects_of(model: Any, clip: Any, given: Options) -> Iterator[Subjects]:
    """As Train Poseable Subjects makes them, loaded."""
    method = given.method
    assert method != "auto"
    text = TextLearner(clip, given.words, method, given.rank, given.seed)
    with Learner(model, method, given.rank, given.seed, given.checkpointing, text).loaded() as learner:
        yield Subjects(learner, given)


def train(
    subjects: Subjects, shown: Sequence[Examples], given: Options, prior: Prior | None = None,
    states: Sequence[checkpoint.StateFile] | None = None, on_step: Callable[[loop.Progress], None] | None = None,
) -> loop.Progress:  # fmt: skip
    """Both phases by their job, on these examples; the subjects' learner is loaded."""
    job = ready(subjects.learner, given, subjects=subjects, examples=shown, ordinary=prior)
    return engine.train(job, states or (), on_step)


def roughened(*parts: Adapted) -> None:
    """LoRAs whose upper halves are not zero, so that gradients reach the lower ones."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in parts:
            for value in part.parameters.values() if part.method == "lora" else ():
                value += 0.1 * torch.randn(value.shape, generator=generator)


class DenseMaps:
    """Cross-attention with whole softmax maps, for rows and heads one by one; their means over the heads are kept for each layer."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], **_: Any) -> Tensor:
        heads = extra_options["n_heads"]
        depth = q.shape[-1] // extra_options["n_heads"]
        results = []
        maps = []
        for row in range(len(q)):
            parts = [slice(head * depth, (head + 1) * depth) for head in range(heads)]
            weights = [torch.softmax(q[row, :, part] @ k[row, :, part].T / depth**0.5, -1) for part in parts]
            results.append(torch.cat([own @ v[row, :, part] for own, part in zip(weights, parts, strict=True)], 1))
            maps.append(torch.stack(weights).mean(0))
        height, width = extra_options["activations_shape"][2:]
        self.found[extra_options["block"]] = torch.stack(maps).unflatten(1, (height, width))
        return torch.stack(results)


def blocks() -> list[tuple[str, int]]:
    return [("middle", 0), *((part, number) for part in ("input", "output") for number in range(12))]


@dataclass(frozen=True)
class Dense:
    """A MODEL and CLIP as they were given, and the layers whose maps are compared with masks."""

    model: Any
    clip: Any
    layers: tuple[tuple[str, int], ...]

    def error(self, z: Tensor, text: Tensor, pooled: Tensor, noise: Tensor) -> tuple[Tensor, DenseMaps]:
        """Noise less the noise that the network predicts at `TIMES`, for scaled latents; and the maps it attended with."""
        base = self.model.model
        maps = DenseMaps()
        count = len(z)
        alphas = ALPHAS[TIMES[:count]].float()[:, None, None, None]
        sigmas = ((1 - alphas) / alphas).sqrt().flatten()
        more: dict[str, Any] = {}
        if base.diffusion_model.in_channels == 9:  # nothing of the picture is shown: all of it is to be painted
            blank = torch.tensor(tiny_model.BLANK)[None, :, None, None].expand_as(z)
            more["c_concat"] = torch.cat([torch.ones_like(z[:, :1]), blank], 1)
        if base.adm_channels:
            sizes = {"width": 8 * z.shape[3], "height": 8 * z.shape[2]}
            more["y"] = torch.cat([base.encode_adm(pooled_output=own[None], device="cpu", noise=z, **sizes) for own in pooled])
        comfy.model_management.load_models_gpu([self.model])
        noisy = alphas.sqrt() * z + (1 - alphas).sqrt() * noise
        denoised = base.apply_model(
            noisy / alphas.sqrt(), sigmas, c_crossattn=text,
            transformer_options={"patches_replace": {"attn2": dict.fromkeys(blocks(), maps)}}, **more,
        )  # fmt: skip
        return noise - (noisy / alphas.sqrt() - denoised) / sigmas[:, None, None, None], maps

    def equation_4(
        self, shown: Examples, chosen: list[int], places: list[list[int]], given: Options, noise: Tensor, encoder: Any
    ) -> Tensor:
        """For pictures whose subjects are named in these orders; the sentence names plain words in place of handles."""
        texts = []
        pooled = []
        count = len(places[0])
        for row, order in zip(chosen, places, strict=True):
            numbers = [int(shown.subjects[row, place]) for place in order]
            sentence = "a photo of " + " and ".join(given.words[number] for number in numbers)
            suffix = " on a plain background" if given.background_weight and given.background == "plain" else ""
            text, more = stock(self.clip, sentence + suffix)
            tokens = []
            for place, number in zip(order, numbers, strict=True):
                token = encoder.linear.weight @ shown.cells[row, place].flatten() + encoder.linear.bias if given.masks else None
                tokens += [token + encoder.subjects[number] if given.mode == "bound" else token] if token is not None else []
            texts.append(torch.cat([text[0].clone(), *(token[None] for token in tokens)]))
            pooled.append(more["pooled_output"][0].clone())
        z = shown.latents[chosen] * self.model.model.latent_format.scale_factor
        error, maps = self.error(z, torch.stack(texts), torch.stack(pooled), noise)
        whole = torch.stack([maps.found[layer] for layer in self.layers]).mean(0)
        reconstruction = attention = torch.zeros(())
        for number, (row, order) in enumerate(zip(chosen, places, strict=True)):
            union = (shown.masks[row, order].amax(0) >= 0.5).float()
            weight = union + given.background_weight * (1 - union)
            reconstruction = reconstruction + (error[number] ** 2 * weight).sum() / error.numel()
            for index, place in enumerate(order):
                height, width = whole.shape[1:3]
                mask = shown.masks[row, place].reshape(height, shown.masks.shape[2] // height, width, -1).mean((1, 3))
                for column, share in ((4 + 2 * index, 1.0), (77 + index, given.mask_attention_weight)):
                    if column < 77 or given.masks:
                        seen = whole[number, :, :, column]
                        attention = attention + share * ((seen / seen.max() - mask) ** 2).mean() / len(chosen)
        assert maps.found[self.layers[0]].shape[3] == 77 + count * given.masks
        return reconstruction + given.attention_weight * attention


@functools.cache
def plain_model() -> Any:
    return random_model(in_channels=4)


Weights = dict[str, Tensor]


def values(subjects: Subjects) -> Weights:
    """Everything that learns in one phase or the other."""
    return {name: value.detach().clone() for name, value in subjects.parameters(2).items()}


def changed(before: Weights, after: Weights) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def alike(one: Weights, other: Weights, tolerance: float = 0.0) -> bool:
    """To the bit, or to this part of each one's largest weight."""
    assert one.keys() == other.keys()
    return all(float((value - other[name]).abs().max()) <= tolerance * float(value.abs().max()) for name, value in one.items())


@dataclass
class Trained:
    """What a training left, and what it told on its way."""

    weights: Weights
    progress: loop.Progress
    told: list[loop.Progress]


class StopNow(BaseException):
    """As Ctrl-C."""


def trained(
    model: Any, clip: Any, given: Options, path: Path | None = None, stop: int = 0, shown: Sequence[Any] = ONE_AND_TWO, **more: Any
) -> Trained:
    """A training from its beginning or from its states, stopped after this many steps (0: not at all)."""
    told: list[loop.Progress] = []
    scene = Scene(torch.zeros(64, 64, 3), torch.zeros(len(given.words), 64, 64))
    states = None if path is None else checkpoint.files_of(path, [given.fingerprint(phase, scene) for phase in (1, 2)])

    def after(progress: loop.Progress) -> None:
        told.append(loop.Progress(progress.step, list(progress.losses)))
        if progress.step == stop:
            raise StopNow

    with subjects_of(model, clip, given) as subjects:
        done = loop.Progress()
        try:
            done = train(subjects, examples(*shown), given, states=states, on_step=after, **more)
        except StopNow:
            assert stop
        return Trained(values(subjects), done, told)


@pytest.fixture(scope="module")
def whole_training(small: Any, tiny: Painter) -> Callable[[Options], Trained]:
    """A training without a break, once for each set of options."""
    return functools.cache(lambda given: trained(small, tiny.clip, given))
