"""What learns: gradients where they belong, a result that any stock loader applies, and a MODEL that stays as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from maskprompt.training.dreamcom.examples import Examples
from maskprompt.training.dreamcom.job import ready
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import job as engine
from maskprompt.training.engine import loop, model_copy
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.preview import paint
from maskprompt.training.engine.trainable_weights import Method
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..attention.test_layers import SD15, SDXL
from ..conftest import Sample, random_model

METHODS: tuple[Method, ...] = ("lora", "full")


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskprompt.training.engine.preview.STEPS", 2)


PARTS = ("patches", "object_patches", "wrappers", "injections", "model_options", "backup", "callbacks", "attachments")


def examples(count: int = 4, side: int = 8, seed: int = 0) -> Examples:
    """Random latents, each with a box of its own and a strip of padding."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(count, side * 8, side * 8, dtype=torch.bool)
    valid = torch.ones(count, 1, side, side)
    for number in range(count):
        boxes[number, 8 * (number % 2) : side * 5, 8 : side * 6 + number] = True
    valid[:, :, :, -1] = 0
    latents, masked = (torch.randn(count, 4, side, side, generator=generator) for _ in range(2))
    return Examples(latents, masked, boxes, valid)


def with_lora(model: Any, state: dict[str, Tensor], strength: float = 1.0) -> Any:
    """The MODEL that the stock loader gives for a LORA_MODEL."""
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]


def conditioning(seed: int = 0, **more: Any) -> list[list[Any]]:
    return [[torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(seed)), more]]


def train(learner: Learner, given: Examples, text: Any, options: Options, **more: Any) -> loop.Progress:
    """By its job, on these examples (the learner must be loaded)."""
    fingerprint = more.pop("fingerprint", "")
    job = ready(learner, [text, text], options, fingerprint, examples=given)
    path = more.pop("state", None)
    return engine.train(job, job.states(path) if path else (), **more)


def trained(learner: Learner, steps: int = 3, **more: Any) -> loop.Progress:
    """A short training on random examples (the learner must be loaded)."""
    options = Options(noun="ball", steps=steps, method=learner.method, size=64, rate=more.pop("rate", 1e-3))
    return train(learner, examples(), conditioning(), options, **more)


def unet_of(channels: int, small: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A MODEL with SD 1.5's blocks at this many channels and text of 128, an inpainting one, of random weights; `small`: fewer blocks."""
    import comfy.supported_models

    fewer = {"num_res_blocks": [1, 1], "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]}
    widths = {"model_channels": channels, "context_dim": 128, **(fewer if small else {})}
    return of_random_weights(comfy.supported_models.SD15({**SD15, **widths}), dtype)


def of_random_weights(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """As ComfyUI loads it on a CPU: weights in half precision are used in float32."""
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    base = config.get_model({}, device=torch.device("cpu"))
    base.set_inpaint()
    generator = torch.Generator().manual_seed(0)
    for value in base.diffusion_model.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data = (noise / value[0].numel() ** 0.5 if value.ndim > 1 else 1 + 0.1 * noise).to(dtype)
    return ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> Any:
    """Fewer blocks than SD 1.5 has, where it is not the blocks that matter."""
    return unet_of(32, small=True)


def roughened(learner: Learner) -> None:
    """As after a long training: weights that have moved far enough to be seen, and that half precision holds exactly."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in learner.parameters.items():
            noise = torch.randn(value.shape, generator=generator)
            if learner.method == "lora":
                value.copy_((value + 0.1 * noise).half())
            else:
                start = learner.adapted.start[name].float()
                value.copy_(start + (0.05 * noise * (start.abs().mean() + 0.01)).half())


def predicted(model: Any, seed: int = 1) -> Tensor:
    """What a MODEL makes of some noise, as the sampler asks it: [2, 4, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    sigmas = torch.tensor([0.7, 3.0])
    concat = torch.randn(2, 5, 8, 8, generator=generator)
    text = torch.randn(1, 77, 128, generator=generator).expand(2, -1, -1)
    comfy.model_management.load_models_gpu([model])
    with torch.inference_mode():
        return model.model.apply_model(noisy, sigmas, c_concat=concat, c_crossattn=text, transformer_options={})


def learner_predicts(learner: Learner, seed: int = 1) -> Tensor:
    with torch.no_grad():
        return predicted(learner.patcher, seed)


def fingerprint(model: Any) -> tuple[Any, ...]:
    """Everything about a MODEL that a training might change, but for what loading it does."""
    comfy.model_management.unload_all_models()
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    forwards = [name for name, module in model.model.named_modules() if "forward" in vars(module)]
    grads = [name for name, value in model.model.named_parameters() if value.requires_grad or value.grad is not None]
    return weights, {part: repr(getattr(model, part)) for part in PARTS}, model.patches_uuid, forwards, grads


def unchanged(model: Any, before: tuple[Any, ...]) -> bool:
    now = fingerprint(model)
    same = now[0].keys() == before[0].keys() and all(same_bits(now[0][name], before[0][name]) for name in before[0])
    return same and now[1:] == before[1:]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Bit by bit: what a checkpoint does not hold is whatever lay in memory, which may be no number, and no number equals itself."""
    parts = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(parts[0], parts[1])


def with_another_lora(model: Any) -> Any:
    """A clone of the MODEL with random LoRAs on two layers, as a stock loader leaves it."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name in ("input_blocks.1.1.transformer_blocks.0.attn2.to_k", "output_blocks.3.0.out_layers.3"):
        weight = model.model.state_dict()[f"diffusion_model.{name}.weight"]
        state[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.2
        state[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(4, weight[0].numel(), generator=generator) * 0.2
    return with_lora(model, state, 0.8)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_all_that_learns_and_nothing_else(model: Any, method: Method) -> None:
    learner = Learner(model, method, 4)
    with learner.loaded():
        roughened(learner)  # a LoRA's upper half starts without a gradient for its lower one
        Loss(learner, examples(), conditioning(), Options(size=64))(0, loop.random_numbers(0, 0)).backward()
        frozen = [value for value in learner.network.parameters() if all(value is not one for one in learner.parameters.values())]
        assert all(value.grad is None and not value.requires_grad for value in frozen)
        dead = [name for name, value in learner.parameters.items() if value.grad is None or not bool(value.grad.any())]
    assert dead == []
    modules = dict(model.model.diffusion_model.named_modules())
    if method == "full":
        assert len(learner.parameters) == len(list(model.model.diffusion_model.parameters()))
        assert frozen == []
    else:
        layers = [name for name, module in modules.items() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
        assert {name.removeprefix("diffusion_model.") for name in learner.adapted.adapters} == set(layers)
        assert len(learner.parameters) == 2 * len(layers)


@pytest.mark.parametrize("method", METHODS)
def test_untrained_it_is_the_model_to_the_bit(model: Any, method: Method) -> None:
    wanted = predicted(model)
    learner = Learner(model, method, 3, seed=7)
    with learner.loaded():
        assert torch.equal(learner_predicts(learner), wanted)
        learned = learner.learned()
    again = with_lora(model, learned)
    assert torch.equal(predicted(again), wanted)


def test_the_same_seed_trains_the_same(model: Any) -> None:
    results = []
    for seed in (4, 4, 5):
        learner = Learner(model, "lora", 2, seed)
        with learner.loaded():
            trained(learner, 2)
            results.append(learner.learned())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


@pytest.mark.parametrize(("method", "channels"), [("lora", 32), ("full", 32), ("lora", 64), ("full", 64)])
def test_the_loss_on_a_fixed_batch_falls(model: Any, method: Method, channels: int) -> None:
    """Of the small UNet, and of one with all of SD 1.5's blocks at twice the width."""
    learner = Learner(model if channels == 32 else unet_of(channels), method, 8, checkpointing=False)
    with learner.loaded():
        loss = Loss(learner, examples(), conditioning(), Options(size=64))
        fixed = torch.tensor([0, 1]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
        rate = 3e-3 if method == "lora" else 3e-4
        progress = loop.run(learner.parameters, lambda step, generator: loss.of(*fixed), loop.Settings(20, rate))
    assert progress.losses[-1] < 0.6 * progress.losses[0]


@pytest.mark.parametrize("patched", [False, True], ids=["bare", "with a LoRA"])
@pytest.mark.parametrize(("method", "rank"), [("lora", 5), ("lora", 64), ("full", 1)])
def test_what_was_learned_leaves_for_any_stock_loader(model: Any, tmp_path: Path, method: Method, rank: int, patched: bool) -> None:
    """Through the dictionary, and through a file as SaveLoRA and Load LoRA write and read it; on top of a LoRA that was there."""
    base = with_another_lora(model) if patched else model
    before = predicted(base)
    learner = Learner(base, method, rank)
    with learner.loaded():
        assert torch.equal(learner_predicts(learner), before)
        roughened(learner)
        wanted = learner_predicts(learner)
        learned = learner.learned()
    assert (wanted - before).std() > 0.02 * before.std()
    save_file(learned, tmp_path / "lora.safetensors", None)
    for state in (learned, load_file(tmp_path / "lora.safetensors")):
        loaded = with_lora(base, state)
        torch.testing.assert_close(predicted(loaded), wanted, atol=2e-4 * float(wanted.abs().max()), rtol=0)
        unused = with_lora(base, state, 0.0)
        assert torch.equal(predicted(unused), before)
    assert all(value.dtype in (torch.float16, torch.float32) and value.device.type == "cpu" for value in learned.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_learned_name_is_known_to_the_stock_loader(model: Any, method: Method, caplog: pytest.LogCaptureFixture) -> None:
    learner = Learner(model, method, 2)
    with learner.loaded():
        learned = learner.learned()
    loaded = with_lora(model, learned)
    assert "NOT LOADED" not in caplog.text.upper()
    assert "lora key not loaded" not in caplog.text
    weights = [name for name, value in model.model.state_dict().items() if method == "full" or value.ndim > 1]
    assert {str(key) for key in loaded.patches} == {name for name in weights if name.startswith("diffusion_model.")} - (
        {name for name in weights if name.endswith(".bias")} if method == "lora" else set()
    )


def in_the_loss(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loss, "of", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    trained(learner)


def interrupted(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(progress: loop.Progress) -> None:
        raise comfy.model_management.InterruptProcessingException

    trained(learner, 2, on_step=stop)


def with_a_preview(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def show(progress: loop.Progress) -> None:
        pictures = examples()
        paint(learner, conditioning(), conditioning(1), pictures.latents[:1], pictures.values(slice(0, 1)))
        learner.load()

    trained(learner, 1, on_step=show)


def loaded_twice(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = learner.learned()
    model_copy.unload(learner.patcher)
    with learner.loaded():
        again = learner.learned()
    assert all(torch.equal(learned[name], again[name]) for name in learned)


@pytest.mark.parametrize(
    ("method", "happens"),
    [("lora", in_the_loss), ("full", in_the_loss), ("full", interrupted), ("lora", with_a_preview), ("full", with_a_preview),
     ("full", loaded_twice)],
)  # fmt: skip
def test_the_model_stays_as_it_was(
    method: Method, happens: Callable[[Learner, pytest.MonkeyPatch], None], sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and all that hangs on it to the bit, and the picture it paints before, meanwhile and after."""
    base = with_another_lora(random_model())
    before = fingerprint(base)
    picture = sample(base, size=(8, 8), steps=1)
    learner = Learner(base, method, 2, checkpointing=False)
    try:
        with learner.loaded():
            trained(learner, 1)
            assert torch.equal(sample(base.clone(), size=(8, 8), steps=1), picture)
            learner.load()
            happens(learner, monkeypatch)
    except (RuntimeError, comfy.model_management.InterruptProcessingException):
        pass
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert not any(entry is not None and entry.is_clone(learner.patcher) for entry in loaded)
    assert torch.equal(sample(base, size=(8, 8), steps=1), picture)
    assert unchanged(base, before)
    assert learner.network.current_patcher is None
    own = {value.data_ptr() for value in base.model.parameters()}
    assert not own & {value.data_ptr() for value in learner.network.parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_a_preview_changes_nothing_of_the_outcome(model: Any, method: Method) -> None:
    """To the bit, though ComfyUI unloads the learner for it and draws from the global random numbers; on top of a LoRA."""
    results = []
    pictures = []
    base = with_another_lora(model)
    for shows in (False, True):
        learner = Learner(base, method, 2, checkpointing=False)

        def show(progress: loop.Progress, shows: bool = shows, learner: Learner = learner) -> None:
            if shows:
                some = examples()
                pictures.append(
                    paint(
                        learner,
                        conditioning(),
                        conditioning(1),
                        some.latents[:1],
                        some.values(slice(0, 1)),
                        patches=some.patches(slice(0, 1)),
                    )
                )
                model_copy.unload(learner.patcher)  # as a VAE on a small GPU does
                learner.load()

        with learner.loaded():
            trained(learner, 2, on_step=show)
            results.append(learner.learned())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert len(pictures) == 2
    assert all(bool(torch.isfinite(picture).all()) for picture in pictures)
    assert not torch.equal(pictures[0], pictures[1])


@pytest.mark.parametrize("method", METHODS)
def test_computing_blocks_twice_gives_the_same_gradients(model: Any, method: Method) -> None:
    found = []
    for checkpointing in (False, True):
        learner = Learner(model, method, 4, checkpointing=checkpointing)
        with learner.loaded():
            roughened(learner)
            loss = Loss(learner, examples(), conditioning(), Options(size=64, batch=2))(0, loop.random_numbers(0, 0))
            loss.backward()
            found.append({name: value.grad for name, value in learner.parameters.items()})
    largest = max(float(value.abs().max()) for value in found[0].values())
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-6 * largest, rtol=1e-6)


def test_blocks_computed_twice_keep_less(model: Any) -> None:
    """Of what the forward pass keeps for the gradient, most is gone."""
    kept = []
    for checkpointing in (False, True):
        learner = Learner(model, "lora", 4, checkpointing=checkpointing)
        found = {}
        with learner.loaded():
            own = {value.untyped_storage().data_ptr() for value in (*learner.network.parameters(), *learner.parameters.values())}

            def pack(tensor: Tensor, found: dict[int, Tensor] = found, own: set[int] = own) -> Tensor:
                if tensor.untyped_storage().data_ptr() not in own:
                    found[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                Loss(learner, examples(side=16), conditioning(), Options(size=128))(0, loop.random_numbers(0, 0))
            kept.append(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))
    assert kept[1] < 0.3 * kept[0]


class Halved:
    """Another pack's replacement of a layer's attention."""

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], **_: Any) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        self.calls.append(torch.is_grad_enabled())
        return 0.5 * optimized_attention(q, k, v, extra_options["n_heads"], transformer_options=extra_options)


@pytest.mark.parametrize("slot", ["attn1", "attn2"])
@pytest.mark.parametrize("masked", [False, True])
def test_another_packs_replacement_is_honoured(model: Any, slot: str, masked: bool) -> None:
    replaced = model.clone()
    halved = Halved()
    replaced.set_model_patch_replace(halved, slot, "output", 2)
    losses = []
    for base in (model, replaced):
        learner = Learner(base, "lora", 4)
        with learner.loaded():
            loss = Loss(learner, examples(), conditioning(), Options(size=64, masked_attention=masked))(0, loop.random_numbers(0, 0))
            before = len(halved.calls)
            loss.backward()
            losses.append(loss.item())
    assert before == 1  # and once more when its block was computed again
    assert halved.calls == [True, True]
    assert losses[0] != losses[1]


def test_attention_without_a_gradient_is_not_learned_through(model: Any) -> None:
    """Sage, as packs put it into a MODEL: it serves the sampling, and PyTorch's attention the training."""
    base = model.clone()
    calls = []

    def sage(attention: Any, *given: Any, **more: Any) -> Tensor:
        calls.append(torch.is_grad_enabled())
        with torch.no_grad():
            return attention(*given, **more)

    base.model_options["transformer_options"]["optimized_attention_override"] = sage
    learner = Learner(base, "lora", 2)
    with learner.loaded():
        roughened(learner)
        Loss(learner, examples(), conditioning(), Options(size=64))(0, loop.random_numbers(0, 0)).backward()
        assert calls == []
        queries = [value for name, value in learner.parameters.items() if "attn1.to_q" in name]
        assert all(value.grad is not None and bool(value.grad.any()) for value in queries)
        some = examples()
        paint(learner, conditioning(), conditioning(1), some.latents[:1], some.values(slice(0, 1)))
    assert calls
    assert not any(calls)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights_learn_in_float32_on_a_cpu(dtype: torch.dtype, method: Method) -> None:
    base = unet_of(32, small=True, dtype=dtype)
    assert base.model.get_dtype() == dtype
    before = fingerprint(base)
    learner = Learner(base, method, 4)
    with learner.loaded():
        assert torch.equal(learner_predicts(learner), predicted(base))
        learner.load()
        progress = trained(learner, 1)
        assert all(value.dtype == torch.float32 for value in learner.parameters.values())
        roughened(learner)
        wanted = learner_predicts(learner)
        learned = learner.learned()
    assert all(torch.isfinite(torch.tensor(progress.losses)))
    loaded = with_lora(base, learned)
    # Weights of half precision round the sum of both.
    torch.testing.assert_close(
        predicted(loaded), wanted, atol=(4e-3 if dtype == torch.float16 else 4e-2) * float(wanted.abs().max()), rtol=0
    )
    assert unchanged(base, before)


@pytest.mark.parametrize(
    ("dtype", "method"),
    [(torch.float32, "lora"), (torch.float16, "lora"), (torch.bfloat16, "lora"), (torch.float16, "full"), (torch.bfloat16, "full")],
)
def test_bfloat16_as_on_a_gpu(dtype: torch.dtype, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and a preview in the precision of a GPU, with weights of any: nothing meets a number of another kind."""
    base = unet_of(32, small=True, dtype=dtype)
    losses = {}
    base.model.manual_cast_dtype = None  # a GPU samples in the weights' own precision
    for compute in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("maskprompt.training.engine.learner.compute_dtype", lambda model, compute=compute: compute)
        learner = Learner(base, method, 4)
        with learner.loaded():
            seen: list[torch.dtype] = []
            learner.network.diffusion_model.time_embed.register_forward_hook(lambda *given, seen=seen: seen.append(given[2].dtype))
            losses[compute] = trained(learner, 1).losses
            some = examples()
            assert torch.isfinite(paint(learner, conditioning(), conditioning(1), some.latents[:1], some.values(slice(0, 1)))).all()
            assert all(value.dtype == torch.float32 for value in learner.parameters.values())
        assert seen[0] == compute
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.05)


def inpainting_sdxl() -> Any:
    """A MODEL with SDXL's blocks, nine input channels and its label embedding, of random weights."""
    import comfy.supported_models

    widths = {"in_channels": 9, "model_channels": 32, "context_dim": 128, "adm_in_channels": 6 * 256 + 16}
    depths = {
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "transformer_depth_middle": 1,
    }
    return of_random_weights(comfy.supported_models.SDXL({**SDXL, **widths, **depths}))


def test_sdxl_learns() -> None:
    """With its pooled text and sizes, a batch of two, blocks computed twice."""
    learner = Learner(inpainting_sdxl(), "lora", 4)
    with learner.loaded():
        options = Options(noun="ball", steps=2, size=64, batch=2, rate=1e-3)
        text = conditioning(pooled_output=torch.randn(1, 16))
        progress = train(learner, examples(), text, options)
        learned = learner.learned()
    assert progress.step == 2
    assert all(torch.isfinite(torch.tensor(progress.losses)))
    assert learned["diffusion_model.label_emb.0.0.lora_down.weight"].abs().max() > 0


def test_what_holds_on_to_the_models_own_layers_is_left_out_with_a_warning(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A compiled UNet would run the given model's weights, a bypass LoRA would be put into the given model's layers."""
    base = model.clone()
    calls = []
    base.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda *_, **__: calls.append(1))
    weight = model.model.state_dict()["diffusion_model.input_blocks.1.1.proj_in.weight"]
    key = "diffusion_model.input_blocks.1.1.proj_in"
    state = {f"{key}.lora_up.weight": torch.randn(weight.shape[0], 2), f"{key}.lora_down.weight": torch.randn(2, weight[0].numel())}
    bypassed: Any = comfy.sd.load_bypass_lora_for_models(base, None, state, 1.0, 0)[0]
    assert bypassed.injections
    learner = Learner(bypassed, "lora", 4)
    with learner.loaded():
        trained(learner, 1)
        assert not any("forward" in vars(module) for module in model.model.diffusion_model.modules())
    assert not calls
    assert "LoRAs loaded in bypass mode" in caplog.text
    assert bypassed.injections


def test_a_dynamically_loaded_model_is_read_again_as_a_plain_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NVIDIA cards ComfyUI 0.30 streams weights by default, without gradients; its own way out is to load the file once more."""
    asked: list[Any] = []

    def load(*given: Any, disable_dynamic: bool = False) -> Any:
        asked.append((given, disable_dynamic))
        found = unet_of(32, small=True)
        return (found, None) if given[0] == "checkpoint" else found

    wanted = predicted(model)
    monkeypatch.setattr(model, "is_dynamic", lambda: True)
    for init in ((load, ("checkpoint",), 0), (load, ("unet", {}))):
        monkeypatch.setattr(model, "cached_patcher_init", init)
        own = model_copy.twin(model)
        assert type(own) is ModelPatcher
        assert own.model is not model.model
        assert torch.equal(predicted(own), wanted)
    assert asked == [(("checkpoint",), True), (("unet", {}), True)]
    monkeypatch.setattr(model, "cached_patcher_init", None)
    with pytest.raises(ValueError, match=r"cannot be copied for training.*Load Checkpoint"):
        model_copy.twin(model)


def test_nothing_is_left_when_the_copy_is_gone(model: Any) -> None:
    import weakref

    learner = Learner(model, "lora", 2)
    with learner.loaded():
        trained(learner, 1)
    network = weakref.ref(learner.network)
    del learner
    gc.collect()
    assert network() is None
