"""Train and Save Image Prompt Adapter, called as ComfyUI calls them, on the tiny model with a small vision model of random weights."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from maskprompt.models import files
from maskprompt.models.ip_adapter import adapter as meca_adapter
from maskprompt.nodes.meca import ApplyMECA, LoadMECA
from maskprompt.nodes.patch_visibility import PatchVisibility
from maskprompt.nodes.train_meca import SaveMECA, TrainMECA
from torch import Tensor

from demo.painter import Painter

from ...support.adapters import small_clip_vision
from ...support.dreamcom import box_masks, kept_states, reference_pictures, states
from ...support.learners import same_bits
from ...support.masked_sampling import corner
from ...support.models import Sample, random_model

SIZE = 64
Ran = tuple[meca_adapter.LoadedAdapter, dict[str, list[float]]]
Node = Callable[..., Ran]


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """The tiny model of demo/, as Load Checkpoint gives it."""
    return Painter()


@pytest.fixture(scope="module")
def clip_vision() -> Any:
    return small_clip_vision()


@pytest.fixture
def node(tiny: Painter, clip_vision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """`node(steps=..., ...)` runs the node as ComfyUI's executor does: lists of inputs, in inference mode; an output folder of its own."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))

    def run(**inputs: Any) -> Ran:
        for file in set(kept_states(tmp_path)) - set(states(tmp_path)):
            file.unlink()  # of a finished training, whose result would come at once
        given = {
            "model": tiny.model, "clip": tiny.clip, "vae": tiny.vae, "clip_vision": clip_vision, "steps": 1, "learning_rate": 1e-3,
            "batch_size": 2, "size": SIZE, "tokens": 4, "mode": "region", "seed": 0, "preview_every": 0, "gradient_checkpointing": False,
        } | inputs  # fmt: skip
        usual: dict[str, Any] = {"images": [reference_pictures(3)], "captions": ["a red box\na box on grass\na box"]}
        lists = {name: given.pop(name, usual.get(name)) for name in ("images", "captions", "masks")}
        prepared: Any = TrainMECA.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})  # pyright: ignore[reportArgumentType]
        with torch.inference_mode():
            return prepared.execute(**lists, **{name: [value] for name, value in given.items()}).args

    yield run
    gc.collect()


def weights(adapter: meca_adapter.LoadedAdapter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter.patcher.model.state_dict().items()}


def bits(*networks: Any) -> list[Tensor]:
    return [value.clone() for network in networks for value in network.state_dict().values()]


def test_it_trains_saves_loads_and_paints(
    tiny: Painter, clip_vision: Any, node: Node, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With previews and a given mask; all that was given stays to the bit; the saved file paints as what was trained."""
    shown: list[Any] = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: shown.append((value, preview))
    )
    given = tiny.model.model, tiny.vae.first_stage_model, clip_vision.model, tiny.clip.cond_stage_model
    before = bits(*given)
    adapter, losses = node(steps=4, preview_every=2, masks=[box_masks(3)], average=0.5, seed=2**53, gradient_checkpointing=True)
    assert all(same_bits(one, other) for one, other in zip(before, bits(*given), strict=True))
    assert len(losses["loss"]) == 4
    assert [value for value, _ in shown] == [1, 2, 3, 4]
    assert [preview is not None for _, preview in shown] == [False, True, False, False]
    assert states(tmp_path) == []
    assert adapter.about.base == "16 attention layers and text of width 128"

    for _ in range(2):
        SaveMECA.execute(adapter, "ipadapter/mine")
    names = sorted(path.name for path in (tmp_path / "ipadapter").iterdir())
    assert names == ["mine_00001_.safetensors", "mine_00002_.safetensors"]
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    assert files.list_files("ipadapter") == names
    assert LoadMECA.validate_inputs(names[0]) is True
    (loaded,) = LoadMECA.execute(names[0]).args
    seen, _, _ = PatchVisibility.execute(clip_vision, reference_pictures(1), box_masks(1)).args
    painted = [
        sample(ApplyMECA.execute(tiny.model, one, seen, 1.0, "auto", corner()).args[0]) for one in (adapter, loaded)
    ]  # fmt: skip
    assert torch.equal(*painted)
    assert not torch.equal(painted[0], sample(tiny.model))


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_cancelled_and_run_again_it_ends_as_if_nothing_had_been(
    tiny: Painter, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float
) -> None:
    """In the middle of a chunk; and while pictures of the next one are encoded."""
    monkeypatch.setattr("maskprompt.training.meca.options.CHUNK", 4)
    options: dict[str, Any] = {"steps": 4, "seed": 3, "average": average}
    wanted, losses = node(**options)
    with pytest.MonkeyPatch.context() as patch:
        encode = tiny.vae.encode
        count = [0]

        def third(images: Tensor) -> Tensor:
            count[0] += 1
            if count[0] == 2:  # one for the first chunk, of two steps
                comfy.model_management.interrupt_current_processing()
            return encode(images)

        patch.setattr(tiny.vae, "encode", third)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node(**options)
    (kept,) = states(tmp_path)
    assert torch.load(kept, weights_only=True)["step"] == 2
    adapter, again = node(**options, preview_every=1, gradient_checkpointing=True)
    assert again["loss"] == pytest.approx(losses["loss"], rel=1e-4)
    for name, value in weights(wanted).items():
        torch.testing.assert_close(weights(adapter)[name], value, atol=2e-3, rtol=1e-3)
    assert states(tmp_path) == []


@pytest.mark.thorough
def test_the_same_seed_trains_the_same_and_every_choice_another(node: Node) -> None:
    first = weights(node()[0])
    assert all(torch.equal(value, first[name]) for name, value in weights(node()[0]).items())
    choices: list[dict[str, Any]] = [
        {"seed": 1}, {"mode": "query"}, {"mode": "global"}, {"masked": 0.0}, {"text_only": 1.0}, {"masks": [box_masks(3)]},
        {"captions": ["nothing"]}, {"learning_rate": 2e-3},
    ]  # fmt: skip
    usual: dict[str, Any] = {"masked": 1.0, "text_only": 0.0}
    base = weights(node(**usual)[0])
    for choice in choices:
        other = weights(node(**{**usual, **choice})[0])
        assert any(not torch.equal(value, base[name]) for name, value in other.items()), choice
    assert node(tokens=7)[0].patcher.model.image_proj.tokens == 7


def test_a_text_encoder_of_another_width_is_refused(tiny: Painter, node: Node) -> None:
    class Wide:
        cond_stage_model = tiny.clip.cond_stage_model  # whose own width fits

        def tokenize(self, text: str) -> Any:
            return tiny.clip.tokenize(text)

        def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
            return [[torch.zeros(1, 77, 768), {}]]

    with pytest.raises(ValueError, match="the text encoder gives text of width 768 and the model takes 128"):
        node(clip=Wide())


def test_models_with_and_without_inpainting_channels(node: Node) -> None:
    for channels in (4, 9):
        adapter, losses = node(model=random_model(in_channels=channels))
        assert len(losses["loss"]) == 1
        assert all(bool(value.isfinite().all()) for value in weights(adapter).values())


def test_pictures_of_several_sizes_and_a_list_of_captions(node: Node) -> None:
    images = [reference_pictures(2), reference_pictures(1, 96)[:, :70]]
    masks = [torch.zeros(2, 64, 64), box_masks(1, 96)[:, :70]]
    adapter, _ = node(images=images, masks=masks, captions=["one", "two", "three"])
    assert all(bool(value.isfinite().all()) for value in weights(adapter).values())


def test_a_rate_that_is_far_too_high_is_said(node: Node) -> None:
    with pytest.raises(RuntimeError, match=r"the loss is not a number \(NaN\) at step \d+: the learning rate \(1e\+20\) is too high"):
        node(steps=30, learning_rate=1e20)


def test_a_preview_that_fails_is_no_reason_to_stop(
    tiny: Painter, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("no memory for the VAE")

    monkeypatch.setattr(tiny.vae, "decode", fail)
    with caplog.at_level(logging.WARNING):
        assert len(node(steps=2, preview_every=1)[1]["loss"]) == 2
    assert "The preview failed (OutOfMemoryError" in caplog.text


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"images": []}, "no picture was given"),
        ({"captions": ["one\ntwo"]}, "3 pictures but 2 lines of captions"),
        ({"captions": [""]}, "captions is empty"),
        ({"masks": [box_masks(2)]}, "3 pictures but 2 masks"),
        ({"masks": [box_masks(3, 80)]}, "picture 1 is 64 x 64 pixels but its mask 80 x 80"),
        ({"clip": None}, "no text encoder was given"),
        ({"vae": None}, "no VAE was given"),
        ({"vae": SimpleNamespace(latent_channels=16)}, "the VAE makes latents of 16 channels and the model takes 4"),
        ({"clip_vision": None}, "no CLIP vision model was given: wire Load CLIP Vision"),
        ({"model": "Flux"}, r"a UNet model is needed.*this one is no UNet \(Linear\)"),
        ({"size": 512}, "picture 1 is 64 x 64 pixels, too small for crops of 512"),
        ({"size": 68}, "size is 68: the side of the training crops is a multiple of 8"),
    ],
)
def test_bad_input_is_refused_before_anything_is_encoded_or_trained(
    tiny: Painter, node: Node, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], message: str
) -> None:
    from ...support.vaes import Flux

    def fail(*given: Any, **more: Any) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr(tiny.vae, "encode", fail)
    monkeypatch.setattr(tiny.clip, "encode_from_tokens_scheduled", fail)
    monkeypatch.setattr("maskprompt.training.engine.learner.twin", fail)
    if inputs.get("model") == "Flux":
        inputs = {"model": Flux()}
    with pytest.raises(ValueError, match=message):
        node(**inputs)


def test_too_little_memory_is_said_before_anything_is_encoded(tiny: Painter, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.memory.total_memory", lambda device: 1024**2)
    monkeypatch.setattr(tiny.vae, "encode", lambda *given: pytest.fail("too early"))
    with pytest.raises(ValueError, match=r"this training needs about .* What would do: a smaller model"):
        node()


@pytest.fixture
def adapter(model: Any) -> meca_adapter.LoadedAdapter:
    from maskprompt.attention import ip_adapter_layers
    from maskprompt.models.ip_adapter.file import About

    from ...support.adapters import base

    return meca_adapter.from_weights(base(*ip_adapter_layers.widths(model.get_model_object("diffusion_model"))), About(), "one")


def test_places_that_are_no_use(adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    with pytest.raises(
        ValueError, match=r"'\.\./outside': it leads out of ComfyUI's output folder\. Use a name such as ipadapter/my-adapter"
    ):
        SaveMECA.execute(adapter, "../outside")
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(ValueError, match="nothing can be saved as 'file/mine': "):
        SaveMECA.execute(adapter, "file/mine")

    def full(*given: Any, **more: Any) -> None:
        Path(given[1]).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ValueError, match=r"No space left on device\. Is the disk full"):
        SaveMECA.execute(adapter, "ipadapter/mine")
    assert list((tmp_path / "ipadapter").iterdir()) == []


def test_files_that_are_there_stay(adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    (tmp_path / "ipadapter").mkdir()
    (tmp_path / "ipadapter" / "mine_00007_.safetensors").write_text("precious", "utf-8")
    SaveMECA.execute(adapter, "ipadapter/mine")
    assert {path.name for path in (tmp_path / "ipadapter").iterdir()} == {"mine_00007_.safetensors", "mine_00008_.safetensors"}
    assert (tmp_path / "ipadapter" / "mine_00007_.safetensors").read_text("utf-8") == "precious"
    assert meca_adapter.load(str(tmp_path / "ipadapter" / "mine_00008_.safetensors")).widths == adapter.widths
