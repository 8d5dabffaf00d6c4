"""Train Poseable Subjects, called as ComfyUI calls it, on a small UNet of random weights, with the tiny model's text encoder and VAE."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models.mcgm.file import LoadedEncoder
from maskprompt.nodes.mcgm import EncodeMasks, LoadMCGM
from maskprompt.nodes.train_mcgm import TrainMCGM
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm.options import PRESETS, Options
from torch import Tensor

from demo.painter import Painter

from ...support.dreamcom import kept_states as states
from ...support.learners import predicted
from ...support.mask_encoders import blobs
from ...support.mcgm import painted
from ...support.train_mcgm import (
    NAMES,
    SIDE,
    Node,
    Ran,
    Stored,
    alike,
    marks,
    model,
    node,
    output,
    picture,
    quick_previews,
    said,
    stored,
    taken,
    tiny,
)

__all__ = ["model", "node", "output", "quick_previews", "tiny"]  # fixtures

HANDLES = "embedding:fox-ball and embedding:fox-star"


@torch.inference_mode()
def posed(clip: Any, encoder: LoadedEncoder, words: str, masks: Tensor) -> tuple[Any, Any]:
    """Text nodes and Pose by Masks."""
    prompt = f"a photo of {words}"
    found = EncodeMasks.execute(said(clip, prompt), said(clip, ""), encoder, masks=masks, prompt=prompt).args
    return found[0], found[1]


def test_what_it_leaves_works_together(node: Node, model: Any, folders: Path, output: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Handles in stock text nodes, masks by the encoder, finite pictures; and everything has learned something."""
    with caplog.at_level(logging.WARNING):
        ran = node(steps=3, weight_steps=3)
    assert not caplog.records
    assert (ran.words, len(ran.loss["loss"])) == (HANDLES, 6)
    assert all(0 < loss < 100 for loss in ran.loss["loss"])
    assert states(output) == []
    found = stored(folders)
    assert sorted(found) == sorted(NAMES)
    for word in ("ball", "star"):
        ((vector, *_),) = [entry for entry in ran.clip.tokenize(f"embedding:fox-{word}")["l"][0] if isinstance(entry[0], Tensor)]
        assert torch.equal(vector, found[f"embeddings/fox-{word}"][0]["emb_params"][0])
        table = ran.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
        moved = float((vector - table[ran.clip.tokenize(word)["l"][0][1][0]]).abs().max())
        assert 1e-4 < moved < 0.1 * float(vector.abs().max())  # it has learned, and is still much like its word
    assert {name.split(".")[0] for name in ran.lora} == {"diffusion_model", "text_encoders"}
    assert ran.lora.keys() == found["loras/fox"][0].keys()
    assert all(torch.equal(value, found["loras/fox"][0][name]) for name, value in ran.lora.items())
    for room in ("diffusion_model", "text_encoders"):
        assert any(bool(value.any()) for name, value in ran.lora.items() if name.startswith(room) and "lora_up" in name)

    assert ran.encoder is not None
    assert [handle.text for handle in ran.encoder.about.handles] == HANDLES.split(" and ")
    assert (ran.encoder.network.mode, ran.encoder.name) == ("bound", "fox.safetensors")
    positive, negative = posed(ran.clip, ran.encoder, ran.words, blobs(2, 128, 128))
    assert (positive[0][0].shape, negative[0][0].shape) == ((1, 79, 128), (1, 79, 128))
    pictures = [painted(ran.model, posed(ran.clip, ran.encoder, ran.words, blobs(2, 128, 128, seed))) for seed in (0, 5)]
    pictures += [painted(ran.model, (said(ran.clip, text), said(ran.clip, ""))) for text in (HANDLES, "ball and star")]
    pictures += [painted(model, (said(ran.clip, HANDLES), said(ran.clip, "")))]
    assert all(bool(torch.isfinite(latent).all()) for latent in pictures)
    assert all(not torch.equal(one, other) for number, one in enumerate(pictures) for other in pictures[:number])


@pytest.mark.parametrize(("method", "tokens"), [("lora", "bound"), ("full", "bound"), ("lora", "paper")])
def test_load_mcgm_gives_the_same_to_the_bit(node: Node, tiny: Painter, model: Any, method: Method, tokens: str) -> None:
    """Of the saved files: conditionings and sampled latents; and none of it is what the untrained model and CLIP give."""
    ran = node(method=method, mask_tokens=tokens)
    assert ran.encoder is not None
    assert ran.encoder.network.mode == tokens
    assert LoadMCGM.validate_inputs("fox.safetensors") is True
    with torch.inference_mode():
        parts: Any = LoadMCGM.execute(model, tiny.clip, "fox.safetensors").args
    loaded = Ran._make([*parts, ran.lora, ran.loss])
    assert loaded.words == ran.words
    assert loaded.encoder is not None
    assert loaded.encoder.about == ran.encoder.about
    found = [posed(one.clip, ran.encoder, HANDLES, blobs(2, 128, 128)) for one in (ran, loaded, ran._replace(clip=tiny.clip))]
    found[1] = posed(loaded.clip, loaded.encoder, HANDLES, blobs(2, 128, 128))
    for half in (0, 1):
        assert torch.equal(found[0][half][0][0], found[1][half][0][0])
        assert not torch.equal(found[0][half][0][0], found[2][half][0][0])
    latents = [painted(one, conditionings) for one, conditionings in zip((ran.model, loaded.model, model), found, strict=True)]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], painted(model, found[0]))


def test_no_steps_at_all_are_the_words_and_the_model_as_they_were(node: Node, tiny: Painter, model: Any, folders: Path) -> None:
    """A handle begins as its word, and a LoRA and the mask encoder as nothing and as random numbers."""
    ran = node(steps=0, weight_steps=0, words="ball; striped star")
    found = stored(folders)
    table = tiny.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    assert (ran.loss, ran.words) == ({"loss": []}, "embedding:fox-ball and embedding:fox-striped-star")
    for word, name in (("ball", "fox-ball"), ("striped star", "fox-striped-star")):
        ids = [token for token, _, place in tiny.clip.tokenize(word, return_word_ids=True)["l"][0] if place]
        assert torch.equal(found[f"embeddings/{name}"][0]["emb_params"], table[ids].detach().float().mean(0, keepdim=True))
    assert torch.equal(said(ran.clip, "embedding:fox-ball at sea")[0][0], said(tiny.clip, "ball at sea")[0][0])
    assert torch.equal(predicted(ran.model), predicted(model))


def test_a_second_training_of_the_same_name_overwrites_nothing(node: Node, folders: Path) -> None:
    ran = [node()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folders / "models").rglob("*.safetensors")}
    ran += [node(seed=1), node(name=" fox ", seed=2)]
    assert [one.words for one in ran] == [
        HANDLES, "embedding:fox-2-ball and embedding:fox-2-star", "embedding:fox-3-ball and embedding:fox-3-star",
    ]  # fmt: skip
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    found = stored(folders)
    assert sorted(found) == sorted(name.replace("fox", f"fox{number}") for name in NAMES for number in ("", "-2", "-3"))
    lists: Any = LoadMCGM.define_schema().inputs[2]
    assert lists.options == ["fox-2.safetensors", "fox-3.safetensors", "fox.safetensors"]
    for number in (1, 2):
        (loaded,) = [LoadMCGM.execute(ran[0].model, ran[0].clip, f"fox-{number + 1}.safetensors", 0.0).args]
        assert loaded[3] == ran[number].words
        assert loaded[2].about.lora == f"fox-{number + 1}.safetensors"


@pytest.mark.parametrize("length", [98, 99, 100])
def test_a_handles_name_of_the_greatest_length_that_is_taken_gets_a_number_too(node: Node, folders: Path, length: int) -> None:
    """It is not refused when all is learned and only to be saved."""
    name = "f" * (length - len("-ball"))
    for number in ("", "-2"):
        words = f"embedding:{name}{number}-ball and embedding:{name}{number}-ball-2"
        assert node(name=name, words="ball, ball", steps=0, weight_steps=0).words == words
    own = [
        f"{room}/{name}{end}" for room, end in zip(("embeddings", "embeddings", "loras", "mcgm"), ("-ball", "-ball-2", "", ""), strict=True)
    ]
    assert stored(folders).keys() == {part.replace(name, f"{name}{number}") for part in own for number in ("", "-2")}


def test_two_subjects_of_one_word(node: Node, folders: Path) -> None:
    assert node(words="ball\nball", steps=1, weight_steps=0).words == "embedding:fox-ball and embedding:fox-ball-2"
    found = stored(folders)
    assert not torch.equal(found["embeddings/fox-ball"][0]["emb_params"], found["embeddings/fox-ball-2"][0]["emb_params"])


def test_the_same_seed_trains_the_same_and_another_one_another(node: Node, folders: Path) -> None:
    """Up to the largest that ComfyUI's fields give; and with previews, which take part in nothing."""
    found: list[Stored] = []
    for given in ({}, {"preview_every": 1}, {"seed": 1}, {"seed": 2**53}):
        node(**given)
        found.append(taken(folders))
    assert alike(found[0], found[1])
    for number, other in ((0, 2), (0, 3), (2, 3)):
        for name in NAMES:
            assert not alike({name: found[number][name]}, {name: found[other][name]})


def shown_options(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> tuple[Options, Sequence[Any]]:
    """What the node would train with: its options; name, previews and resuming."""
    found: list[Any] = []

    class EnoughError(Exception): ...

    def stop(cls: Any, *given: Any) -> None:
        found.extend(given)
        raise EnoughError

    monkeypatch.setattr(TrainMCGM, "_trained", classmethod(stop))
    with pytest.raises(EnoughError):
        run()
    return found[5], found[6:]


def test_an_input_left_out_is_its_default(tiny: Painter, node: Node, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services leave optional inputs out. Their defaults in the schema and in the node are two places."""
    inputs = TrainMCGM.GET_SCHEMA().inputs
    defaults: dict[str, Any] = {part.id: getattr(part, "default", None) for part in inputs}
    defaults |= {"model": model, "clip": tiny.clip, "vae": tiny.vae, "image": picture(), "masks": marks(), "words": "ball, star"}
    defaults |= {"size": SIDE}
    assert {part.id for part in inputs if part.optional} >= {"mask_tokens", "resume", "background_weight"}
    required = {part.id: defaults[part.id] for part in inputs if not part.optional}
    every, some = (shown_options(monkeypatch, lambda given=given: TrainMCGM.execute(**given)) for given in (defaults, required))
    assert every == some
    assert every[0] == replace(every[0], words=("ball", "star"), method="auto", rate=None, seed=0, batch=1, checkpointing=True)
    assert every[1] == ["scene", 100, True]
    parameters = inspect.signature(TrainMCGM.execute).parameters
    assert parameters.keys() - {"given"} <= required.keys()


def test_every_choice_reaches_the_training(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, more = shown_options(monkeypatch, node)
    assert (usual.words, usual.steps, usual.weight_steps, usual.rate, usual.rank) == (("ball", "star"), 2, 2, 1e-3, 2)
    choices: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"words": " big ball ;star, "}, {"words": ("big ball", "star")}), ({"steps": 7}, {"steps": 7}), ({"seed": 5}, {"seed": 5}),
        ({"weight_steps": 7}, {"weight_steps": 7}), ({"learning_rate": 0.0}, {"rate": None}), ({"learning_rate": 0.5}, {"rate": 0.5}),
        ({"method": "full"}, {"method": "full"}), ({"rank": 9}, {"rank": 9}), ({"batch_size": 3}, {"batch": 3}),
        ({"size": 96}, {"size": 96}), ({"background": "original"}, {"background": "original"}), ({"move_subjects": False}, {"move": False}),
        ({"attention_weight": 0.5}, {"attention_weight": 0.5}), ({"mask_attention_weight": 0.7}, {"mask_attention_weight": 0.7}),
        ({"background_weight": 0.9}, {"background_weight": 0.9}), ({"prior_weight": 0.6}, {"prior_weight": 0.6}),
        ({"mask_tokens": "paper"}, {"mode": "paper"}), ({"mask_tokens": "off"}, {"masks": False}),
        ({"gradient_checkpointing": True}, {"checkpointing": True}), ({"average": 0.9}, {"average": 0.9}),
        ({"preset": "paper"}, PRESETS["paper"]), ({"variations": 9}, {"variations": 9}),
    ]  # fmt: skip
    for given, wanted in choices:
        found, others = shown_options(monkeypatch, lambda given=given: node(**given))
        assert found == replace(usual, **wanted), given
        assert found != usual
        assert others == more == ["fox", 0, True]
    assert shown_options(monkeypatch, lambda: node(name="owl", preview_every=3, resume=False)) == (usual, ["owl", 3, False])
    settings = {part.id for part in TrainMCGM.GET_SCHEMA().inputs} - {"model", "clip", "vae", "image", "masks"}
    assert settings == {*(name for given, _ in choices for name in given), "name", "preview_every", "resume"}
