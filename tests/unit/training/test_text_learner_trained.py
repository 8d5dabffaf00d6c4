"""A text encoder that has learned: what stays, what leaves, in which memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import pytest
import torch
from maskprompt.training.engine import loop, model_copy
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.text_learner import TextLearner
from maskprompt.training.engine.trainable_weights import Method
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo import registration, tiny_model

from ...support.learners import fingerprint, unchanged
from ...support.text_learners import (
    KINDS,
    LAYERS,
    LONG,
    METHODS,
    WIDTHS,
    clip_of,
    loaded,
    roughened,
    same,
    small_clip,
    stock,
    unet,
    with_a_lora,
    with_a_state,
)


def train(text: TextLearner, steps: int = 2, rate: float = 1e-2) -> list[float]:
    """Pulls the encoding of a prompt with handles towards that of another prompt."""
    with torch.no_grad():
        target = text.text("a photo of a red house and a green tree")[0].clone()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return ((text.encode(text.tokens("a photo of x and x", [0, 1])[0])[0] - target) ** 2).mean()

    return loop.run(text.parameters, loss, loop.Settings(steps, rate)).losses


@pytest.mark.parametrize(("kind", "method"), [("l", "lora"), ("lg", "full"), ("h", "frozen")])
def test_the_loss_falls(kind: str, method: Method) -> None:
    with loaded(TextLearner(clip_of(kind, torch.float16), ["cat", "dog"], method, 4)) as text:
        losses = train(text, 20)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("kind", "method", "patched"), [("l", "lora", False), ("l", "full", True), ("lg", "lora", True), ("lg", "full", False)]
)
def test_the_clip_stays_as_it_was(kind: str, method: Method, patched: bool) -> None:
    """Weights, options and what it says to the bit: before, while another learns from it, and after, even if that fails."""
    clip = with_a_lora(small_clip(kind)) if patched else small_clip(kind)
    before = fingerprint(clip.patcher)
    said = stock(clip, LONG)
    kept = vars(clip).copy()
    text = TextLearner(clip, ["cat", "dog"], method, 2)
    for fails in (False, True):
        try:
            with loaded(text):
                train(text)
                assert not same(text.text(LONG), said)
                assert same(stock(clip, LONG), said)
                assert not fails, "on purpose"
        except AssertionError as error:
            if "on purpose" not in str(error):
                raise
    assert same(stock(clip, LONG), said)
    assert unchanged(clip.patcher, before)
    assert vars(clip) == kept
    own = {value.data_ptr() for value in clip.cond_stage_model.parameters()}
    assert not own & {value.data_ptr() for value in text.adapted.patcher.model.parameters()}
    assert text.clip is clip


@pytest.mark.parametrize(("method", "rank", "patched"), [("lora", 3, True), ("lora", 64, False), ("full", 1, False), ("full", 1, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_leaves_for_any_stock_loader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, method: Method, rank: int, patched: bool
) -> None:
    """Through a file as Save LoRA and Load LoRA write and read it, on top of a LoRA that was there; every name is known."""
    clip = with_a_lora(clip_of(kind)) if patched else clip_of(kind)
    before = stock(clip, LONG)
    with loaded(TextLearner(clip, ["cat"], method, rank)) as text:
        assert same(said_by(clip, text.adapted.learned()), before)  # nothing learned yet
        roughened(text)
        with torch.no_grad():
            wanted = text.text(LONG)
        save_file(text.adapted.learned(), tmp_path / "lora.safetensors")
    with loaded(text), torch.no_grad():  # being off the device in between, as for a preview, loses nothing
        assert same(text.text(LONG), wanted)
    state = load_file(tmp_path / "lora.safetensors")
    assert {value.dtype for value in state.values()} <= {torch.float16, torch.float32}
    found = said_by(clip, state)
    for one, right, was in ((found[0], wanted[0], before[0]), *([entry[1]["pooled_output"] for entry in (found, wanted, before)],)):
        assert (right - was).std() > 0.05 * was.std()
        torch.testing.assert_close(one, right, atol=2e-5 * float(right.abs().max()), rtol=0)
    assert same(said_by(clip, state, 0), before)
    assert not [record.getMessage() for record in caplog.records if "not loaded" in record.getMessage().lower()]


def said_by(clip: Any, lora: dict[str, Tensor], strength: float = 1.0) -> list[Any]:
    """What the CLIP says with a LORA_MODEL on it."""
    return stock(with_a_state(None, clip, lora, strength)[1], LONG)


@pytest.mark.parametrize("method", METHODS)
def test_weights_in_half_precision_learn_in_float32(method: Method) -> None:
    """The stock loader writes the sum in half precision again, which is all that is lost: 1/2048 of a weight."""
    clip = clip_of("l", torch.float16)
    before = stock(clip, LONG)[0]
    with loaded(TextLearner(clip, ["cat"], method, 3)) as text:
        assert {value.dtype for value in text.parameters.values()} == {torch.float32}
        roughened(text)
        with torch.no_grad():
            wanted = text.text(LONG)[0]
        learned = text.adapted.learned()
    assert {value.dtype for value in clip.cond_stage_model.clip_l.transformer.parameters()} == {torch.float16}
    assert (said_by(clip, learned)[0] - wanted).std() < 0.005 * (wanted - before).std()


@pytest.mark.parametrize("method", METHODS)
def test_it_is_loaded_and_unloaded_with_its_learner(method: Method, caplog: pytest.LogCaptureFixture) -> None:
    clip = clip_of("lg")
    text = TextLearner(clip, ["cat"], method, 2)
    learner = Learner(unet(), "lora", 2, text=text, checkpointing=False)
    patchers = (learner.patcher, text.adapted.patcher)
    learned = dict[str, Tensor]()
    for _ in range(2):  # a second time, too
        with learner.loaded():
            assert held(*patchers) == [True, True]
            assert all(patcher.is_injected == bool(patcher.injections) for patcher in patchers)
            assert bool(text.adapted.patcher.injections) == (method == "lora")
            assert all(value.requires_grad for value in text.parameters.values())
            stock(clip, "a cat")  # as a preview does
            learner.load()
            assert held(*patchers) == [True, True]
            learned = learner.learned()
        assert held(*patchers) == [False, False]
        assert not any(patcher.is_injected for patcher in patchers)
        with pytest.raises(KeyError), learner.loaded():
            raise KeyError
        assert held(*patchers) == [False, False]
    assert learned.keys() == learner.adapted.learned().keys() | text.adapted.learned().keys()
    assert {name.partition(".")[0] for name in learned} == {"diffusion_model", "text_encoders"}
    with caplog.at_level(logging.WARNING):
        model, encoder = with_a_state(unet(), clip, learned)
    assert not caplog.records
    for patches, adapted in ((model.patches, learner.adapted), (encoder.patcher.patches, text.adapted)):
        assert len(patches) == len(adapted.adapters or adapted.parameters) > 0


def held(*patchers: Any) -> list[bool]:
    """Which of these ComfyUI holds on their device."""
    present = comfy.model_management.loaded_models()
    return [any(patcher is one for one in present) for patcher in patchers]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_inside_of_a_node(method: Method) -> None:
    """ComfyUI runs nodes, and loads their CLIP, in inference mode."""
    with torch.inference_mode():
        clip = small_clip("l")
        text = TextLearner(clip, ["cat", "dog"], method, 2)
        with loaded(text), torch.enable_grad():
            losses = train(text, 3, 1e-3)
        assert losses[-1] < losses[0]
        assert not any(value.is_inference() for value in text.parameters.values())


def test_the_same_seed_is_the_same_learner_and_disturbs_no_other() -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = (TextLearner(clip_of("l"), ["cat"], "lora", 2, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), before)
    assert all(torch.equal(value, other.parameters[name]) for name, value in one.parameters.items())
    assert any(not torch.equal(value, third.parameters[name]) for name, value in one.parameters.items())


def test_a_clip_in_dynamic_memory_is_read_again_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large cards have it: its layers know no gradients, so the copy comes from the checkpoint."""
    registration.register()
    clip: Any = comfy.sd.load_checkpoint_guess_config(str(tiny_model.CHECKPOINT), output_vae=False, output_model=False)[1]
    said = stock(clip, LONG)
    monkeypatch.setattr(clip.patcher, "is_dynamic", lambda: True)
    with loaded(TextLearner(clip, ["cat"], "lora", 2)) as text:
        assert same(text.text(LONG), said)
        train_one(text)
    assert same(stock(clip, LONG), said)
    monkeypatch.setattr(clip.patcher, "cached_patcher_init", None)
    with pytest.raises(ValueError, match="cannot be copied for training"):
        TextLearner(clip, ["cat"])


def train_one(text: TextLearner) -> None:
    text.encode(text.tokens("a photo of x", [0])[0])[0].square().sum().backward()
    assert all(value.grad is not None for value in text.parameters.values())


def test_sums_that_are_not_in_place() -> None:
    """The same numbers from an input that stays; the layers of the CLIP that it was copied from go on as before."""
    clip = clip_of("l")
    copied = model_copy.twin(clip.patcher).model
    model_copy.without_sums_in_place(copied)
    kept: list[Any] = [module for module in clip.cond_stage_model.modules() if isinstance(module, comfy.clip_model.CLIPLayer)]
    changed: list[Any] = [module for module in copied.modules() if isinstance(module, comfy.clip_model.CLIPLayer)]
    assert len(kept) == len(changed) == LAYERS
    x = torch.randn(2, 9, WIDTHS["l"], generator=torch.Generator().manual_seed(0))

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any) -> Tensor:
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)

    mask = torch.full((9, 9), -1e30).triu(1)
    for one, other in zip(kept, changed, strict=True):
        given = x.clone()
        with torch.no_grad():
            found = other(given, mask, attention)
            wanted = one(x.clone(), mask, attention)
        assert torch.equal(given, x)
        assert torch.equal(found, wanted)
        assert not torch.equal(found, x)
