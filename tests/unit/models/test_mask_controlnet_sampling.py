"""A Mask-ControlNet in the sampler: strength, percent, chains, batches, copies, memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from maskprompt.models.mask_controlnet import control as mask_controlnet
from maskprompt.models.mask_controlnet import diffusers_layout
from maskprompt.models.mask_controlnet.control import MaskControl
from maskprompt.models.mask_controlnet.file import About, Content
from PIL import Image
from torch import Tensor

from demo import tiny_model

from ...support.control_networks import TINY, random_network
from ...support.mask_controlnet import apart, control, control_of, depth, features, fed, reference, untrained, vae
from ...support.masked_sampling import small_sdxl
from ...support.models import Sample
from ...support.unets import SD15, SD21, SDXL, SSD1B

__all__ = ["control", "depth", "vae"]  # fixtures


def applied(
    control: Any, hint: Tensor, vae: Any = None, strength: float = 1.0, start: float = 0.0, end: float = 1.0, before: Any = None
) -> dict[str, Any]:
    """What Apply ControlNet writes into both conditionings."""
    own = control.copy().set_cond_hint(hint.movedim(-1, 1), strength, (start, end), vae=vae).set_previous_controlnet(before)
    entry = {"control": own, "control_apply_to_uncond": False}
    return {"positive": entry, "negative": dict(entry)}


@pytest.mark.parametrize(("size", "batch", "cfg"), [((16, 16), 1, 4.0), ((13, 17), 2, 4.0), ((13, 17), 2, 1.0)])
def test_untrained_it_changes_nothing_to_the_bit(
    model: Any, sample: Sample, vae: Any, size: tuple[int, int], batch: int, cfg: float
) -> None:
    plain = sample(model, size=size, batch=batch, cfg=cfg, steps=2)
    hint = reference(batch, size[0] * 8, size[1] * 8)
    assert torch.equal(sample(model, size=size, batch=batch, cfg=cfg, steps=2, **applied(untrained(model), hint, vae)), plain)


def test_trained_it_acts_by_its_hint_and_strength(model: Any, sample: Sample, vae: Any, control: MaskControl) -> None:
    """At strength 0 not at all; and it leaves nothing behind in the model."""
    plain = sample(model)
    painted = [sample(model, **applied(control, reference(seed=seed), vae, strength)) for seed, strength in ((1, 1.0), (1, 0.5), (2, 1.0))]
    for index, one in enumerate(painted):
        assert torch.isfinite(one).all()
        assert all(apart(one, other) > 1e-2 for other in [plain, *painted[:index]])
    assert torch.equal(sample(model, **applied(control, reference(seed=1), vae, 0.0)), plain)
    assert torch.equal(sample(model, **applied(control, reference(seed=1), vae)), painted[0])
    assert torch.equal(sample(model), plain)


@pytest.mark.parametrize("scale", [0.18215, 0.5])
def test_it_is_fed_the_latents_of_the_hint(model: Any, vae: Any, scale: float) -> None:
    """Written out: the hint's latents times the scale, the noisy latents over their deviation, the noise level's step, times strength."""
    network = random_network(TINY, 2)
    x, context = fed(height=13, width=17)
    hint = reference(height=104, width=136)
    sigma = 2.5
    control = control_of(network, About(scale)).set_cond_hint(hint.movedim(-1, 1), 0.7, vae=vae)
    found = features(control, model, x, sigma, context)
    alphas = tiny_model.alphas()
    step = ((1 - alphas) / alphas).sqrt().log().sub(torch.tensor(sigma).log()).abs().argmin()
    with torch.no_grad():
        wanted = network(x / (sigma**2 + 1) ** 0.5, vae.encode(hint) * scale, step[None].float(), context)
    assert found is not None
    for one, other in zip(found, [*wanted["output"], *wanted["middle"]], strict=True):
        assert other.abs().max() > 0.05
        torch.testing.assert_close(one, other * 0.7, atol=1e-4, rtol=1e-3)


def test_a_large_reference_is_shrunk_and_not_thinned_out(model: Any, vae: Any, control: MaskControl) -> None:
    """A hint of three times the size, each pixel repeated with noise that is nought on average, is the hint itself."""
    hint = reference(height=128, width=128) * 0.8 + 0.1
    noise = torch.tensor([[0.1, -0.05, 0.0], [-0.1, 0.05, 0.05], [-0.05, 0.1, -0.1]]).repeat(128, 128)[None, ..., None]
    large = hint.repeat_interleave(3, 1).repeat_interleave(3, 2) + noise
    x, context = fed()
    small, shrunk = (features(control.copy().set_cond_hint(one.movedim(-1, 1), vae=vae), model, x, 1.0, context) for one in (hint, large))
    assert small is not None
    assert shrunk is not None
    for one, other in zip(small, shrunk, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_small_reference_is_enlarged_smoothly(model: Any, vae: Any, control: MaskControl) -> None:
    """As training enlarges its pictures (Pillow's bilinear), not by repeating pixels."""
    small = reference(height=64, width=64)
    bilinear = torch.stack([
        torch.from_numpy(np.asarray(Image.fromarray(small[0, ..., channel].numpy()).resize((128, 128), Image.Resampling.BILINEAR)).copy())
        for channel in range(3)
    ], -1)[None]  # fmt: skip
    x, context = fed()
    wanted, given = (
        features(control.copy().set_cond_hint(one.movedim(-1, 1), vae=vae), model, x, 1.0, context) for one in (bilinear, small)
    )
    assert wanted is not None
    assert given is not None
    for one, other in zip(wanted, given, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_start_and_end_percent(model: Any, sample: Sample, vae: Any, control: MaskControl) -> None:
    hint = reference()
    plain = sample(model)
    parts = [sample(model, **applied(control, hint, vae, start=start, end=end)) for start, end in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))]
    for index, one in enumerate(parts):
        assert all(apart(one, other) > 1e-3 for other in [plain, *parts[:index]])
    assert torch.equal(sample(model, **applied(control, hint, vae, start=1.0)), plain)
    x, context = fed()
    late = control.copy().set_cond_hint(hint.movedim(-1, 1), timestep_percent_range=(0.25, 0.75), vae=vae)
    first, last = (model.model.model_sampling.percent_to_sigma(percent) for percent in (0.25, 0.75))
    acts = [features(late, model, x, sigma, context) is not None for sigma in (first * 1.01, first * 0.99, last * 1.01, last * 0.99)]
    assert acts == [False, True, True, False]


def never(model: Any) -> Any:
    """The model, whose UNet must not run."""
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda run, given: pytest.fail("too late"))
    return clone


def test_without_a_fitting_vae_it_says_so_before_sampling(model: Any, sample: Sample, control: MaskControl) -> None:
    for wired, message in (
        (None, r"goes through a VAE: connect the checkpoint's VAE to Apply ControlNet's vae input"),
        (SimpleNamespace(latent_channels=16), r"makes latents of 16 channels, Mask-ControlNet's hint has 4: connect the checkpoint's VAE"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(never(model), **applied(control, reference(), wired))


def test_a_control_network_of_another_base_is_refused_before_sampling(model: Any, sample: Sample, vae: Any, control: MaskControl) -> None:
    other = small_sdxl()
    pooled = {"pooled_output": torch.randn(1, 16)}
    given = {half: {**entry, **pooled} for half, entry in applied(control, reference(), vae).items()}
    base = "a UNet of 32 channels with text of width 128"
    message = rf"made for {base} whose (\w+) is (.+), and the model is {base} whose \1 is (?!\2:)"
    with pytest.raises(ValueError, match=message):
        sample(never(other), **given)
    wrong = control_of(random_network(diffusers_layout.shape_of(other.model.model_config.unet_config)))
    with pytest.raises(ValueError, match=r"load a Mask-ControlNet for this model, or the checkpoint that it was trained on"):
        sample(never(model), **applied(wrong, reference(), vae))


@pytest.mark.parametrize(
    ("made_for", "model", "message"),
    [
        (SD15, SDXL, r"a UNet of 320 channels with text of width 768 \(SD 1\.5\), and the model is .* width 2048 \(SDXL\)"),
        (SDXL, SD21, r"width 2048 \(SDXL\), and the model is .* width 1024 \(SD 2\.1\)"),
        (SD21, SD15, r"width 1024 \(SD 2\.1\), and the model is .* width 768 \(SD 1\.5\)"),
        (SDXL, SSD1B, "Mask-ControlNet: .*some were left out, as in SSD-1B"),
        (SD15, {"image_model": "flux"}, r"Mask-ControlNet: .*needs a UNet with cross-attention: SD 1\.5, SD 2\.1 or SDXL"),
        (SD15, None, "Mask-ControlNet: .*needs a UNet"),
    ],
)
def test_families_are_told_apart(made_for: dict[str, Any], model: dict[str, Any] | None, message: str) -> None:
    shape = diffusers_layout.shape_of(made_for)
    with pytest.raises(ValueError, match=message):
        mask_controlnet.check_base(shape, SimpleNamespace(model_config=SimpleNamespace(unet_config=model)))
    mask_controlnet.check_base(shape, SimpleNamespace(model_config=SimpleNamespace(unet_config={**made_for, "in_channels": 9})))


def test_chained_with_a_stock_control_network(model: Any, sample: Sample, vae: Any, control: MaskControl, depth: Any) -> None:
    """In both orders the sum of the two, each with a hint and a strength of its own."""
    own = reference(seed=1)
    picture = reference(seed=2)
    x, context = fed()
    alone = [
        features(one.copy().set_cond_hint(hint.movedim(-1, 1), strength, vae=given), model, x, 1.5, context)
        for one, hint, strength, given in ((control, own, 0.8, vae), (depth, picture, 0.6, None))
    ]
    first = control.copy().set_cond_hint(own.movedim(-1, 1), 0.8, vae=vae)
    second = depth.copy().set_cond_hint(picture.movedim(-1, 1), 0.6)
    chains = [
        second.copy().set_previous_controlnet(first),
        first.copy().set_previous_controlnet(second),
    ]
    mine, stock = alone
    assert mine is not None
    assert stock is not None
    for chain in chains:
        found = features(chain, model, x, 1.5, context)
        assert found is not None
        for both, one, other in zip(found, mine, stock, strict=True):
            assert min(one.abs().max(), other.abs().max()) > 0
            torch.testing.assert_close(both, one + other, atol=1e-4, rtol=1e-4)

    def painted(*, before: Any = None, net: Any, hint: Tensor, given: Any) -> Tensor:
        return sample(model, **applied(net, hint, given, before=before))

    single = [painted(net=control, hint=own, given=vae), painted(net=depth, hint=picture, given=None)]
    together = [
        painted(net=depth, hint=picture, given=None, before=first.copy().set_cond_hint(own.movedim(-1, 1), vae=vae)),
        painted(net=control, hint=own, given=vae, before=second.copy().set_cond_hint(picture.movedim(-1, 1))),
    ]
    assert all(apart(both, one) > 1e-2 for both in together for one in [*single, sample(model)])
    assert apart(*together) < 1e-2 * apart(together[0], single[1])
    assert torch.equal(
        painted(net=untrained(model), hint=own, given=vae, before=second.copy().set_cond_hint(picture.movedim(-1, 1))), single[1]
    )


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_reference_for_each_picture(model: Any, sample: Sample, vae: Any, control: MaskControl, cfg: float) -> None:
    """Of two, each picture has its own; one serves for all; of two for three pictures the first comes again."""
    one = reference(seed=1)
    other = reference(seed=2)

    def painted(hint: Tensor, batch: int) -> Tensor:
        return sample(model, batch=batch, cfg=cfg, steps=1, **applied(control, hint, vae))

    def alike(found: Tensor, wanted: Tensor) -> bool:
        return apart(found, wanted) < 1e-3 * float(wanted.abs().max())

    both = painted(torch.cat([one, other]), 2)
    first = painted(one, 2)
    second = painted(other, 2)
    assert alike(both[0], first[0])
    assert alike(both[1], second[1])
    assert apart(first[1], second[1]) > 1e-2
    assert alike(first, painted(torch.cat([one, one]), 2))
    three = painted(torch.cat([one, other]), 3)
    wanted = painted(torch.cat([one, other, one]), 3)
    assert alike(three, wanted)


@pytest.mark.parametrize(("size", "hint"), [((13, 17), (104, 136)), ((9, 7), (64, 64)), ((31, 22), (300, 200)), ((8, 21), (33, 50))])
def test_any_size_samples(model: Any, sample: Sample, vae: Any, control: MaskControl, size: tuple[int, int], hint: tuple[int, int]) -> None:
    found = sample(model, size=size, steps=1, **applied(control, reference(1, *hint), vae))
    assert found.shape[-2:] == size
    assert torch.isfinite(found).all()


def test_one_size_after_another_and_back(model: Any, sample: Sample, vae: Any, control: MaskControl) -> None:
    """The hint is encoded anew for each, also where the same control is sampled again."""
    entry = applied(control, reference(), vae)
    results = [sample(model, size=size, steps=1, **entry) for size in ((16, 16), (8, 24), (16, 16))]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], sample(model, size=(8, 24), steps=1, **applied(control, reference(), vae)))


def test_a_copy_keeps_everything(vae: Any, control: MaskControl, depth: Any) -> None:
    hint = reference().movedim(-1, 1)
    given = control_of(control.network, About(0.3, "words", masked=False)).set_cond_hint(hint, 0.4, (0.1, 0.6), vae=vae)
    given.set_previous_controlnet(depth)
    copied = given.copy()
    assert type(copied) is MaskControl
    left_out = {"previous_controlnet", "latent_format", "preprocess_image", "cond_hint"}
    assert vars(copied).keys() == vars(given).keys()
    for name, value in vars(given).items():
        if name not in left_out:
            assert vars(copied)[name] is value or vars(copied)[name] == value, name
    assert copied.latent_format is not None
    assert torch.equal(copied.latent_format.process_in(torch.ones(1)), torch.tensor([0.3]))
    assert copied.previous_controlnet is None  # as of ComfyUI's own: the node that copies says what comes before
    copied.set_cond_hint(hint + 1, 0.9)
    assert (given.strength, given.cond_hint_original is hint, given.vae is vae) == (0.4, True, True)
    moved = given.deepclone_multigpu(torch.device("cpu"))
    assert type(moved) is MaskControl
    assert moved.about == given.about
    assert moved.network is not given.network
    assert all(torch.equal(one, other) for one, other in zip(moved.network.parameters(), given.network.parameters(), strict=True))


def test_comfyui_loads_and_unloads_the_network(
    model: Any, sample: Sample, vae: Any, control: MaskControl, depth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hands its patcher over, one for all copies, so that memory is managed as for any model; of a chain, each hands its own."""
    import comfy.model_management

    patcher = control.control_model_wrapped
    assert patcher.model is control.network
    assert control.get_models() == [patcher]
    assert control.copy().get_models() == [patcher]
    chained = control.copy().set_previous_controlnet(depth)
    assert set(chained.get_models()) == {patcher, depth.control_model_wrapped}
    loaded: list[Any] = []
    load = comfy.model_management.load_models_gpu

    def noted(models: list[Any], *given: Any, **more: Any) -> Any:
        loaded.extend(models)
        return load(models, *given, **more)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    sample(model, steps=1, **applied(control, reference(), vae))
    assert patcher in loaded
    found = applied(control, reference(), vae)["positive"]["control"]
    sample(model, steps=1, positive={"control": found})
    assert found.cond_hint is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision(model: Any, sample: Sample, vae: Any, control: MaskControl, dtype: torch.dtype) -> None:
    rounded = {name: value.to(dtype) for name, value in control.network.state_dict().items()}
    half = mask_controlnet.of_weights(Content(TINY, rounded, None, About()), "this one")
    full = mask_controlnet.of_weights(Content(TINY, {name: value.float() for name, value in rounded.items()}, None, About()), "this one")
    x, context = fed()
    with torch.inference_mode():
        hint = reference().movedim(-1, 1)
        found, wanted = (features(one.copy().set_cond_hint(hint, vae=vae), model, x, 1.0, context) for one in (half, full))
        painted = sample(model, **applied(half, reference(), vae))
    assert torch.isfinite(painted).all()
    assert found is not None
    assert wanted is not None
    for one, other in zip(found, wanted, strict=True):
        assert apart(one.float(), other) < 0.1 * float(other.abs().max())


def test_sdxl_is_served(sample: Sample, vae: Any) -> None:
    """With its pooled text and sizes, which the control network reads too."""
    model = small_sdxl()
    pooled = {"pooled_output": torch.randn(1, 16)}
    plain = sample(model, size=(13, 22), steps=2, positive=pooled, negative=pooled)

    def painted(control: MaskControl, pooled: dict[str, Any]) -> Tensor:
        given = {half: {**entry, **pooled} for half, entry in applied(control, reference(1, 104, 176), vae).items()}
        return sample(model, size=(13, 22), steps=2, **given)

    assert torch.equal(painted(untrained(model), pooled), plain)
    network = random_network(diffusers_layout.shape_of(model.model.model_config.unet_config))
    trained = control_of(network, About(0.13025))
    assert trained.network.shape["adm_in_channels"] == 6 * 256 + 16
    result = painted(trained, pooled)
    assert torch.isfinite(result).all()
    assert apart(result, plain) > 1e-4
    without = random_network(network.shape)
    for value in without.label_emb.parameters():
        value.zero_()
    assert apart(painted(control_of(without, About(0.13025)), pooled), result) > 1e-6
