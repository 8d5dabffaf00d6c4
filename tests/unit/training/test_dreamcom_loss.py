"""DreamCom's training against its equations, and Train a Subject called as ComfyUI calls it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from maskprompt.training.data import references
from maskprompt.training.dreamcom.examples import Examples
from maskprompt.training.dreamcom.loss import Loss
from maskprompt.training.dreamcom.options import Options
from maskprompt.training.engine import checkpoint, loop
from maskprompt.training.engine.learner import Learner
from torch import Tensor

from ...support.dreamcom import box_masks, quick_previews
from ...support.learners import conditioning, examples
from ...support.models import Sample, random_model

__all__ = ["quick_previews"]  # fixtures


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
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    from ...support.learners import with_another_lora

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
    for key in ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", "middle_block.2.out_layers.3.bias"):
        other = random_model()
        weight = dict(other.model.diffusion_model.named_parameters())[key]
        weight.data = weight.data + 0.01
        found.append(checkpoint.signature(other))
    (velocity,) = ModelSamplingDiscrete().patch(base, "v_prediction", False)
    found.append(checkpoint.signature(velocity))
    assert len(set(found)) == len(found)
    comfy.model_management.load_models_gpu([plain])
    assert (checkpoint.signature(plain), checkpoint.signature(base)) == (found[3], first)
