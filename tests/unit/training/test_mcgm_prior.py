"""Prior preservation and previews of MCGM."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.supported_models
import pytest
import torch
from maskprompt.training.engine import loop
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm import prior
from maskprompt.training.mcgm.examples import Examples
from maskprompt.training.mcgm.job import preview
from maskprompt.training.mcgm.loss import Loss, Prior
from maskprompt.training.mcgm.options import Options
from torch import Tensor

from demo.painter import Painter

from ...support.learners import METHODS, fingerprint, unchanged
from ...support.mcgm_training import (
    ONE_AND_TWO,
    TIMES,
    WORDS,
    Dense,
    StopNow,
    Trained,
    alike,
    changed,
    examples,
    options,
    plain_model,
    quick_previews,
    small,
    subjects_of,
    tiny,
    train,
    trained,
    values,
    whole_training,
)
from ...support.text_learners import stock

__all__ = ["quick_previews", "small", "tiny", "whole_training"]  # fixtures

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
