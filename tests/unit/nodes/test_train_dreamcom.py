"""Train a Subject, the node: what it gives, refuses, shows, and leaves when it is cancelled."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from maskprompt.nodes import progress as node_progress
from maskprompt.training.data import references
from maskprompt.training.dreamcom import examples as dreamcom
from maskprompt.training.dreamcom.job import ready
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import loop
from maskprompt.training.engine.learner import Learner
from torch import Tensor

from demo.painter import Painter

from ...support.clips import clip_of
from ...support.dreamcom import SIZE, Ran, box_masks, forget, quick_previews, reference_pictures, run_node, states, stop_at, tiny
from ...support.learners import roughened
from ...support.models import random_model

__all__ = ["quick_previews", "tiny"]  # fixtures


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ran]]:
    """`node(tiny, model=..., steps=..., ...)` is `run_node` with an output folder of its own."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    yield run_node
    gc.collect()


@pytest.mark.parametrize("method", ["auto", "full"])
def test_it_trains_and_hands_on_what_stock_nodes_take(
    tiny: Painter, node: Callable[..., Ran], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a preview, in inference mode, from a MODEL that Load Checkpoint made there."""
    shown: list[Any] = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: shown.append((value, preview))
    )
    with torch.inference_mode():
        loaded = Painter()
    before = {name: value.clone() for name, value in loaded.model.model.state_dict().items()}
    pictures = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    painted = loaded.inpaint(pictures, box_masks(1), ["a red ball"], 0, steps=2)
    with caplog.at_level(logging.WARNING):
        model, lora, losses, steps, prompt = node(loaded, method=method, steps=4, preview_every=2, seed=2**53, gradient_checkpointing=True)
    assert not caplog.records
    assert (steps, prompt) == (4, "a photo of sks ball")
    assert len(losses["loss"]) == 4
    assert all(0 < loss < 10 for loss in losses["loss"])
    assert [value for value, _ in shown[-4:]] == [2, 3, 4, 5]
    assert [preview is not None for _, preview in shown[-4:]] == [False, True, False, False]
    kind, picture, largest = shown[-3][1]
    assert (kind, picture.size, largest) == ("JPEG", (SIZE, SIZE), 512)
    assert ("diffusion_model.out.2.diff" if method == "full" else "diffusion_model.out.2.lora_up.weight") in lora
    assert states(tmp_path) == []
    with torch.inference_mode():
        stock, _ = comfy.sd.load_lora_for_models(loaded.model, None, lora, 1.0, 0)
    results = [loaded.inpaint(pictures, box_masks(1), [prompt], 0, steps=2, model=one) for one in (loaded.model, model, stock)]
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[0], results[1])
    assert torch.equal(loaded.inpaint(pictures, box_masks(1), ["a red ball"], 0, steps=2), painted)
    comfy.model_management.unload_all_models()
    assert all(torch.equal(before[name], value) for name, value in loaded.model.model.state_dict().items())


@pytest.mark.parametrize(("method", "average"), [("lora", 0.9), ("full", 0.0)])
def test_cancelled_and_run_again_it_ends_as_if_nothing_had_been(
    tiny: Painter, node: Callable[..., Ran], tmp_path: Path, method: str, average: float
) -> None:
    """Also where the model was sampled from in between, and where previews and another way to compute blocks are asked for now."""
    options = {"method": method, "average": average, "steps": 3, "seed": 3}
    _, wanted, losses, _, _ = node(tiny, **options)
    forget(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(2, patch)  # one report for the crops, one for the first step
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node(tiny, **options)
    (kept,) = states(tmp_path)
    assert torch.load(kept)["step"] in (1, 2)  # ComfyUI asks for it inside a step too
    tiny.paint(["a red ball"], 0, size=64, steps=1)
    _, lora, again, steps, _ = node(tiny, **options, preview_every=2, gradient_checkpointing=True)
    assert steps == 3
    assert again["loss"] == pytest.approx(losses["loss"], rel=1e-4)
    for name in wanted:
        torch.testing.assert_close(lora[name], wanted[name], atol=1e-5, rtol=1e-3)
    assert states(tmp_path) == []


def test_resume_off_begins_again(tiny: Painter, node: Callable[..., Ran], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, wanted, _, _, _ = node(tiny, steps=2)
    forget(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node(tiny, steps=2)
    (kept,) = states(tmp_path)
    spoiled = torch.load(kept)
    spoiled["parameters"] = {name: value + 1 for name, value in spoiled["parameters"].items()}
    torch.save(spoiled, kept)
    _, lora, _, _, _ = node(tiny, steps=2, resume=False)
    assert all(torch.equal(lora[name], wanted[name]) for name in wanted)
    assert states(tmp_path) == []


def test_cancelled_while_crops_are_encoded(tiny: Painter, node: Callable[..., Ran], tmp_path: Path) -> None:
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        node(tiny)
    assert states(tmp_path) == []
    assert node(tiny)[3] == 1


def test_a_preview_that_fails_is_no_reason_to_stop(
    tiny: Painter, node: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, wanted, _, _, _ = node(tiny, steps=2)
    forget(tmp_path)

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("no memory for the VAE")

    monkeypatch.setattr(tiny.vae, "decode", fail)
    with caplog.at_level(logging.WARNING):
        _, lora, _, _, _ = node(tiny, steps=2, preview_every=1)
    assert all(torch.equal(lora[name], wanted[name]) for name in wanted)
    assert "The preview failed (OutOfMemoryError: no memory for the VAE); training goes on." in caplog.text


def test_a_rate_that_is_far_too_high_is_said(tiny: Painter, node: Callable[..., Ran], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the loss is not a number \(NaN\) at step \d+: the learning rate \(1e\+20\) is too high"):
        node(tiny, steps=30, learning_rate=1e20, method="full")
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert all(one.model is not None for one in loaded)
    for kept in states(tmp_path):
        assert all(bool(torch.isfinite(value).all()) for value in torch.load(kept)["parameters"].values())


def with_nan() -> Tensor:
    images = reference_pictures(2)
    images[1, 5, 5, 1] = torch.nan
    return images


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"masks": [torch.cat([box_masks(1), torch.zeros(1, 64, 64)])]}, "the mask of picture 2 marks nothing"),
        ({"masks": [box_masks(3)]}, "2 pictures but 3 masks"),
        ({"masks": [box_masks(1), box_masks(1, 80)]}, "picture 2 is 64 x 64 pixels but its mask 80 x 80"),
        ({"images": []}, "no picture was given"),
        ({"images": [with_nan()]}, r"picture 2 holds values that are no numbers \(NaN\)"),
        ({"model": 4}, "takes 9 channels; this one takes 4 channels"),
        ({"token": "  "}, "token is empty"),
        ({"noun": ""}, "noun is empty"),
        ({"noun": "a dog that my aunt found on a rainy day"}, "pieces long for the text encoder"),
        ({"size": 512}, "picture 1 is 64 x 64 pixels, too small for crops of 512"),
        ({"size": 68}, "size is 68: the side of the training crops is a multiple of 8"),
        ({"clip": None}, "no text encoder was given"),
        ({"vae": None}, "no VAE was given"),
        ({"vae": SimpleNamespace(latent_channels=16)}, "the VAE makes latents of 16 channels and the model takes 4: wire the VAE"),
        (
            {"clip": clip_of(l=768)},
            "the text encoder gives text of width 768 and the model takes 128: wire the CLIP of the same checkpoint",
        ),
        ({"clip": clip_of(l=128, g=64)}, "the text encoder gives text of width 192 and the model takes 128"),
    ],
)
def test_bad_input_is_refused_before_anything_is_encoded_or_trained(
    tiny: Painter, node: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], message: str
) -> None:
    def fail(*given: Any, **more: Any) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr(tiny.vae, "encode", fail)
    monkeypatch.setattr(tiny.clip, "encode_from_tokens_scheduled", fail)
    monkeypatch.setattr("maskprompt.training.engine.learner.twin", fail)
    if inputs.get("model") == 4:
        inputs = {"model": random_model(in_channels=4)}
    with pytest.raises(ValueError, match=message):
        node(tiny, **inputs)


def test_too_little_memory_is_said_before_anything_is_encoded(
    tiny: Painter, node: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskprompt.training.engine.memory.total_memory", lambda device: 1024**2)
    monkeypatch.setattr(tiny.vae, "encode", lambda *given: pytest.fail("too early"))
    with pytest.raises(ValueError, match=r"this training needs about .* What would do: `method` lora"):
        node(tiny, method="full")


def test_pictures_of_several_sizes_several_masks_and_a_batch(tiny: Painter, node: Callable[..., Ran]) -> None:
    images = [reference_pictures(2), reference_pictures(1, 96)[:, :70]]
    masks = [box_masks(1), box_masks(1), box_masks(1, 96)[:, :70]]
    _, lora, losses, _, _ = node(tiny, images=images, masks=masks, batch_size=2, steps=2)
    assert len(losses["loss"]) == 2
    assert all(bool(torch.isfinite(value).all()) for value in lora.values())


def test_masked_attention_and_a_box_margin_matter(tiny: Painter, node: Callable[..., Ran]) -> None:
    first, second, third = (node(tiny, **given)[1] for given in ({}, {"masked_attention": False}, {"box_margin": 0.5}))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_the_model_that_comes_out_is_on_top_of_a_lora(tiny: Painter, node: Callable[..., Ran]) -> None:
    from ...support.learners import predicted, with_another_lora

    patched = with_another_lora(tiny.model)
    model, lora, _, _, _ = node(tiny, model=patched, learning_rate=0.05)
    alone, _ = comfy.sd.load_lora_for_models(tiny.model, None, lora, 1.0, 0)
    found = [predicted(one) for one in (tiny.model, patched, alone, model)]
    assert all(not torch.equal(one, other) for number, one in enumerate(found) for other in found[:number])


def test_the_node_says_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line under the node through ComfyUI's server, if there is one."""
    import sys
    import types

    lines: list[tuple[str, str]] = []
    server: Any = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(send_progress_text=lambda *given: lines.append(given)))
    monkeypatch.setitem(sys.modules, "server", server)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda *given, **more: None)
    shown = node_progress.TrainingProgress("7", 20)
    shown.tell("Encoding crops", 8, 20)
    after = shown.watcher(0, lambda: pytest.fail("no preview was asked for"))
    after(loop.Progress(2, [4.0, 1.0]))
    assert lines == [("Encoding crops: 8 of 20", "7"), ("Step 2 of 20, loss 2.5000", "7")]


def test_previews_show_what_was_learned(tiny: Painter) -> None:
    """Another picture for another adapter; the same one for the same; with and without masked attention."""
    pictures = references.pair([reference_pictures(2)], [box_masks(2)])
    options = Options(steps=2, size=SIZE)
    found = dreamcom.encode(pictures, tiny.vae, options)
    texts = [tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(text)) for text in ("a photo of sks ball", "")]
    learner = Learner(tiny.model, "lora", 4)
    with learner.loaded():
        job = ready(learner, texts, options, vae=tiny.vae, examples=found)
        first, again = (job.painted() for _ in range(2))
        open_ = ready(learner, texts, replace(options, masked_attention=False), vae=tiny.vae, examples=found).painted()
        roughened(learner)
        other = job.painted()
    assert first is not None
    assert again is not None
    assert open_ is not None
    assert other is not None
    assert first.shape == (1, SIZE, SIZE, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, open_)
    assert not torch.equal(first, other)
