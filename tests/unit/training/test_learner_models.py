"""Models of other precisions, families and memory, and other packs on them, that learn."""

from __future__ import annotations

import gc
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import loop, model_copy
from maskprompt.training.engine.learner import Learner
from maskprompt.training.engine.preview import paint
from maskprompt.training.engine.trainable_weights import Method
from torch import Tensor

from ...support.learners import (
    METHODS,
    conditioning,
    examples,
    fingerprint,
    learner_predicts,
    model,
    of_random_weights,
    predicted,
    quick_previews,
    roughened,
    train,
    trained,
    unchanged,
    unet_of,
    with_lora,
)
from ...support.unets import SDXL

__all__ = ["model", "quick_previews"]  # fixtures


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
