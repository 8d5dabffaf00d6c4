"""Train Mask-ControlNet, called as ComfyUI calls it, on the tiny model and on a smaller one."""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields
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
from maskprompt.models.mask_controlnet.control import Adapter, MaskControl
from maskprompt.nodes.mask_controlnet import ONE_FILE, LoadMaskControlNet, MaskConcat, SaveMaskControlNet
from maskprompt.nodes.train_mask_controlnet import TrainMaskControlNet
from maskprompt.training.mask_controlnet import job as mask_controlnet
from maskprompt.training.mask_controlnet.options import Options
from torch import Tensor, nn

from demo.painter import Painter

from ...support.dreamcom import box_masks, kept_states, reference_pictures, states, stop_at
from ...support.learners import same_bits, unet_of
from ...support.mask_controlnet_training import of_stable_diffusion
from ...support.models import Sample, random_model

SIZE = 64
Ran = tuple[MaskControl, Adapter, dict[str, list[float]]]
Node = Callable[..., Ran]


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """The tiny model of demo/, as Load Checkpoint gives it."""
    return Painter()


@pytest.fixture(scope="module")
def model() -> Any:
    """Few blocks; 9 channels and text of the tiny model's width."""
    return unet_of(32, small=True)


@pytest.fixture(scope="module")
def vae() -> Any:
    return of_stable_diffusion()


def executed(**inputs: Any) -> Ran:
    """As ComfyUI's executor does: lists of inputs, in inference mode."""
    lists = {name: inputs.pop(name) for name in ("images", "masks", "captions", "references") if name in inputs}
    prepared: Any = TrainMaskControlNet.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return prepared.execute(**lists, **{name: [value] for name, value in inputs.items()}).args


@pytest.fixture
def node(model: Any, tiny: Painter, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """`node(steps=..., ...)` runs the node with an output folder of its own."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))

    def run(**inputs: Any) -> Ran:
        for file in set(kept_states(tmp_path)) - set(states(tmp_path)):
            file.unlink()  # of a finished training, whose result would come at once
        usual = {
            "model": model, "clip": tiny.clip, "vae": vae, "images": [reference_pictures(3)], "masks": [box_masks(3)],
            "captions": ["a red box\na box on grass\na box"], "steps": 1, "learning_rate": 1e-3, "batch_size": 1, "size": SIZE, "seed": 0,
            "preview_every": 0, "gradient_checkpointing": False,
        }  # fmt: skip
        return executed(**usual | inputs)

    yield run
    gc.collect()


def weights(ran: Ran) -> dict[str, Tensor]:
    own = {name: value.clone() for name, value in ran[0].network.state_dict().items()}
    return own | {f"adapter.{name}": value.clone() for name, value in ran[1].layer.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def bits(*networks: Any) -> list[Tensor]:
    return [value.clone() for network in networks for value in network.state_dict().values()]


def under(control: Any, hint: Tensor, vae: Any) -> dict[str, Any]:
    """What the stock Apply ControlNet sets on a conditioning."""
    return {"control": control.copy().set_cond_hint(hint.movedim(-1, 1), 1.0, (0.0, 1.0), vae=vae), "control_apply_to_uncond": True}


def test_it_trains_saves_loads_and_paints(
    tiny: Painter, node: Node, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With previews; all that was given stays to the bit; the saved file paints as what was trained."""
    shown: list[Any] = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: shown.append((value, preview))
    )
    given = tiny.model.model, tiny.vae.first_stage_model, tiny.clip.cond_stage_model
    before = bits(*given)
    images = reference_pictures(3)
    masks = box_masks(3)
    with caplog.at_level(logging.INFO):
        control, adapter, losses = node(
            model=tiny.model, vae=tiny.vae, steps=4, preview_every=2, images=[images], masks=[masks], learning_rate=1e-2, average=0.5,
            gradient_checkpointing=True, seed=2**53,
        )  # fmt: skip
    assert all(same_bits(one, other) for one, other in zip(before, bits(*given), strict=True))
    assert torch.equal(images, reference_pictures(3))
    assert torch.equal(masks, box_masks(3))
    assert len(losses["loss"]) == 4
    assert [value for value, _ in shown] == [1, 2, 3, 4]
    assert [preview is not None for _, preview in shown] == [False, True, False, False]
    assert shown[1][1][1].size == (2 * SIZE, SIZE)
    assert states(tmp_path) == []
    assert "Training needs about" in caplog.text
    assert "preview failed" not in caplog.text
    assert control.about.base == "a UNet of 32 channels with text of width 128"

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    SaveMaskControlNet.execute(control, adapter, "controlnet/mine", ONE_FILE)
    assert files.list_files("controlnet") == ["mine_00001_.safetensors"]
    loaded, again = LoadMaskControlNet.execute("mine_00001_.safetensors").args
    assert same(weights((loaded, again, {})), weights((control, adapter, {})))
    hints = [MaskConcat.execute(one, images[:1], masks[:1]).args[0] for one in (adapter, again)]
    assert torch.equal(*hints)
    painted = [
        sample(tiny.model, size=(8, 8), positive=under(one, hints[0], tiny.vae), negative=under(one, hints[0], tiny.vae))
        for one in (control, loaded)
    ]
    assert torch.equal(*painted)
    assert not torch.allclose(painted[0], sample(tiny.model, size=(8, 8)), atol=1e-3)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_cancelled_and_run_again_it_ends_to_the_bit_as_if_nothing_had_been(
    model: Any, vae: Any, node: Node, sample: Sample, tmp_path: Path, average: float
) -> None:
    """Also where the model painted in between, and where previews are asked for now."""
    options: dict[str, Any] = {"steps": 3, "seed": 3, "average": average}
    wanted = node(**options)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(1, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node(**options)
    (kept,) = states(tmp_path)
    assert torch.load(kept, weights_only=True)["step"] == 1
    assert kept.name.startswith("mask-controlnet-")
    vae.decode(sample(model, size=(8, 8), steps=1))
    ran = node(**options, preview_every=1)
    assert ran[2] == wanted[2]
    assert same(weights(ran), weights(wanted))
    assert states(tmp_path) == []


def test_resume_off_begins_again(node: Node, tmp_path: Path) -> None:
    wanted = weights(node(steps=2))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(1, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node(steps=2)
    (kept,) = states(tmp_path)
    spoiled = torch.load(kept)
    spoiled["parameters"] = {name: value + 1 for name, value in spoiled["parameters"].items()}
    torch.save(spoiled, kept)
    assert same(weights(node(steps=2, resume=False)), wanted)
    assert states(tmp_path) == []


@pytest.mark.thorough
def test_the_same_seed_trains_the_same_and_every_choice_another(node: Node) -> None:
    """Of two steps: the first learns nothing of the hint, as that begins behind layers of zeros."""
    base = weights(node(steps=2))
    assert same(weights(node(steps=2)), base)
    several = [box_masks(1), torch.cat([box_masks(1), box_masks(1).flip(1)]), box_masks(1)]
    choices: list[dict[str, Any]] = [
        {"seed": 1}, {"mask_prompt": False}, {"text_dropout": 1.0}, {"masks": [box_masks(3).flip(1)]}, {"captions": ["nothing"]},
        {"learning_rate": 2e-3}, {"learning_rate": 0.0}, {"batch_size": 2}, {"accumulate": 2}, {"steps": 3}, {"average": 0.9},
    ]  # fmt: skip
    found = [weights(node(**{"steps": 2, **choice})) for choice in choices]
    for number, one in enumerate(found):
        assert not any(same(one, other) for other in (base, *found[:number])), choices[number]
    assert len(node(masks=several)[2]["loss"]) == 1


def test_the_variant_without_masks_says_so(node: Node) -> None:
    control, adapter, _ = node(mask_prompt=False)
    assert control.about.masked is False
    assert adapter.masked is False
    image = reference_pictures(1)
    assert torch.equal(adapter.hint(image, box_masks(1)), adapter.hint(image, box_masks(1).flip(1)))
    _, masked, _ = node()
    assert masked.masked is True
    assert not torch.equal(masked.hint(image, box_masks(1)), masked.hint(image, box_masks(1).flip(1)))


def test_left_alone_the_inputs_are_the_trainings_own(tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ComfyUI sends when nothing is changed; and what an API caller sends who leaves out all that is optional."""

    class SeenError(Exception):
        pass

    def seen(*given: Any) -> None:
        raise SeenError(given[3])

    monkeypatch.setattr(mask_controlnet, "check", seen)
    inputs = {one.id: one for one in TrainMaskControlNet.define_schema().inputs}
    required = {"model": tiny.model, "clip": tiny.clip, "vae": tiny.vae, "images": [reference_pictures(1)], "masks": [box_masks(1)],
                "captions": ["a box"]}  # fmt: skip
    wires = {*required, "references"}
    defaults = {name: one.default for name, one in inputs.items() if name not in wires}  # pyright: ignore[reportAttributeAccessIssue]
    least = {name: value for name, value in defaults.items() if not inputs[name].optional}
    for settings in (defaults, least):
        with pytest.raises(SeenError) as found:
            executed(**required, **settings)
        assert found.value.args[0] == Options()
    assert set(least) == {"steps", "learning_rate", "batch_size", "size", "seed"}
    told = {"rate": "learning_rate", "batch": "batch_size", "masked": "mask_prompt", "checkpointing": "gradient_checkpointing"}
    assert {told.get(one.name, one.name) for one in fields(Options)} - {"weight_decay"} == set(defaults) - {"preview_every", "resume"}
    assert "learning_rate" not in inspect.signature(Options).parameters


def test_models_with_and_without_inpainting_channels(node: Node) -> None:
    """The nine channels' own first layer is folded into one of four."""
    for given in ({"model": random_model(in_channels=4)}, {}):
        ran = node(**given)
        assert ran[0].network.state_dict()["input_blocks.0.0.weight"].shape[1] == 4
        assert all(bool(value.isfinite().all()) for value in weights(ran).values())


def test_pictures_of_several_sizes_with_several_objects_each(node: Node) -> None:
    images = [reference_pictures(2), reference_pictures(1, 96)[:, :70]]
    several = torch.cat([box_masks(1, 96)[:, :70], box_masks(1, 96).flip(2)[:, :70], torch.zeros(1, 70, 96)])
    ran = node(images=images, masks=[box_masks(1), box_masks(1), several], captions=["one", "two", "three"], steps=2, batch_size=2)
    assert all(bool(value.isfinite().all()) for value in weights(ran).values())


def test_a_preview_has_its_text_however_many_lose_theirs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(mask_controlnet, "preview", lambda *given: shown.append(given) or torch.zeros(1, 8, 8, 3))
    node(steps=2, preview_every=1, text_dropout=1.0)
    ((_, batch, _, positive, negative),) = shown
    assert batch.texts[0].startswith("a ")
    assert not torch.equal(positive[0][0], negative[0][0])


def test_a_preview_that_fails_is_no_reason_to_stop(
    vae: Any, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = node(steps=2)

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("no memory for the VAE")

    monkeypatch.setattr(vae, "decode", fail)
    with caplog.at_level(logging.WARNING):
        ran = node(steps=2, preview_every=1)
    assert same(weights(ran), weights(wanted))
    assert "The preview failed (OutOfMemoryError" in caplog.text


def test_a_rate_that_is_far_too_high_is_said(node: Node) -> None:
    with pytest.raises(RuntimeError, match=r"the loss is not a number \(NaN\) at step \d+: the learning rate \(1e\+20\) is too high"):
        node(steps=30, learning_rate=1e20)


def test_the_node_says_what_happens(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(
        send_progress_text=lambda text, node_id: said.append((text.split("\n")[0], node_id)), client_id=None, send_sync=lambda *given: None
    )))  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "server", server)
    _, _, losses = node(steps=2)
    assert [node_id for _, node_id in said] == ["7", "7"]
    assert said[0][0] == f"Step 1 of 2, loss {losses['loss'][0]:.4f}"
    assert said[1][0] == f"Step 2 of 2, loss {sum(losses['loss']) / 2:.4f}"


class Text(nn.Module):
    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(8, 768)


class Wide(nn.Module):
    """A text encoder of width 768."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_l = nn.Module()
        self.clip_l.transformer = Text()


def flux() -> Any:
    from ...support.vaes import Flux

    return Flux()


def without_text() -> Any:
    """A UNet without cross-attention is no base for a control network."""
    base = random_model(in_channels=4)
    base.model.model_config.unet_config = {**base.model.model_config.unet_config, "context_dim": None}
    return base


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"images": []}, "no picture was given"),
        ({"captions": ["one\ntwo"]}, "3 pictures but 2 lines of captions"),
        ({"captions": [""]}, "captions is empty"),
        ({"masks": [box_masks(2)]}, "3 pictures but 2 masks"),
        ({"masks": []}, "3 pictures but 0 masks"),
        ({"masks": [torch.zeros(3, 64, 64)]}, "the mask of picture 1 marks nothing"),
        ({"masks": [box_masks(3, 80)]}, "picture 1 is 64 x 64 pixels but its mask 80 x 80"),
        ({"clip": None}, "no text encoder was given"),
        ({"clip": SimpleNamespace(cond_stage_model=Wide())}, "the text encoder gives text of width 768 and the model takes 128"),
        ({"vae": None}, "no VAE was given"),
        ({"vae": SimpleNamespace(latent_channels=16)}, "the VAE makes latents of 16 channels and the model takes 4"),
        ({"model": flux}, r"a UNet model is needed.*this one is no UNet \(Linear\)"),
        ({"model": lambda: random_model(in_channels=8)}, "this one takes 8 channels"),
        ({"model": without_text}, "needs a UNet with cross-attention: SD 1.5, SD 2.1 or SDXL"),
        ({"size": 512}, "picture 1 is 64 x 64 pixels, too small for crops of 512"),
        ({"size": 68}, "size is 68: the side of the training crops is a multiple of 8"),
        ({"pairs": "grounds", "references": [reference_pictures(3)]}, "references are wired, and pairs is grounds.*set pairs to given"),
        ({"pairs": "given"}, "pairs is given, but not every picture has a reference"),
        ({"pairs": "grounds", "images": [reference_pictures(1)], "masks": [box_masks(1)], "captions": ["a"]}, "there is one picture"),
        ({"references": [reference_pictures(2)]}, "3 pictures but 2 references"),
    ],
)
def test_bad_input_is_refused_before_anything_is_encoded_or_trained(
    tiny: Painter, vae: Any, node: Node, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], message: str
) -> None:
    def fail(*given: Any, **more: Any) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr(vae, "encode", fail)
    monkeypatch.setattr(tiny.clip, "encode_from_tokens_scheduled", fail)
    monkeypatch.setattr("maskprompt.training.engine.learner.twin", fail)
    if callable(build := inputs.get("model")):
        inputs = {"model": build()}
    with pytest.raises(ValueError, match=message):
        node(**inputs)


def test_a_text_of_another_width_than_its_encoders_is_refused(tiny: Painter, node: Node) -> None:
    clip = SimpleNamespace(
        cond_stage_model=tiny.clip.cond_stage_model, tokenize=tiny.clip.tokenize,
        encode_from_tokens_scheduled=lambda tokens: [[torch.zeros(1, 77, 768), {}]],
    )  # fmt: skip
    with pytest.raises(ValueError, match="the text encoder gives text of width 768 and the model takes 128"):
        node(clip=clip)


def test_too_little_memory_is_said_before_anything_is_encoded(tiny: Painter, vae: Any, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.memory.total_memory", lambda device: 1024**2)
    monkeypatch.setattr(vae, "encode", lambda *given: pytest.fail("too early"))
    monkeypatch.setattr(tiny.clip, "encode_from_tokens_scheduled", lambda *given: pytest.fail("too early"))
    with pytest.raises(ValueError, match=r"this training needs about .* What would do: a smaller model"):
        node()


def test_the_node_trains_on_pairs(node: Node) -> None:
    """Both kinds learn, each something else than without; wired references are taken without a further word."""
    images = reference_pictures(3)
    usual: dict[str, Any] = {"images": [images], "steps": 2, "learning_rate": 1e-2}
    found = [
        weights(node(**usual, **more))
        for more in (
            {},
            {"pairs": "grounds"},
            {"pairs": "given", "references": [images.flip(-1)]},
            {"references": [images.flip(-1)]},
            {"references": [images]},
        )
    ]
    same = [[all(torch.equal(value, two[name]) for name, value in one.items()) for two in found] for one in found]
    alike = {(first, second) for first in range(5) for second in range(first) if same[first][second]}
    assert alike == {(3, 2), (4, 0)}
