"""DreamCom's training against its equations, and Train DreamCom called as ComfyUI calls it."""

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
from comfy_api.latest import io
from maskprompt.nodes import progress as node_progress
from maskprompt.nodes.train_dreamcom import TrainDreamCom
from maskprompt.training.data import references
from maskprompt.training.dreamcom import examples as dreamcom
from maskprompt.training.dreamcom.examples import Examples
from maskprompt.training.dreamcom.job import ready
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import checkpoint, loop
from maskprompt.training.engine.learner import Learner
from torch import Tensor

from demo.painter import Painter

from ..conftest import Sample, random_model
from .test_learner import conditioning, examples, roughened
from .test_mcgm_options import clip_of

SIZE = 64


def quarter(count: int = 2) -> Examples:
    """Random latents of 16 x 16 whose box is the upper left quarter: whole cells on every layer's grid."""
    found = examples(count, 16)
    boxes = torch.zeros(count, 128, 128, dtype=torch.bool)
    boxes[:, :64, :64] = True
    return Examples(found.latents, found.masked, boxes, found.valid)


class DenseMaskedAttention:
    """Equation 2 with the whole map: softmax, then times the mask, over heads and rows one by one."""

    def __init__(self, boxes: Tensor) -> None:
        self.boxes = boxes.float()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], **_: Any) -> Tensor:
        heads, (height, width) = extra_options["n_heads"], extra_options["activations_shape"][2:]
        result = torch.zeros_like(q)
        depth = q.shape[-1] // heads
        for row in range(len(q)):
            step = self.boxes.shape[-1] // width
            inside = self.boxes[row, ::step, ::step].flatten()
            assert len(inside) == height * width
            for head in range(heads):
                part = slice(head * depth, (head + 1) * depth)
                attended = torch.softmax(q[row, :, part] @ k[row, :, part].T / depth**0.5, -1)
                result[row, :, part] = (inside[:, None] * attended) @ v[row, :, part]
        return result


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rows", [[1], [1, 0]], ids=["one", "a batch of two"])
def test_the_loss_is_equation_1(model: Any, sample: Sample, masked: bool, rows: list[int]) -> None:
    """Written out on the given model's own network: noise and what was predicted of it, where there is no padding."""
    pictures = quarter()
    text = conditioning()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(len(rows), 4, 16, 16, generator=generator)
    steps = torch.tensor([700, 40])[: len(rows)]
    learner = Learner(model, "lora", 4)
    with learner.loaded():
        loss = Loss(learner, pictures, text, Options(size=128, batch=len(rows), masked_attention=masked))
        found = loss.of(torch.tensor(rows), noise, loss.schedule.sigmas[steps]).item()

    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[steps].float()[
        :, None, None, None
    ]
    z = pictures.latents[rows] * 0.18215
    noisy = alphas.sqrt() * z + (1 - alphas).sqrt() * noise
    mask = pictures.boxes[rows][:, None, ::8, ::8].float()
    blocks = [("middle", 0), *((part, number) for part in ("input", "output") for number in range(12))]
    patches = {"attn2": dict.fromkeys(blocks, DenseMaskedAttention(pictures.boxes[rows]))}
    comfy.model_management.load_models_gpu([model])
    with torch.no_grad():
        sigmas = ((1 - alphas) / alphas).sqrt().flatten()
        denoised = model.model.apply_model(
            noisy / alphas.sqrt(), sigmas, c_concat=torch.cat([mask, pictures.masked[rows] * 0.18215], 1),
            c_crossattn=text[0][0].expand(len(rows), -1, -1), transformer_options={"patches_replace": patches} if masked else {},
        )  # fmt: skip
    predicted = (noisy / alphas.sqrt() - denoised) / sigmas[:, None, None, None]
    valid = pictures.valid[rows].expand(-1, 4, -1, -1)
    assert 0 < valid.mean() < 1
    assert found == pytest.approx(((noise - predicted) ** 2)[valid == 1].mean().item(), rel=1e-4)


def test_padding_takes_no_part(model: Any) -> None:
    """Whatever stands there. With no padding it does; all padding is no error."""
    first = quarter(1)
    learner = Learner(model, "lora", 4)
    given = torch.tensor([0]), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([2.0])

    def value(pictures: Examples) -> float:
        return Loss(learner, pictures, conditioning(), Options(size=128)).of(*given).item()

    with learner.loaded(), torch.no_grad():
        error = value(first)
        seen = value(Examples(first.latents, first.masked, first.boxes, torch.ones_like(first.valid)))
        assert seen != pytest.approx(error, rel=1e-3)
        half = Examples(first.latents, first.masked, first.boxes, first.valid * 0.4)
        assert value(half) == 0


def test_text_reaches_the_box_only(model: Any) -> None:
    """What every cross-attention hands to its output layer, for two prompts: the same (nothing) outside, different inside."""
    pictures = quarter(1)
    found = []
    learner = Learner(model, "lora", 4, checkpointing=False)
    with learner.loaded(), torch.no_grad():
        unet = learner.network.diffusion_model
        outputs = [module.to_out for name, module in unet.named_modules() if name.endswith("attn2")]
        seen: list[Tensor] = []
        hooks = [module.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for module in outputs]
        for masked in (True, False):
            for seed in (0, 1):
                seen.clear()
                loss = Loss(learner, pictures, conditioning(seed), Options(size=128, masked_attention=masked))
                loss.of(torch.tensor([0]), torch.zeros(1, 4, 16, 16), torch.tensor([2.0]))
                found.append(list(seen))
        for hook in hooks:
            hook.remove()
    assert len(found[0]) == len(outputs) == 16
    for first, second, free, other in zip(*found, strict=True):
        side = int(first.shape[1] ** 0.5)
        inside = torch.zeros(side, side, dtype=torch.bool)
        inside[: (side + 1) // 2, : (side + 1) // 2] = True
        inside = inside.flatten()
        assert not first[:, ~inside].any()
        assert not second[:, ~inside].any()
        assert (first[:, inside] - second[:, inside]).abs().max() > 1e-4
        assert (free[:, ~inside] - other[:, ~inside]).abs().max() > 1e-4


def test_a_batch_takes_each_crop_with_its_own_box(model: Any) -> None:
    """Two crops at once are the mean of both alone: no row sees the other's mask or text."""
    pictures = examples(2, 16)
    learner = Learner(model, "lora", 4)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    sigmas = torch.tensor([0.5, 3.0])
    with learner.loaded(), torch.no_grad():
        loss = Loss(learner, pictures, conditioning(), Options(size=128))
        alone = [loss.of(torch.tensor([row]), noise[row : row + 1], sigmas[row : row + 1]).item() for row in range(2)]
        both = loss.of(torch.tensor([0, 1]), noise, sigmas).item()
    assert both == pytest.approx(sum(alone) / 2, rel=1e-4)
    assert alone[0] != pytest.approx(alone[1], rel=0.01)


def test_the_rate_is_the_published_one_and_more_for_a_narrow_unet() -> None:
    assert Options(method="full").settings(320) == loop.Settings(400, 5e-6)
    assert Options(method="lora").settings(320).learning_rate == 1e-4
    assert Options(method="full").settings(32).learning_rate == pytest.approx(5e-5)
    assert Options(rate=0.3, steps=7, seed=2, average=0.9).settings(32) == loop.Settings(7, 0.3, 2, average=0.9)
    published = loop.Settings(400, 5e-6)
    assert (published.betas, published.weight_decay, published.clip) == ((0.9, 0.999), 1e-2, 1.0)


def test_the_fingerprint_is_of_all_that_matters(model: Any) -> None:
    pictures = references.pair([torch.rand(2, 64, 64, 3)], [box_masks(2)])
    options = Options(noun="ball", steps=5)
    mark = options.fingerprint(pictures, "weights")
    assert Options(noun="ball", steps=9, checkpointing=False).fingerprint(pictures, "weights") == mark
    others = [Options(noun="cube"), Options(noun="ball", token="xyz"), Options(noun="ball", rate=1e-3), Options(noun="ball", method="full"),
              Options(noun="ball", rank=3), Options(noun="ball", batch=2), Options(noun="ball", size=256), Options(noun="ball", seed=1),
              Options(noun="ball", masked_attention=False), Options(noun="ball", average=0.9),
              Options(noun="ball", box_margin=0.5)]  # fmt: skip
    marks = {mark, options.fingerprint(pictures, "others"), options.fingerprint(pictures[:1], "weights")}
    assert len(marks | {one.fingerprint(pictures, "weights") for one in others}) == 3 + len(others)


def test_a_models_signature_tells_weights_loras_and_texts_and_not_whether_it_is_loaded() -> None:
    from .test_learner import with_another_lora

    base = random_model()
    patched = with_another_lora(base)
    first = checkpoint.signature(base)
    second = checkpoint.signature(patched)
    comfy.model_management.load_models_gpu([patched])
    assert checkpoint.signature(patched) == second
    assert checkpoint.signature(base) == first
    stronger = patched.clone()
    stronger.patches = {key: [(2.0, *patch[1:]) for patch in patches] for key, patches in patched.patches.items()}
    plain = base.clone()
    plain.add_patches({"diffusion_model.out.2.weight": (torch.ones(4, 32, 3, 3),)})
    found = [first, second, checkpoint.signature(stronger), checkpoint.signature(plain), checkpoint.signature(random_model(seed=1)),
             checkpoint.signature(base, [conditioning()]), checkpoint.signature(base, [conditioning(1)]),
             checkpoint.signature(base, [conditioning(pooled_output=torch.ones(1, 4))])]  # fmt: skip
    assert len(set(found)) == len(found)
    assert all(len(one) == 16 for one in found)
    comfy.model_management.load_models_gpu([plain])
    assert (checkpoint.signature(plain), checkpoint.signature(base)) == (found[3], first)


def box_masks(count: int, side: int = 64) -> Tensor:
    masks = torch.zeros(count, side, side)
    masks[:, side // 4 : side // 2, side // 4 : 3 * side // 4] = 1
    return masks


def reference_pictures(count: int, side: int = 64) -> Tensor:
    """Noise with a red rectangle where the subject is: [N, H, W, 3]."""
    images = torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(0))
    return torch.where(box_masks(count, side)[..., None] > 0, torch.tensor([1.0, 0.0, 0.0]), images)


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


@pytest.fixture(scope="module")
def tiny() -> Painter:
    """The tiny model of demo/, as Load Checkpoint gives it."""
    return Painter()


def test_crops_are_encoded_as_inpainting_shows_them(tiny: Painter) -> None:
    """Latents of the crop, and of the crop with its box in mid grey: what InpaintModelConditioning makes of the same picture."""
    import nodes

    pictures = references.pair([reference_pictures(3)], [box_masks(3)])
    told: list[tuple[int, int]] = []
    options = Options(steps=10, size=SIZE, seed=5)
    found = dreamcom.encode(pictures, tiny.vae, options, on_crop=lambda done, count: told.append((done, count)))
    assert told == [(8, 10), (10, 10)]
    assert (found.latents.shape, found.masked.shape) == ((10, 4, 8, 8), (10, 4, 8, 8))
    assert (found.boxes.shape, found.valid.shape, found.boxes.dtype) == ((10, 64, 64), (10, 1, 8, 8), torch.bool)
    import numpy as np
    from maskprompt.training.dreamcom.augment import Augmentation

    crop = Augmentation()(pictures[0], SIZE, np.random.default_rng(5))
    inpaint = nodes.InpaintModelConditioning()
    positive, _, latent = inpaint.encode([[torch.zeros(1), {}]], [], crop.image[None], tiny.vae, crop.box[None])
    torch.testing.assert_close(found.masked[:1], positive[0][1]["concat_latent_image"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.latents[:1], latent["samples"], atol=1e-5, rtol=1e-4)
    assert torch.equal(found.values(slice(0, 1))["concat_mask"], positive[0][1]["concat_mask"].reshape(1, 1, 64, 64))
    again = dreamcom.encode(pictures, tiny.vae, options)
    assert all(torch.equal(getattr(found, name), getattr(again, name)) for name in ("latents", "masked", "boxes", "valid"))


def test_a_vae_that_overflows_is_named(tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = references.pair([reference_pictures(1)], [box_masks(1)])
    monkeypatch.setattr(tiny.vae, "encode", lambda images: torch.full((len(images), 4, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"the VAE gives values that are no numbers \(NaN\)"):
        dreamcom.encode(pictures, tiny.vae, Options(steps=1, size=SIZE))


def test_every_reference_is_encoded_and_never_too_often(tiny: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = references.pair([reference_pictures(3)], [box_masks(3)])
    assert len(dreamcom.encode(pictures, tiny.vae, Options(steps=1, size=SIZE)).latents) == 3
    monkeypatch.setattr(dreamcom, "CROPS_EACH", 2)
    assert len(dreamcom.encode(pictures, tiny.vae, Options(steps=100, batch=2, size=SIZE)).latents) == 6


Ran = tuple[Any, dict[str, Tensor], dict[str, list[float]], int, str]


def run_node(tiny: Painter, **inputs: Any) -> Ran:
    """Runs Train DreamCom as ComfyUI's executor does: lists of inputs, in inference mode."""
    given = {
        "model": tiny.model, "clip": tiny.clip, "vae": tiny.vae, "token": "sks", "noun": "ball", "steps": 1, "method": "lora",
        "learning_rate": 0.0, "rank": 4, "batch_size": 1, "size": SIZE, "seed": 0, "preview_every": 0, "gradient_checkpointing": False,
    } | inputs  # fmt: skip
    lists = {name: given.pop(name, default) for name, default in (("images", [reference_pictures(2)]), ("masks", [box_masks(2)]))}
    prepared: Any = TrainDreamCom.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return prepared.execute(**lists, **{name: [value] for name, value in given.items()}).args


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ran]]:
    """`node(tiny, model=..., steps=..., ...)` is `run_node` with an output folder of its own."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    yield run_node
    gc.collect()


def states(folder: Path) -> list[Path]:
    """Of trainings that did not come to their end."""
    return [file for file in kept_states(folder) if not torch.load(file)["finished"]]


def kept_states(folder: Path) -> list[Path]:
    return list((folder / "maskprompt" / "training").glob("*"))


def forget(folder: Path) -> None:
    """Takes away the states, of finished trainings too: the same Run would have their result at once."""
    for file in kept_states(folder):
        file.unlink()


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


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel is pressed: ComfyUI raises it where the node asks."""
    told: list[int] = []
    checked = comfy.model_management.throw_exception_if_processing_interrupted

    def press(self: Any, value: int, total: int | None = None, preview: Any = None) -> None:
        told.append(value)
        if len(told) == step:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", press)
    assert checked is comfy.model_management.throw_exception_if_processing_interrupted


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
    from .test_learner import predicted, with_another_lora

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
