"""Train MCGM, called as ComfyUI calls it, on a small UNet of random weights, with the tiny model's text encoder and VAE."""

from __future__ import annotations

import gc
import inspect
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io
from maskprompt.models import files
from maskprompt.models.mcgm.file import FOLDER, LoadedEncoder
from maskprompt.nodes.mcgm import EncodeMasks, LoadMCGM
from maskprompt.nodes.train_mcgm import TrainMCGM
from maskprompt.training.engine import memory
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.trainable_weights import Method
from maskprompt.training.mcgm import examples as mcgm_samples
from maskprompt.training.mcgm import loss as mcgm
from maskprompt.training.mcgm.options import PRESETS, Options
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.painter import Painter

from ..conftest import random_model
from ..models.test_mask_encoder import blobs
from ..training.test_dreamcom_loss import kept_states as states
from ..training.test_learner import fingerprint, predicted, unchanged, unet_of, with_another_lora
from ..training.test_references import Flux
from .test_encode_masks import painted
from .test_train_dreamcom_states import cancelled_at

SIDE = 64
NAMES = ("embeddings/fox-ball", "embeddings/fox-star", "loras/fox", "mcgm/fox")
HANDLES = "embedding:fox-ball and embedding:fox-star"

Stored = dict[str, tuple[dict[str, Tensor], dict[str, str]]]
"""Tensors and metadata of each file in the models folder, by its name there."""


class Ran(NamedTuple):
    """The node's outputs."""

    model: Any
    clip: Any
    encoder: LoadedEncoder | None
    words: str
    lora: dict[str, Tensor]
    loss: dict[str, list[float]]


Node = Callable[..., Ran]


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """For its text encoder and VAE."""
    return Painter()


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights, and a LoRA on top."""
    return with_another_lora(unet_of(32, small=True))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def node(tiny: Painter, model: Any, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """`node(steps=..., ...)` runs Train MCGM as ComfyUI's executor does, in inference mode; a ball and a star unless said otherwise.

    Of few examples: each has to be encoded, however few steps there are.
    """
    monkeypatch.setattr(mcgm_samples, "EXAMPLES", 4)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))
    for kind in ("embeddings", "loras"):
        files.register_folder(kind)
    monkeypatch.setattr(tiny.clip.tokenizer.clip_l, "embedding_directory", folder_paths.get_folder_paths("embeddings"))

    def run(**inputs: Any) -> Ran:
        given = {
            "model": model, "clip": tiny.clip, "vae": tiny.vae, "image": picture(), "masks": marks(), "words": "ball, star", "name": "fox",
            "steps": 2, "weight_steps": 2, "method": "lora", "learning_rate": 1e-3, "rank": 2, "batch_size": 1, "size": SIDE, "seed": 0,
            "preview_every": 0, "gradient_checkpointing": False,
        } | inputs  # fmt: skip
        prepared: Any = TrainMCGM.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})  # pyright: ignore[reportArgumentType]
        with torch.inference_mode():
            return Ran(*prepared.execute(**given).args)

    yield run
    gc.collect()


def marks(height: int = SIDE, width: int = SIDE) -> Tensor:
    """A tall subject on the left and a small one on the right."""
    found = torch.zeros(2, height, width)
    found[0, height // 8 : height * 3 // 4, width // 16 : width * 7 // 16] = 1
    found[1, height * 3 // 8 : height * 7 // 8, width * 5 // 8 : width * 15 // 16] = 1
    return found


def picture(height: int = SIDE, width: int = SIDE) -> Tensor:
    """Noise with a red and a blue subject."""
    found = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))
    for mask, colour in zip(marks(height, width), ((0.9, 0.1, 0.1), (0.1, 0.2, 0.9)), strict=True):
        found = torch.where(mask[None, ..., None] > 0, torch.tensor(colour), found)
    return found


def stored(root: Path) -> Stored:
    found: Stored = {}
    for path in (root / "models").rglob("*"):
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                name = path.relative_to(root / "models").as_posix().removesuffix(".safetensors")
                found[name] = load_file(path), file.metadata() or {}
    return found


def taken(root: Path) -> Stored:
    """What is stored, and no longer is."""
    found = stored(root)
    for path in [path for path in (root / "models").rglob("*.safetensors")]:
        path.unlink()
    return found


def alike(one: Stored, other: Stored) -> bool:
    """The same files with the same tensors, to the bit, and the same metadata."""
    return one.keys() == other.keys() and all(
        one[name][1] == other[name][1]
        and one[name][0].keys() == other[name][0].keys()
        and all(torch.equal(value, other[name][0][key]) for key, value in one[name][0].items())
        for name in one
    )


@torch.inference_mode()
def said(clip: Any, text: str) -> Any:
    """What a stock text node makes of it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@torch.inference_mode()
def posed(clip: Any, encoder: LoadedEncoder, words: str, masks: Tensor) -> tuple[Any, Any]:
    """Text nodes and Encode Masks."""
    prompt = f"a photo of {words}"
    found = EncodeMasks.execute(said(clip, prompt), said(clip, ""), encoder, masks=masks, prompt=prompt).args
    return found[0], found[1]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of either phase that are worked out from now on."""
    found: list[int] = []
    loss = mcgm.Loss.__call__

    def noted(self: mcgm.Loss, step: int, generator: torch.Generator) -> Tensor:
        found.append(step)
        return loss(self, step, generator)

    monkeypatch.setattr(mcgm.Loss, "__call__", noted)
    return found


def steps_kept(output: Path) -> dict[str, int]:
    """How far the kept states are, by their phase; of one training."""
    assert len(states(output)) <= 2
    return {path.stem.split("-")[2]: torch.load(path, weights_only=True)["step"] for path in states(output)}


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
        ({"preset": "paper"}, PRESETS["paper"]),
    ]  # fmt: skip
    for given, wanted in choices:
        found, others = shown_options(monkeypatch, lambda given=given: node(**given))
        assert found == replace(usual, **wanted), given
        assert found != usual
        assert others == more == ["fox", 0, True]
    assert shown_options(monkeypatch, lambda: node(name="owl", preview_every=3, resume=False)) == (usual, ["owl", 3, False])
    settings = {part.id for part in TrainMCGM.GET_SCHEMA().inputs} - {"model", "clip", "vae", "image", "masks"}
    assert settings == {*(name for given, _ in choices for name in given), "name", "preview_every", "resume"}


Told = list[tuple[int, Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the bar was told: how far it is, and a preview or none."""
    found: Told = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: found.append((value, preview))
    )
    return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was sent through ComfyUI's server: text, node."""
    found: list[tuple[str, str]] = []
    server: Any = types.ModuleType("server")
    server.PromptServer = SimpleNamespace(instance=SimpleNamespace(send_progress_text=lambda *given: found.append(given)))
    monkeypatch.setitem(sys.modules, "server", server)
    return found


def test_bar_lines_and_previews(node: Node, told: Told, lines: list[tuple[str, str]]) -> None:
    """One bar for both phases, after a part for the pictures; a preview shows the subjects side by side."""
    ran = node(steps=3, weight_steps=2, preview_every=2, image=picture(64, 128), masks=marks(64, 128))
    means = [sum(ran.loss["loss"][: step + 1]) / (step + 1) for step in range(5)]
    assert [value for value, _ in told] == [0, 1, 2, 3, 4, 5, 6]
    assert lines == [
        ("Encoding crops: 2 of 4", "7"), ("Encoding crops: 4 of 4", "7"),
        *((f"Step {step} of 5, loss {mean:.4f}", "7") for step, mean in enumerate(means, 1)),
    ]  # fmt: skip
    assert [value for value, preview in told if preview is not None] == [3, 5]
    for _, preview in told:
        if preview is not None:
            kind, image, largest = preview
            assert (kind, image.size, largest) == ("JPEG", (2 * 96, 64), 512)
    assert told[3][1][1].tobytes() != told[5][1][1].tobytes()


def test_prior_preservation_is_told_of(node: Node, lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, folders: Path) -> None:
    """Its pictures are painted before the first step; and they matter."""
    monkeypatch.setattr("maskprompt.training.mcgm.prior.STEPS", 1)
    monkeypatch.setattr("maskprompt.training.mcgm.prior.AT_ONCE", 10)
    node(steps=1, weight_steps=1, prior_weight=1.0)
    assert [line for line, _ in lines if "ordinary" in line] == [f"Painting ordinary pictures: {count} of 20" for count in (10, 20)]
    assert lines.index(("Painting ordinary pictures: 20 of 20", "7")) < next(i for i, (line, _) in enumerate(lines) if "Step 1" in line)
    found = taken(folders)
    node(steps=1, weight_steps=1)
    assert not alike(found, stored(folders))


def test_a_preview_that_fails_is_no_reason_to_stop(
    tiny: Painter, node: Node, folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node()
    wanted = taken(folders)

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("no memory for the VAE")

    monkeypatch.setattr(tiny.vae, "decode", fail)
    with caplog.at_level(logging.WARNING):
        node(preview_every=1)
    assert "The preview failed (OutOfMemoryError: no memory for the VAE); training goes on." in caplog.text
    assert alike(stored(folders), wanted)


@pytest.mark.parametrize(
    ("method", "value", "kept", "left"),
    [("lora", 1, {}, [0, 1, 2, 0, 1, 2]), ("lora", 2, {"1": 1}, [1, 2, 0, 1, 2]), ("lora", 4, {"1": 3}, [0, 1, 2]),
     ("lora", 6, {"1": 3, "2": 2}, [2]), ("full", 6, {"1": 3, "2": 2}, [2])],
    ids=["while pictures are encoded", "in the first phase", "at the first's end", "in the second", "in the second, all weights"],
)  # fmt: skip
def test_interrupted_and_run_again_it_ends_as_if_nothing_had_been(
    node: Node, tiny: Painter, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, method: Method, value: int,
    kept: dict[str, int], left: list[int],
) -> None:  # fmt: skip
    """To the bit; what was done is not done again, and nothing is saved before the end. Meanwhile the model painted something."""
    given = {"method": method, "steps": 3, "weight_steps": 3, "seed": 4}
    ran = node(**given)
    wanted = taken(folders)
    with monkeypatch.context() as patch:
        cancelled_at(value, patch)
        with pytest.raises(InterruptProcessingException):
            node(**given)
    assert steps_kept(output) == kept
    assert stored(folders) == {}
    tiny.paint(["a red ball"], 0, size=64, steps=1)
    done = counted(monkeypatch)
    again = node(**given, preview_every=2)
    assert done == left
    assert again.loss["loss"] == pytest.approx(ran.loss["loss"], rel=1e-6)
    assert alike(stored(folders), wanted)
    assert states(output) == []


def test_a_state_is_of_one_training_alone(node: Node, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed begins by itself and leaves it; more steps, another name, other previews go on; fewer than are done are refused."""
    with monkeypatch.context() as patch:
        cancelled_at(5, patch)
        with pytest.raises(InterruptProcessingException):
            node(steps=2, weight_steps=3)
    assert steps_kept(output) == {"1": 2, "2": 2}
    done = counted(monkeypatch)
    node(seed=1)
    assert done == [0, 1, 0, 1]
    assert steps_kept(output) == {"1": 2, "2": 2}
    taken(folders)
    with pytest.raises(ValueError, match="this training has done 2 steps already, and 1 were asked for"):
        node(steps=2, weight_steps=1)
    assert steps_kept(output) == {"1": 2, "2": 2}
    done.clear()
    node(steps=2, weight_steps=4, name="owl", preview_every=3)
    assert done == [2, 3]
    assert sorted(stored(folders)) == sorted(name.replace("fox", "owl") for name in NAMES)
    assert states(output) == []


def test_what_the_second_phase_alone_knows_of_leaves_the_first_as_it_is(
    node: Node, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted there, and run with another rank: the first phase is not repeated, and the interrupted second one goes on later."""
    wanted: list[Stored] = []
    for rank in (2, 3):
        node(rank=rank)
        wanted.append(taken(folders))
    with monkeypatch.context() as patch:
        cancelled_at(1 + 3, patch)
        with pytest.raises(InterruptProcessingException):
            node()
    done = counted(monkeypatch)
    with caplog.at_level(logging.WARNING):
        node(rank=3)
        assert done == [0, 1]
        assert alike(taken(folders), wanted[1])
        assert steps_kept(output) == {"1": 2, "2": 1}
        done.clear()
        node()
    assert done == [1]
    assert alike(stored(folders), wanted[0])
    assert states(output) == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "longer", "left"),
    [(1 + 1, {"steps": 4}, [1, 2, 3, 0, 1]), (1 + 2, {"steps": 4}, [2, 3, 0, 1]), (1 + 3, {"weight_steps": 4}, [1, 2, 3])],
    ids=["in the first phase", "at the first's end", "in the second"],
)
def test_interrupted_and_made_longer_it_learns_from_the_same_pictures(
    node: Node, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, value: int, longer: dict[str, int], left: list[int]
) -> None:
    """It ends, to the bit, as one that was so long from the beginning."""
    monkeypatch.setattr(mcgm_samples, "EXAMPLES", 12)
    node(**longer)
    wanted = taken(folders)
    with monkeypatch.context() as patch:
        cancelled_at(value, patch)
        with pytest.raises(InterruptProcessingException):
            node()
    done = counted(monkeypatch)
    node(**longer)
    assert done == left
    assert alike(stored(folders), wanted)
    assert states(output) == []


def test_resume_off_begins_again(node: Node, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node()
    wanted = taken(folders)
    with monkeypatch.context() as patch:
        cancelled_at(1 + 3, patch)
        with pytest.raises(InterruptProcessingException):
            node()
    assert steps_kept(output) == {"1": 2, "2": 1}
    for path in states(output):
        spoiled = torch.load(path, weights_only=True)
        spoiled["parameters"] = {name: value + 1 for name, value in spoiled["parameters"].items()}
        torch.save(spoiled, path)
    done = counted(monkeypatch)
    node(resume=False)
    assert done == [0, 1, 0, 1]
    assert alike(stored(folders), wanted)
    assert states(output) == []


@pytest.mark.parametrize("what", ["embeddings", "loras", "mcgm", "a full disk"])
def test_a_save_that_fails_loses_nothing(node: Node, folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Where a folder should be there is a file, or the disk is full at the last of the files. The next run only saves."""
    node()
    wanted = taken(folders)
    with monkeypatch.context() as patch:
        if what == "a full disk":
            write = files.write_weights
            count = iter(range(9))

            def full(path: Any, *given: Any) -> None:
                if next(count) == 3:
                    Path(path).write_bytes(b"half of it")
                    raise SafetensorError("I/O error: No space left on device")
                write(path, *given)

            patch.setattr(files, "write_weights", full)
        else:
            (folders / "models" / what).rmdir()
            (folders / "models" / what).write_text("in the way", "utf-8")
        with pytest.raises(
            ValueError, match=r"(?s)could not be saved as 'fox': .*Free some space and press Run: the training's state is kept"
        ):
            node()
    if what != "a full disk":
        assert (folders / "models" / what).read_text("utf-8") == "in the way"
        (folders / "models" / what).unlink()
    assert stored(folders) == {}
    assert steps_kept(output) == {"1": 2, "2": 2}
    done = counted(monkeypatch)
    ran = node()
    assert done == []
    assert len(ran.loss["loss"]) == 4
    assert alike(stored(folders), wanted)
    assert states(output) == []


def test_without_mask_tokens_there_is_no_encoder_and_no_file_of_one(node: Node, folders: Path) -> None:
    """Break-A-Scene. Handles and LoRA are there; Encode Masks says where none comes from."""
    ran = node(mask_tokens="off")
    assert ran.encoder is None
    assert sorted(stored(folders)) == sorted(NAMES[:3])
    assert not any((folders / "models" / FOLDER).glob("*"))
    positive = said(ran.clip, ran.words)
    negative = said(ran.clip, "")
    assert bool(torch.isfinite(painted(ran.model, (positive, negative))).all())
    with pytest.raises(ValueError, match="no mask encoder was given: Train MCGM makes none where its mask_tokens is off"):
        EncodeMasks.execute(positive, negative, None, masks=blobs(1, 64, 64))
    assert EncodeMasks.execute(positive, negative, None).args == (positive, negative)


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
    (folders / "models" / "loras").write_text("in the way", "utf-8")


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


def line() -> Tensor:
    """The second subject is two pixels wide in 256."""
    found = marks(256, 256)
    found[1] = 0
    found[1, 20:22] = 1
    return found


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
        ({"name": "лиса"}, "'лиса-ball' cannot be a handle's name"),
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
