"""MCGM's training against its equations written out densely; what learns when, and what stays as it was; interrupts; previews."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.supported_models
import pytest
import torch
from maskprompt.models.mcgm import mask_encoder
from maskprompt.training.engine import loop
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm.examples import Examples
from maskprompt.training.mcgm.loss import Loss
from maskprompt.training.mcgm.options import Options
from maskprompt.training.mcgm.subjects import Subjects
from torch import nn

from demo.painter import Painter

from ...support.learners import METHODS, of_random_weights
from ...support.mcgm_training import (
    ONE_AND_TWO,
    TIMES,
    WORDS,
    Dense,
    examples,
    options,
    plain_model,
    quick_previews,
    roughened,
    small,
    subjects_of,
    tiny,
    train,
)
from ...support.text_learners import clip_of
from ...support.unets import SDXL

__all__ = ["quick_previews", "small", "tiny"]  # fixtures


def with_vectors(encoder: mask_encoder.MaskEncoder) -> None:
    """Subjects' vectors as after a training; they begin at zero."""
    if encoder.subjects is not None:
        encoder.subjects.data = torch.randn(encoder.subjects.shape, generator=torch.Generator().manual_seed(6))


FINE = (("input", 1), ("input", 2), ("output", 9), ("output", 10), ("output", 11))
MIDDLE = (("input", 4), ("input", 5), ("output", 6), ("output", 7), ("output", 8))
"""Of SD 1.5's layers those whose grid is nearest to 16 x 16: for latents of 16 x 16 and of 20 x 28."""


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
