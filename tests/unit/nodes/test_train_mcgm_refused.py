"""Train Poseable Subjects: what stays as it was, and what is refused or warned of."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from maskprompt.training.engine import memory
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm import loss as mcgm
from torch import Tensor, nn

from demo.painter import Painter

from ...support.dreamcom import kept_states as states
from ...support.learners import fingerprint, predicted, unchanged
from ...support.models import random_model
from ...support.train_mcgm import (
    SIDE,
    Node,
    disk_full_at,
    line,
    marks,
    model,
    node,
    output,
    picture,
    quick_previews,
    said,
    steps_kept,
    stored,
    taken,
    tiny,
)
from ...support.training_nodes import cancelled_at
from ...support.vaes import Flux

__all__ = ["model", "node", "output", "quick_previews", "tiny"]  # fixtures

Happens = Callable[[pytest.MonkeyPatch, Painter, Path], None]


def nothing(monkeypatch: pytest.MonkeyPatch, tiny: Painter, folders: Path) -> None: ...


def cancelled_early(monkeypatch: pytest.MonkeyPatch, tiny: Painter, folders: Path) -> None:
    cancelled_at(1 + 1, monkeypatch)


def cancelled_late(monkeypatch: pytest.MonkeyPatch, tiny: Painter, folders: Path) -> None:
    cancelled_at(1 + 3, monkeypatch)


def out_of_memory(monkeypatch: pytest.MonkeyPatch, tiny: Painter, folders: Path) -> None:
    of = mcgm.Loss.of
    steps = iter(range(9))

    def loss(self: Any, *given: Any) -> Tensor:
        if next(steps) == 3:
            raise torch.OutOfMemoryError("no memory")
        return of(self, *given)

    monkeypatch.setattr(mcgm.Loss, "of", loss)


def no_numbers_from_the_vae(monkeypatch: pytest.MonkeyPatch, tiny: Painter, folders: Path) -> None:
    monkeypatch.setattr(tiny.vae, "encode", lambda images: torch.full((len(images), 4, 8, 8), torch.nan))


def blocked(monkeypatch: pytest.MonkeyPatch, tiny: Painter, folders: Path) -> None:
    disk_full_at(0, monkeypatch)


@pytest.mark.parametrize(
    ("method", "happens", "kept"),
    [("lora", nothing, {}), ("full", nothing, {}), ("lora", cancelled_early, {"1": 1}), ("full", cancelled_late, {"1": 2, "2": 1}),
     ("lora", out_of_memory, {"1": 2, "2": 1}), ("full", out_of_memory, {"1": 2, "2": 1}), ("lora", no_numbers_from_the_vae, {}),
     ("full", blocked, {"1": 2, "2": 2})],
)  # fmt: skip
def test_model_clip_and_vae_stay_as_they_were_to_the_bit(
    node: Node, model: Any, tiny: Painter, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, method: Method, happens: Happens,
    kept: dict[str, int],
) -> None:  # fmt: skip
    """Weights, LoRAs on them, and what they make of noise and words; and no copy of them is left on the device, whatever happened."""
    name = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
    state = {f"{name}.lora_up.weight": torch.randn(512, 2) * 0.2, f"{name}.lora_down.weight": torch.randn(2, 128) * 0.2}
    clip: Any = comfy.sd.load_lora_for_models(None, tiny.clip, state, 0.0, 0.8)[1]
    parts = model, clip.patcher, tiny.vae.patcher
    words = said(clip, "a ball")[0][0]
    wanted = predicted(model)
    assert not torch.equal(said(tiny.clip, "a ball")[0][0], words)
    before = [fingerprint(part) for part in parts]
    happens(monkeypatch, tiny, folders)
    if happens is nothing:
        ran = node(clip=clip, method=method, preview_every=1)
        assert not torch.equal(predicted(ran.model), wanted)
        assert not torch.equal(said(ran.clip, "a ball")[0][0], words)
    else:
        with pytest.raises((InterruptProcessingException, torch.OutOfMemoryError, ValueError)):
            node(clip=clip, method=method)
    monkeypatch.undo()
    assert steps_kept(output) == kept
    own = {id(part.model) for part in parts}
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert all(id(patcher.model) in own for patcher in loaded)
    assert torch.equal(said(clip, "a ball")[0][0], words)
    assert torch.equal(predicted(model), wanted)
    assert all(unchanged(part, one) for part, one in zip(parts, before, strict=True))


def test_a_rate_that_is_far_too_high_is_said_and_nothing_is_saved(node: Node, folders: Path, output: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the loss is not a number \(NaN\) at step \d+: the learning rate \(1e\+20\) is too high"):
        node(steps=1, weight_steps=30, learning_rate=1e20, method="full")
    assert stored(folders) == {}
    for path in states(output):
        assert all(bool(torch.isfinite(value).all()) for value in torch.load(path, weights_only=True)["parameters"].values())


def test_auto_is_a_lora_on_a_cpu_and_all_weights_where_they_fit(
    node: Node, model: Any, tiny: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is reckoned with the text encoder, so that auto never chooses what is then refused."""
    asked: list[tuple[Any, memory.Estimate]] = []
    needed: list[tuple[memory.Estimate, str]] = []
    check = memory.check

    def roomy(device: Any, full: memory.Estimate, disk: int | None) -> Method:
        assert disk is not None
        asked.append((device, full))
        return "full"

    def noted(found: memory.Estimate, device: Any, method: str) -> None:
        needed.append((found, method))
        check(found, device, method)

    assert any("lora_up" in name for name in node(method="auto", steps=0, weight_steps=1).lora)
    monkeypatch.setattr(memory, "method_for", roomy)
    monkeypatch.setattr(memory, "check", noted)
    assert any(name.endswith(".diff") for name in node(method="auto", steps=0, weight_steps=1).lora)
    ((device, whole),) = asked
    ((found, method),) = needed
    assert (device, method) == (model.load_device, "full")
    assert whole.learning >= found.learning > 16 * sum(value.numel() for value in model.model.diffusion_model.parameters())
    assert whole.activations == found.activations > 0


@pytest.mark.parametrize(("method", "instead"), [("full", "`method` lora"), ("lora", "a smaller rank, or a smaller model")])
def test_too_little_memory_is_said_before_anything_is_encoded(
    tiny: Painter, node: Node, monkeypatch: pytest.MonkeyPatch, method: Method, instead: str
) -> None:
    monkeypatch.setattr("maskprompt.training.engine.memory.total_memory", lambda device: 1024**2)
    monkeypatch.setattr(tiny.vae, "encode", lambda *given: pytest.fail("too early"))
    with pytest.raises(ValueError, match=rf"this training needs about .* What would do: {instead}"):
        node(method=method)


def without_numbers() -> Tensor:
    image = picture()
    image[0, 5, 5, 1] = torch.nan
    return image


def wide_clip() -> Any:
    """A text encoder of SD 1.5's width."""
    part = SimpleNamespace(transformer=SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(2, 768)))
    return SimpleNamespace(cond_stage_model=SimpleNamespace(named_children=lambda: [("clip_l", part)]))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"words": ""}, "words is empty. Write one plain word for each subject"),
        ({"words": " , ;\n"}, "words is empty"),
        ({"words": "ball"}, r"1 word \(ball\) but 2 masks: give one mask for each word"),
        ({"words": "ball, star, bird"}, r"3 words \(ball, star, bird\) but 2 masks"),
        ({"masks": marks()[:1]}, "2 words .* but 1 mask: "),
        ({"masks": torch.cat([marks()[:1], torch.zeros(1, SIDE, SIDE)])}, r"mask 2 \(star\) marks nothing: point SAM Mask at that subject"),
        ({"masks": marks(80, 80)}, "the picture is 64 x 64 pixels but its masks 80 x 80"),
        ({"masks": picture()}, "masks: a mask has the shape"),
        ({"image": picture(256, 256), "masks": line()}, r"mask 2 \(star\) marks too little: .* 64 x 64 pixels .* a larger `size`"),
        ({"image": without_numbers()}, r"holds values that are no numbers \(NaN\)"),
        ({"name": "  "}, "name is empty. Write into it what the files shall be called"),
        ({"name": "my fox"}, "'my fox-ball' cannot be a handle's name: .* Use letters from a to z, digits, - and _ only"),
        ({"name": "../fox"}, "'../fox-ball' cannot be a handle's name"),
        ({"name": "fox(1)"}, r"'fox\(1\)-ball' cannot be a handle's name"),
        ({"name": "\u043b\u0438\u0441\u0430"}, "'\u043b\u0438\u0441\u0430-ball' cannot be a handle's name"),
        ({"name": "f" * 120}, r"'f{40}\.\.\.' is too long for a handle's name \(125 characters, at most 100\). Use a shorter name"),
        ({"words": "ball, " + "star " * 40}, "'fox-star-.* is too long for a handle's name .* one plain word for each subject"),
        ({"clip": None}, "no text encoder was given"),
        ({"clip": wide_clip()}, "the text encoder gives text of width 768 and the model takes 128: wire the CLIP of the same checkpoint"),
        ({"vae": None}, "no VAE was given"),
        ({"vae": SimpleNamespace(latent_channels=16)}, "the VAE makes latents of 16 channels and the model takes 4"),
        ({"model": Flux()}, r"a UNet model is needed.*this one is no UNet \(Linear\)"),
        ({"size": 512}, "picture 1 is 64 x 64 pixels, too small for crops of 512"),
        ({"size": 68}, "size is 68: the side of the training crops is a multiple of 8"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_encoded_or_trained(
    tiny: Painter, node: Node, folders: Path, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], message: str
) -> None:
    def fail(*given: Any, **more: Any) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr(tiny.vae, "encode", fail)
    monkeypatch.setattr(tiny.clip, "encode_from_tokens_scheduled", fail)
    monkeypatch.setattr("maskprompt.training.engine.learner.twin", fail)
    monkeypatch.setattr("maskprompt.training.engine.text_learner.twin", fail)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        node(**inputs)
    assert stored(folders) == {}


def test_a_word_that_the_text_encoder_does_not_know(tiny: Painter, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.vae, "encode", lambda *given: pytest.fail("too early"))
    with pytest.raises(ValueError, match="the text encoder reads nothing where a subject's word says 'embedding:nope'"):
        node(words="ball, embedding:nope")


def test_what_is_doubtful_is_warned_of(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    masks = marks()
    masks[1, :, : SIDE // 2] = masks[0, :, : SIDE // 2]
    with caplog.at_level(logging.WARNING):
        node(image=picture().expand(2, -1, -1, -1), masks=masks, attention_weight=0.0, steps=1, weight_steps=0)
    said_of = [record.getMessage() for record in caplog.records]
    assert len(said_of) == 3
    assert "learns from one picture; the first of 2 is taken" in said_of[0]
    assert "masks 1 and 2 share 100 % of the smaller one" in said_of[1]
    assert "with attention_weight 0 mask_attention_weight has no effect" in said_of[2]


def test_a_model_without_inpainting_channels_learns(node: Node) -> None:
    """SD 1.5's own blocks, a picture with alpha and masks of several kinds; previews too."""
    image = torch.cat([picture(), torch.ones(1, SIDE, SIDE, 1)], 3)
    ran = node(model=random_model(in_channels=4), image=image, masks=marks()[:, None] > 0.5, steps=1, weight_steps=1, preview_every=1)
    assert all(bool(value.isfinite().all()) for value in ran.lora.values())
    assert all(loss > 0 for loss in ran.loss["loss"])


def test_two_trainings_in_a_row_leave_nothing_behind(node: Node, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that learned are gone as soon as the node returns, and tensors take as much memory as after the one before."""
    copies: list[weakref.ref[Any]] = []
    made = Learner.__init__

    def noted(self: Learner, *given: Any, **more: Any) -> None:
        made(self, *given, **more)
        assert self.text is not None
        networks = self.network, self.text.adapted.patcher.model
        copies.extend(weakref.ref(part) for network in networks for part in network.modules())

    def alive() -> int:
        gc.collect()
        held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in gc.get_objects() if type(value) in KINDS}
        return sum(held.values())

    monkeypatch.setattr(Learner, "__init__", noted)
    found: list[int] = []
    for method in ("full", "lora", "lora"):
        gc.disable()  # no collection by chance
        try:
            ran = node(method=method, steps=1, weight_steps=1, gradient_checkpointing=True)
            left = [type(ref()).__name__ for ref in copies if ref() is not None]
        finally:
            gc.enable()
        assert left == []
        taken(folders)
        del ran
        found.append(alive())
    assert len(copies) > 3 * 100
    assert found[2] <= found[1] * 1.001


KINDS = (Tensor, nn.Parameter)
