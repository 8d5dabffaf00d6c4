"""MCGM's training as a whole: what stays, what is refused, fingerprints and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.supported_models
import pytest
import torch
from maskprompt.models.mcgm import mask_encoder
from maskprompt.training.engine import checkpoint, loop
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm.loss import Loss
from maskprompt.training.mcgm.options import Options
from maskprompt.training.mcgm.scene import Scene
from maskprompt.training.mcgm.subjects import Subjects
from torch import Tensor

from demo.painter import Painter

from ...support.learners import fingerprint, unchanged, unet_of, with_another_lora
from ...support.mcgm_training import ONE_AND_TWO, WORDS, examples, options, quick_previews, small, subjects_of, tiny, train
from ...support.models import Sample
from ...support.text_learners import stock, with_a_lora

__all__ = ["quick_previews", "small", "tiny"]  # fixtures


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
    "prior_weight": 1.0, "prior_prompt": "a beach", "prior_pictures": 3, "variations": 9,
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
