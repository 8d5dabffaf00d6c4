"""MCGM's training against its equations written out densely; what learns when, and what stays as it was; interrupts; previews."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
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
from maskprompt.training.engine.trainable_weights import Adapted, Method
from maskprompt.training.mcgm import prior
from maskprompt.training.mcgm.examples import Examples
from maskprompt.training.mcgm.job import preview, ready
from maskprompt.training.mcgm.loss import Loss, Prior
from maskprompt.training.mcgm.options import Options
from maskprompt.training.mcgm.scene import Scene
from maskprompt.training.mcgm.subjects import Subjects
from torch import Tensor, nn

from demo import tiny_model
from demo.painter import Painter

from ..attention.test_layers import SDXL
from ..conftest import Sample, random_model
from .test_learner import METHODS, fingerprint, of_random_weights, unchanged, unet_of, with_another_lora
from .test_text_learner import clip_of, stock, with_a_lora

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
    """As Train MCGM makes them, loaded."""
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


def with_vectors(encoder: mask_encoder.MaskEncoder) -> None:
    """Subjects' vectors as after a training; they begin at zero."""
    if encoder.subjects is not None:
        encoder.subjects.data = torch.randn(encoder.subjects.shape, generator=torch.Generator().manual_seed(6))


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


FINE = (("input", 1), ("input", 2), ("output", 9), ("output", 10), ("output", 11))
MIDDLE = (("input", 4), ("input", 5), ("output", 6), ("output", 7), ("output", 8))
"""Of SD 1.5's layers those whose grid is nearest to 16 x 16: for latents of 16 x 16 and of 20 x 28."""


@functools.cache
def plain_model() -> Any:
    return random_model(in_channels=4)


def small_sdxl() -> Dense:
    """SDXL's blocks and both of its text encoders, narrow ones of random weights."""
    widths = {"in_channels": 9, "model_channels": 32, "context_dim": 80, "adm_in_channels": 6 * 256 + 48}
    depths = {
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "transformer_depth_middle": 1,
    }
    layers = (("input", 4), ("input", 5), ("output", 3), ("output", 4), ("output", 5))
    return Dense(of_random_weights(comfy.supported_models.SDXL({**SDXL, **widths, **depths})), clip_of("lg"), layers)


def matches(dense: Dense, shown: Examples, chosen: list[int], places: list[list[int]], given: Options) -> None:
    """The loss is equation 4's, and so is its gradient for the mask encoder."""
    noise = torch.randn(len(chosen), *shown.latents.shape[1:], generator=torch.Generator().manual_seed(3))
    with subjects_of(dense.model, dense.clip, given) as subjects, torch.enable_grad():
        if subjects.encoder is not None:
            with_vectors(subjects.encoder)
        loss = Loss(subjects, [shown], given)
        found = loss.of(shown, torch.tensor(chosen), torch.tensor(places), noise, loss.schedule.sigmas[TIMES[: len(chosen)]])
        found.backward()
        encoder = subjects.encoder
        grads = {} if encoder is None else {name: value.grad for name, value in encoder.named_parameters()}
        for value in () if encoder is None else encoder.parameters():
            value.grad = None
    with torch.enable_grad():
        wanted = dense.equation_4(shown, chosen, places, given, noise, encoder)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
        if encoder is not None:
            wanted.backward()
    for name, value in {} if encoder is None else encoder.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(grads[name], value.grad, atol=1e-4 * float(value.grad.abs().max()), rtol=1e-3)


CASES: dict[str, tuple[list[int], list[list[int]], dict[str, Any]]] = {
    "one subject": ([1], [[0]], {}),
    "two, named the other way round": ([0], [[1, 0]], {}),
    "a batch of one subject each": ([2, 0], [[0], [0]], {}),
    "a batch, each in an order of its own": ([2, 1], [[1, 0], [0, 1]], {"mask_attention_weight": 0.7, "attention_weight": 0.5}),
    "the background counts too": ([0, 1], [[0, 1], [1, 0]], {"background_weight": 0.3}),
    "before the original background": ([0], [[0, 1]], {"background_weight": 0.3, "background": "original"}),
    "the paper's encoder": ([1, 0], [[0, 1], [1, 0]], {"mode": "paper", "attention_weight": 0.5}),
    "Break-A-Scene": ([1, 0], [[0, 1], [1, 0]], {"masks": False, "attention_weight": 0.5}),
    "Break-A-Scene with one": ([1], [[0]], {"masks": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_equation_4(tiny: Painter, case: str) -> None:
    """Written out on the given model's own network, with whole attention maps."""
    chosen, places, more = CASES[case]
    (one, two) = examples([(0,), (2,), (1,)], [(2, 0), (0, 1), (1, 2)], side=(16, 16))
    given = options(*WORDS, **more)
    matches(Dense(plain_model(), tiny.clip, FINE), one if len(places[0]) == 1 else two, chosen, places, given)


def test_the_loss_of_a_picture_that_is_not_square(tiny: Painter) -> None:
    """Whose nearest layers see each mask on a grid of half the latents' size."""
    (shown,) = examples([(2, 0), (0, 1)], side=(20, 28))
    matches(Dense(plain_model(), tiny.clip, MIDDLE), shown, [1], [[1, 0]], options(*WORDS, attention_weight=0.5))


def test_the_loss_of_an_inpainting_model(model: Any, tiny: Painter) -> None:
    """It is shown nothing of the picture, as in sampling without a picture to inpaint."""
    (shown,) = examples([(2, 0), (0, 1)], side=(16, 16))
    matches(Dense(model, tiny.clip, FINE), shown, [1, 0], [[1, 0], [0, 1]], options(*WORDS, attention_weight=0.5))


def test_the_loss_of_sdxl() -> None:
    """Both text encoders, and pooled texts that differ with the order of names in a batch."""
    (shown,) = examples([(2, 0), (0, 1)], side=(16, 16))
    matches(small_sdxl(), shown, [1, 0], [[1, 0], [0, 1]], options(*WORDS, attention_weight=0.5))


Names = dict[str, set[str]]


def watch(monkeypatch: pytest.MonkeyPatch, subjects: Subjects) -> list[Names]:
    """What each phase hands to the optimizer, and what a gradient reaches in it: nothing is learned."""
    seen: list[Names] = []
    parts: dict[str, nn.Module] = {"unet": subjects.learner.network, "text": subjects.text.adapted.patcher.model}
    everything = {id(value): name for part in parts.values() for name, value in part.named_parameters()}
    everything |= {id(value): name for name, value in subjects.parameters(2).items()}
    tensors = [value for part in parts.values() for value in part.parameters()] + list(subjects.parameters(2).values())

    def run(parameters: dict[str, nn.Parameter], loss_of: Loss, *_: Any) -> loop.Progress:
        assert all(value is subjects.parameters(2)[name] for name, value in parameters.items())
        for step in range(4):  # until each subject was shown
            loss_of(step, loop.random_numbers(0, step)).backward()
        reached = {everything[id(value)] for value in tensors if value.grad is not None}
        dead = {name for name, value in parameters.items() if value.grad is None or not bool(value.grad.any())}
        seen.append({"given": set(parameters), "reached": reached, "dead": dead})
        for value in tensors:
            value.grad = None
        return loop.Progress()

    monkeypatch.setattr(loop, "run", run)
    return seen


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "Break-A-Scene"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_what_each_phase_trains_and_nothing_else(
    small: Any, tiny: Painter, method: Method, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First handles and mask encoder alone, then UNet and text encoder as well."""
    given = options(method=method, masks=masks)
    with subjects_of(small, tiny.clip, given) as subjects:
        roughened(subjects.learner.adapted, subjects.text.adapted)
        unet = set(subjects.learner.parameters)
        text = set(subjects.text.adapted.parameters)
        seen = watch(monkeypatch, subjects)
        train(subjects, examples(*ONE_AND_TWO), given)
    first, second = seen
    encoder = {f"mask_encoder.{name}" for name in ("linear.weight", "linear.bias", "subjects")} if masks else set()
    assert first["given"] == first["reached"] == {"handles.l"} | encoder
    assert second["given"] == second["reached"] == {"handles.l"} | encoder | unet | text
    assert first["dead"] == second["dead"] == set()
    assert any("attn2.to_k" in name for name in unet)
    assert any("q_proj" in name for name in text)
    assert not any("token_embedding" in name for name in text)


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


@pytest.mark.parametrize("method", METHODS)
def test_each_phase_changes_all_that_it_trains_and_nothing_else(small: Any, tiny: Painter, method: Method) -> None:
    """The mask encoder too: every weight of a cell that some mask shows, and each subject's vector."""
    given = options(method=method, steps=2, weight_steps=0)
    shown = examples([(1, 0)])
    with subjects_of(small, tiny.clip, given) as subjects:
        own = set(subjects.parameters(1))
        before = values(subjects)
        frozen = {name: value.clone() for name, value in subjects.learner.network.state_dict().items()}
        train(subjects, shown, given)
        first = values(subjects)
        assert changed(before, first) == own
        assert own == {"handles.l", "mask_encoder.linear.weight", "mask_encoder.linear.bias", "mask_encoder.subjects"}
        moved = (first["mask_encoder.linear.weight"] != before["mask_encoder.linear.weight"]).any(0)
        assert torch.equal(moved, shown[0].cells[0].amax(0).flatten() > 0)
        assert (first["mask_encoder.subjects"] != 0).any(1).all()
        assert (first["handles.l"] != before["handles.l"]).any(1).all()
        train(subjects, shown, replace(given, steps=0, weight_steps=3))
        second = values(subjects)
        assert changed(first, second) == set(subjects.parameters(2))
        if method == "lora":
            assert all(torch.equal(value, frozen[name]) for name, value in subjects.learner.network.state_dict().items())
        learned = subjects.learner.learned()
    assert {name.split(".")[0] for name in learned} == {"diffusion_model", "text_encoders"}


def test_the_loss_on_a_fixed_batch_falls_in_each_phase(small: Any, tiny: Painter) -> None:
    (shown,) = examples([(0, 1)])
    given = options(handle_rate=1e-3, attention_weight=1.0)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with subjects_of(small, tiny.clip, given) as subjects, torch.enable_grad():
        loss = Loss(subjects, [shown], given)

        def fixed(step: int, generator: torch.Generator) -> Tensor:
            return loss.of(shown, torch.tensor([0]), torch.tensor([[0, 1]]), noise, torch.tensor([2.0]))

        first = loop.run(subjects.parameters(1), fixed, replace(given.settings(1, 32), steps=15)).losses
        second = loop.run(subjects.parameters(2), fixed, replace(given.settings(2, 32), steps=15)).losses
    assert first[-1] < 0.95 * first[0]
    assert second[-1] < 0.8 * second[0]


PARTS = ("handles", "mask_encoder", "diffusion_model", "text_encoders")


@pytest.mark.parametrize("method", METHODS)
def test_computing_blocks_twice_gives_the_same_gradients(small: Any, tiny: Painter, method: Method) -> None:
    found: list[Weights] = []
    for checkpointing in (False, True):
        given = options(method=method, checkpointing=checkpointing, batch=2, attention_weight=0.5)
        with subjects_of(small, tiny.clip, given) as subjects, torch.enable_grad():
            roughened(subjects.learner.adapted, subjects.text.adapted)
            for value in subjects.parameters(2).values():
                value.requires_grad_(True)
            Loss(subjects, examples([(0, 1), (1, 0)]), given)(0, loop.random_numbers(0, 0)).backward()
            found.append({name: value.grad.clone() for name, value in subjects.parameters(2).items() if value.grad is not None})
            assert found[-1].keys() == subjects.parameters(2).keys()
    for part in PARTS:
        own = {name: value for name, value in found[0].items() if name.startswith(part)}
        largest = max(float(value.abs().max()) for value in own.values())
        assert largest > 0
        for name, value in own.items():
            torch.testing.assert_close(found[1][name], value, atol=1e-6 * largest, rtol=1e-5)


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


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_it_ends_as_if_nothing_had_been(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, method: Method, stop: int
) -> None:
    """In either phase, and where one ends; other ways to save memory are no other training."""
    given = options(method=method, steps=2, weight_steps=3)
    path = tmp_path / "states" / "scene.pt"
    wanted = whole_training(given)
    assert [(one.step, len(one.losses)) for one in wanted.told] == [(step, step) for step in range(1, 6)]
    assert wanted.told[-1].losses == wanted.progress.losses
    assert wanted.progress.step == 5
    before = trained(small, tiny.clip, given, path, stop)
    assert [one.step for one in before.told] == list(range(1, stop + 1))
    assert not alike(before.weights, wanted.weights, 1e-5)
    assert sorted(kept.name[:8] for kept in path.parent.iterdir()) == ["scene-1.", "scene-2-"][: 1 if stop <= 2 else 2]
    after = trained(small, tiny.clip, replace(given, checkpointing=stop == 4), path)
    assert [one.step for one in after.told] == list(range(stop + 1, 6))
    assert alike(after.weights, wanted.weights, 1e-5)
    assert after.progress.losses == pytest.approx(wanted.progress.losses, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learned_and_not_saved_is_not_learned_again(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(method=method, steps=2, weight_steps=3)
    path = tmp_path / "scene.pt"
    first = trained(small, tiny.clip, given, path)
    assert alike(first.weights, whole_training(given).weights)
    monkeypatch.setattr(Loss, "__call__", lambda *_: pytest.fail("it trains again"))
    again = trained(small, tiny.clip, given, path)
    assert alike(again.weights, first.weights)
    assert again.progress == first.progress
    assert again.told == []


def test_a_longer_second_phase_goes_on_and_a_longer_first_one_begins_the_second_again(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = options(steps=2, weight_steps=1)
    path = tmp_path / "scene.pt"
    trained(small, tiny.clip, given, path)
    longer = replace(given, weight_steps=3)
    found = trained(small, tiny.clip, longer, path)
    assert [one.step for one in found.told] == [4, 5]
    assert alike(found.weights, whole_training(longer).weights, 1e-5)
    assert not caplog.records
    longer = replace(given, steps=3)
    found = trained(small, tiny.clip, longer, path)
    assert [one.step for one in found.told] == [3, 4]
    assert alike(found.weights, whole_training(longer).weights, 1e-5)
    assert not caplog.records


def test_trainings_of_other_second_phases_share_the_first_and_keep_their_own_second(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted in the second phase one after the other, each goes on where it was."""
    given = options(steps=2, weight_steps=3)
    path = tmp_path / "scene.pt"
    several = given, replace(given, rate=2e-3), replace(given, rank=3)
    told = [[one.step for one in trained(small, tiny.clip, other, path, stop=4).told] for other in several]
    assert told == [[1, 2, 3, 4], [3, 4], [3, 4]]
    for other in several:
        found = trained(small, tiny.clip, other, path)
        assert [one.step for one in found.told] == [5]
        assert alike(found.weights, whole_training(other).weights, 1e-5)
    assert len(list(tmp_path.iterdir())) == 4
    assert not caplog.records


def test_the_same_seed_trains_the_same(small: Any, tiny: Painter, whole_training: Callable[[Options], Trained]) -> None:
    given = options(steps=2, weight_steps=3)
    assert alike(trained(small, tiny.clip, given).weights, whole_training(given).weights)
    other = trained(small, tiny.clip, replace(given, seed=1))
    assert changed(other.weights, whole_training(given).weights) == other.weights.keys()


def test_steps_are_drawn_from_all_that_there_is(small: Any, tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often one as two subjects, any picture, any order of names, any noise level; the same numbers draw the same."""
    given = options(batch=2)
    calls = []
    monkeypatch.setattr(Loss, "of", lambda self, *drawn: calls.append(drawn) or torch.zeros(()))
    shown = examples(*ONE_AND_TWO)
    with subjects_of(small, tiny.clip, given) as subjects:
        loss = Loss(subjects, shown, given)
        for step in (*range(200), 0):
            loss(step, loop.random_numbers(0, step))
        levels = loss.schedule.sigmas
    first = calls[0]
    last = calls.pop()
    assert first[0] is last[0]
    assert all(torch.equal(one, other) for one, other in zip(first[1:], last[1:], strict=True))
    pairs = [call for call in calls if call[0] is shown[1]]
    assert 70 < len(pairs) < 130
    orders = [tuple(order) for _, _, places, _, _ in pairs for order in places.tolist()]
    assert set(orders) == {(0, 1), (1, 0)}
    assert 0.35 < orders.count((0, 1)) / len(orders) < 0.65
    assert any(places[0].tolist() != places[1].tolist() for _, _, places, _, _ in pairs)
    for part in (0, 1):
        chosen = torch.cat([call[1] for call in calls if call[0] is shown[part]])
        assert chosen.unique().tolist() == [0, 1, 2]
    sigmas = torch.cat([call[4] for call in calls])
    noises = torch.stack([call[3] for call in calls])
    assert torch.isin(sigmas, levels).all()
    assert sigmas.median() == pytest.approx(float(levels.median()), rel=0.35)
    assert noises.shape == (200, 2, 4, 8, 8)
    assert noises.std() == pytest.approx(1, abs=0.02)


ORDINARY = Prior(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8)), "a photo at the beach")


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "Break-A-Scene"])
@pytest.mark.parametrize("batch", [1, 2])
def test_prior_preservation_is_the_plain_error_with_a_zero_token(
    tiny: Painter, batch: int, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added with its weight to equation 4, of ordinary pictures whose prompt has a zero token in a mask token's place."""
    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    given = options(batch=batch, masks=masks, prior_weight=0.7)
    dense = Dense(plain_model(), tiny.clip, ())
    losses = []
    monkeypatch.setattr(Loss, "_noise", lambda self, *_: (noise, self.schedule.sigmas[TIMES[:batch]]))
    with subjects_of(dense.model, tiny.clip, given) as subjects, torch.no_grad():
        for ordinary in (None, ORDINARY):
            losses.append(Loss(subjects, examples(*ONE_AND_TWO), given, ordinary)(0, loop.random_numbers(0, 0)).item())
    text, more = stock(tiny.clip, ORDINARY.prompt)
    text = torch.cat([text, torch.zeros(1, 1, 128)], 1) if masks else text
    z = ORDINARY.latents.expand(batch, -1, -1, -1) * 0.18215
    with torch.no_grad():
        error, _ = dense.error(z, text.expand(batch, -1, -1), more["pooled_output"].expand(batch, -1), noise)
    assert losses[1] - losses[0] == pytest.approx(0.7 * (error**2).mean().item(), rel=1e-4)


def test_prior_preservation_is_drawn_from_all_pictures_and_learned_from(small: Any, tiny: Painter) -> None:
    """What is learned of the subjects alone is another thing than with it, though the first phase has nothing to learn from it."""
    given = options(prior_weight=1.0)
    several = Prior(torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(8)), "a photo at the beach")
    alone, both = (trained(small, tiny.clip, given, prior=ordinary) for ordinary in (None, several))
    assert changed(alone.weights, both.weights) >= {name for name in alone.weights if "diffusion_model" in name}
    assert all(one > other for one, other in zip(both.progress.losses[:2], alone.progress.losses[:2], strict=True))
    half = trained(small, tiny.clip, replace(given, weight_steps=0), prior=several)
    assert alike(half.weights, trained(small, tiny.clip, replace(given, weight_steps=0)).weights)


def picture_of(shown: Sequence[int], side: int = 8) -> Examples:
    (found,) = examples([tuple(shown)], side=(side, side))
    return found


def test_a_preview_shows_each_subject_in_its_place(small: Any, tiny: Painter) -> None:
    """Side by side in the order of the words: what is learned of one changes its part alone."""
    whole = picture_of((0, 1, 2))
    with subjects_of(small, tiny.clip, options(*WORDS)) as subjects:
        first, again = (preview(subjects, whole, tiny.vae) for _ in range(2))
        subjects.text.vectors["l"].data[1] += torch.randn(128, generator=torch.Generator().manual_seed(0))
        other = preview(subjects, whole, tiny.vae)
        encoder: Any = subjects.encoder
        encoder.subjects.data[2] += 1.0
        third = preview(subjects, whole, tiny.vae)
        moved = preview(subjects, replace(whole, cells=whole.cells.roll(20, 3)), tiny.vae)
        order = [2, 0, 1]
        shuffled = Examples(whole.latents, whole.cells[:, order], whole.masks[:, order], torch.tensor([order]))
        assert torch.equal(preview(subjects, shuffled, tiny.vae), third)
    assert first.shape == (1, 64, 3 * 64, 3)
    assert not first.requires_grad
    assert torch.equal(first, again)
    for one, two, parts in ((first, other, [1]), (other, third, [2]), (third, moved, [0, 1, 2])):
        apart = (one - two).abs().unflatten(2, (3, 64)).amax((0, 1, 3, 4))
        assert [number for number in range(3) if apart[number] > 1e-3] == parts
        assert all(apart[number] < 1e-5 for number in range(3) if number not in parts)


def test_a_preview_is_what_stock_nodes_paint(small: Any, tiny: Painter) -> None:
    """Of an untrained learner: the plain word's text with the mask's token, the empty text with a zero one, through KSampler."""
    from maskprompt.training.engine import preview as settings

    import nodes

    whole = picture_of((0, 1))
    given = options()
    with subjects_of(small, tiny.clip, given) as subjects:
        found = preview(subjects, whole, tiny.vae)
        encoder: Any = subjects.encoder
    tokens = torch.stack([encoder.linear.weight @ cells.flatten() + encoder.linear.bias for cells in whole.cells[0]]).detach()
    prompts = []
    for texts, rows in (([f"a photo of {word}" for word in given.words], tokens), (["", ""], torch.zeros(2, 128))):
        entries = [stock(tiny.clip, text) for text in texts]
        pooled = {"pooled_output": torch.cat([more["pooled_output"] for _, more in entries])}
        prompts.append([[torch.cat([torch.cat([text for text, _ in entries]), rows[:, None]], 1), pooled]])
    empty = {"samples": torch.zeros(2, 4, 8, 8)}
    (latent,) = nodes.common_ksampler(small, 0, settings.STEPS, settings.CFG, "euler", "normal", prompts[0], prompts[1], empty)
    wanted = torch.cat(list(tiny.vae.decode(latent["samples"])), 1)[None]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_preview_changes_nothing_of_the_outcome(
    small: Any, tiny: Painter, whole_training: Callable[[Options], Trained], method: Method
) -> None:
    """To the bit, though ComfyUI unloads the learner for it; also one that fails, and training goes on."""
    given = options(method=method, steps=2, weight_steps=3)
    pictures = []

    def broken(*_: Any) -> Tensor:
        comfy.model_management.unload_all_models()  # as a VAE that needs the memory
        raise torch.OutOfMemoryError("no memory for the VAE")

    with subjects_of(small, tiny.clip, given) as subjects:

        def show(progress: loop.Progress) -> None:
            pictures.append(preview(subjects, picture_of((0, 1)), tiny.vae))
            failing = SimpleNamespace(decode=broken)
            with pytest.raises(torch.OutOfMemoryError):
                preview(subjects, picture_of((0, 1)), failing)

        train(subjects, examples(*ONE_AND_TWO), given, on_step=show)
        assert alike(values(subjects), whole_training(given).weights)
    assert len(pictures) == 5
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(pictures))


def finished(subjects: Subjects, given: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    train(subjects, examples(*ONE_AND_TWO), given)


def failed(subjects: Subjects, given: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Loss.of

    def of(loss: Loss, *drawn: Any) -> Tensor:
        if next(iter(subjects.learner.parameters.values())).requires_grad:  # in the second phase
            raise RuntimeError("no memory")
        return real(loss, *drawn)

    monkeypatch.setattr(Loss, "of", of)
    train(subjects, examples(*ONE_AND_TWO), given)


def interrupted(subjects: Subjects, given: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(progress: loop.Progress) -> None:
        if progress.step == 3:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    train(subjects, examples(*ONE_AND_TWO), given, on_step=stop)


def interrupted_early(subjects: Subjects, given: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(progress: loop.Progress) -> None:
        raise comfy.model_management.InterruptProcessingException

    train(subjects, examples(*ONE_AND_TWO), given, on_step=stop)


@pytest.mark.parametrize(
    ("method", "happens", "error"),
    [
        ("lora", finished, None), ("full", finished, None), ("full", failed, RuntimeError),
        ("lora", interrupted, comfy.model_management.InterruptProcessingException),
        ("full", interrupted_early, comfy.model_management.InterruptProcessingException),
    ],
)  # fmt: skip
def test_model_and_clip_stay_as_they_were(
    tiny: Painter, sample: Sample, method: Method, happens: Callable[..., None], error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and all that hangs on them to the bit, with LoRAs on both; the picture and the text they make meanwhile and after."""
    model = with_another_lora(unet_of(32, small=True))
    clip = with_a_lora(tiny.clip)
    before = [fingerprint(one) for one in (model, clip.patcher, tiny.clip.patcher)]
    picture = sample(model, size=(8, 8), steps=1)
    text = stock(clip, "a photo of cat")[0]
    given = options(method=method)
    copies = []
    learning = []
    with pytest.raises(error) if error else nothing(), subjects_of(model, clip, given) as subjects:
        learner = subjects.learner
        copies += [learner.patcher, subjects.text.adapted.patcher]
        learning += subjects.parameters(2).values()
        train(subjects, examples(*ONE_AND_TWO), replace(given, steps=1, weight_steps=1))
        assert torch.equal(sample(model, size=(8, 8), steps=1), picture)
        assert torch.equal(stock(clip, "a photo of cat")[0], text)
        learner.load()
        happens(subjects, given, monkeypatch)
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert not any(one.is_clone(copy) for one in loaded for copy in copies)
    assert torch.equal(sample(model, size=(8, 8), steps=1), picture)
    assert torch.equal(stock(clip, "a photo of cat")[0], text)
    assert all(unchanged(one, own) for one, own in zip((model, clip.patcher, tiny.clip.patcher), before, strict=True))
    own = {value.data_ptr() for one in (model, clip.patcher) for value in one.model.parameters()}
    assert not own & {value.data_ptr() for copy in copies for value in copy.model.parameters()}
    assert all(value.grad is None for value in learning)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_a_learner_without_a_text_encoder_is_refused(small: Any) -> None:
    with Learner(small, "lora", 2).loaded() as learner, pytest.raises(ValueError, match="no text encoder"):
        Subjects(learner, options())


def test_handles_begin_as_their_words_and_subjects_take_the_same_seed(small: Any, tiny: Painter) -> None:
    """The prompt of an untrained handle is the plain word's to the bit; the mask encoder is the seed's."""
    given = options(*WORDS)
    (shown,) = examples([(2, 0)])
    with subjects_of(small, tiny.clip, given) as subjects, torch.no_grad():
        prompts = subjects.prompts([(2, 0)], shown.cells)
        bare = subjects.without_subjects("a beach", 2, 3)
        encoder = subjects.encoder
    (text, more), (wanted, pooled) = prompts.conditioning[0], stock(tiny.clip, "a photo of ball and cat")
    assert torch.equal(text[:, :77], wanted)
    assert torch.equal(more["pooled_output"], pooled["pooled_output"])
    assert (prompts.length, prompts.columns) == (79, (((4,), (6,), (77,), (78,)),))
    same = mask_encoder.fresh(128, 3, given.seed)
    assert encoder is not None
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(text[:, 77:], same(shown.cells[0], [2, 0])[None])
    (empty, options_) = bare[0]
    assert empty.shape == (3, 79, 128)
    assert not empty[:, 77:].any()
    assert torch.equal(empty[2, :77], stock(tiny.clip, "a beach")[0][0])
    assert options_["pooled_output"].shape[0] == 3


SHARED: dict[str, Any] = {
    "words": ("cat", "fox"), "handle_rate": 1e-3, "batch": 2, "size": 128, "seed": 1, "background": "original",
    "move": False, "masks": False, "mode": "paper", "attention_weight": 0.02, "mask_attention_weight": 0.2, "background_weight": 0.1,
    "prior_weight": 1.0, "prior_prompt": "a beach", "prior_pictures": 3,
}  # fmt: skip
SECOND: dict[str, Any] = {"steps": 9, "rate": 0.5, "method": "full", "rank": 3, "average": 0.9}
NEITHER: dict[str, Any] = {"weight_steps": 9, "checkpointing": True}


def test_fingerprints_are_of_all_that_matters_to_a_phase() -> None:
    """The first phase does not depend on what the second is; neither on its own length, or on what saves memory alone."""
    generator = torch.Generator().manual_seed(0)
    scene = Scene(torch.rand(64, 64, 3, generator=generator), torch.rand(2, 64, 64, generator=generator))
    assert {field.name for field in fields(Options)} == SHARED.keys() | SECOND.keys() | NEITHER.keys()
    first, second = (options().fingerprint(phase, scene, "weights") for phase in (1, 2))
    assert first != second
    for changes, kept in ((SHARED, (False, False)), (SECOND, (True, False)), (NEITHER, (True, True))):
        for name, value in changes.items():
            assert getattr(options(), name) != value
            other = replace(options(), **{name: value})
            assert [other.fingerprint(1, scene, "weights") == first, other.fingerprint(2, scene, "weights") == second] == list(kept), name
    for phase, own in ((1, first), (2, second)):
        scenes = Scene(scene.image, scene.masks.flip(0)), Scene(scene.image.flip(0), scene.masks)
        others = [options().fingerprint(phase, scene, "others"), *(options().fingerprint(phase, other, "weights") for other in scenes)]
        assert len({own, *others}) == 4
        assert options().fingerprint(phase, Scene(scene.image.clone(), scene.masks.clone()), "weights") == own


def test_each_phase_has_a_state_file_of_its_own_that_stays(tmp_path: Path) -> None:
    """The second's is its own fingerprint's."""
    files = [checkpoint.files_of(tmp_path / "scene.pt", ["one", second]) for second in ("two", "three", "two")]
    for (first, second), own in zip(files, ("two", "three", "two"), strict=True):
        assert first.path == tmp_path / "scene-1.pt"
        assert second.path.parent == tmp_path
        assert (first.fingerprint, second.fingerprint) == ("one", own)
        assert first.last
        assert second.last
    assert files[0][1].path == files[2][1].path
    assert len({first.path for first, _ in files} | {second.path for _, second in files}) == 3


def test_the_first_phases_state_goes_when_nothing_builds_on_it(tmp_path: Path) -> None:
    """Other trainings' files stay, and keep none but their own."""
    one, two = (checkpoint.files_of(tmp_path / "scene.pt", ["first", second]) for second in ("one", "two"))
    others = [checkpoint.files_of(tmp_path / name, ["another", "one"]) for name in ("other.pt", "scene2.pt")]
    for states in (one, two, *others):
        for state in states:
            state.path.write_bytes(b"kept")
    rest = {state.path for states in others for state in states}
    checkpoint.discard(one)
    assert set(tmp_path.iterdir()) == {two[0].path, two[1].path} | rest
    checkpoint.discard(two)
    assert set(tmp_path.iterdir()) == rest


def test_ordinary_pictures_are_painted_as_by_ksampler(small: Any, tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit for as many as are painted at once; and all of them from the noise of one batch. Their numbers can be learned from."""
    import nodes

    assert (prior.STEPS, prior.CFG) == (20, 7.0)
    monkeypatch.setattr(prior, "STEPS", 3)
    told: list[tuple[int, int]] = []
    with torch.inference_mode():
        few = prior.painted(small, tiny.clip, "a photo at the beach", (4, 4, 8, 8), 5)
        many = prior.painted(small, tiny.clip, "a photo at the beach", (6, 4, 8, 8), 5, lambda *done: told.append(done))
        positive, negative = ([stock(tiny.clip, text)] for text in ("a photo at the beach", ""))
        wanted = []
        for count in (4, 6):
            empty = {"samples": torch.zeros(count, 4, 8, 8)}
            (latent,) = nodes.common_ksampler(small, 5, 3, 7.0, "euler", "normal", positive, negative, empty)
            wanted.append(latent["samples"])
    assert torch.equal(few, wanted[0])
    torch.testing.assert_close(many, wanted[1], atol=1e-4 * float(wanted[1].abs().max()), rtol=0)
    assert told == [(4, 6), (6, 6)]
    assert not many.is_inference()
    assert many.dtype == torch.float32
    assert (many[0] - many[5]).abs().max() > 0.1
    assert not torch.equal(few, prior.painted(small, tiny.clip, "a photo at the beach", (4, 4, 8, 8), 6))


def test_painting_ordinary_pictures_can_be_interrupted(small: Any, tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between pictures by what is raised there, and within one as ComfyUI does; the MODEL stays as it was."""
    monkeypatch.setattr(prior, "STEPS", 2)
    before = fingerprint(small)
    told = []

    def stop(done: int, count: int) -> None:
        told.append((done, count))
        raise StopNow

    with pytest.raises(StopNow):
        prior.painted(small, tiny.clip, "a beach", (9, 4, 8, 8), 0, stop)
    assert told == [(4, 9)]
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            prior.painted(small, tiny.clip, "a beach", (1, 4, 8, 8), 0, lambda *_: pytest.fail("too late"))
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert unchanged(small, before)
