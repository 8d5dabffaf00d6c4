"""The probe's maps and gradients against softmax written densely; the attention it looks at stays as it is, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.attention import chain, grid, layers, probe
from maskprompt.attention.maps import Reading, Readings
from maskprompt.attention.masked_attention import MaskedCrossAttention
from maskprompt.training.engine import model_copy
from maskprompt.training.engine.learner import Learner
from torch import Tensor

from benchmarks.speed.measure import Held

from ...support.attention import call_of, plain, split
from ...support.learners import unet_of
from ...support.models import Sample
from ...support.unets import UNETS, keys, unet


def dense(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Every weight of every head, as the formula says: [B, heads, N, M]."""
    return (split(q, heads) @ split(k, heads).transpose(-1, -2) / (q.shape[-1] / heads) ** 0.5).softmax(-1)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    tokens = draw(st.integers(1, 20))
    images = draw(st.integers(1, 3))
    many = draw(st.integers(1, 4))
    sets = draw(st.integers(1, images))
    group = st.lists(st.integers(0, tokens - 1), min_size=1, max_size=3, unique=True).map(tuple)
    wanted = draw(st.lists(st.lists(group, min_size=many, max_size=many).map(tuple), min_size=sets, max_size=sets).map(tuple))
    return {
        "height": draw(st.integers(1, 9)), "width": draw(st.integers(1, 11)), "heads": draw(st.integers(1, 3)), "images": images,
        "halves": draw(st.integers(1, 2)), "tokens": tokens, "repeats": draw(st.integers(1, 3)), "wanted": wanted,
        "at_once": draw(st.sampled_from([1, 50, 2**22])), "seed": draw(st.integers(0, 2**30)),
    }  # fmt: skip


def tensors(case: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v; the prompt's tokens stand in k and v as often as `repeats` says."""
    torch.manual_seed(case["seed"])
    batch = case["images"] * case["halves"]
    width = 4 * case["heads"]
    q = torch.randn(batch, case["height"] * case["width"], width, dtype=dtype)
    return [q, *(torch.randn(batch, case["tokens"], width, dtype=dtype).repeat(1, case["repeats"], 1) for _ in range(2))]


def expected(case: dict[str, Any], q: Tensor, k: Tensor) -> Tensor:
    """The positive rows' wanted columns, a group's and a column's repeats together: [images, N, wanted]."""
    whole = dense(q, k, case["heads"]).mean(1)[: case["images"]]
    whole = sum(whole.split(case["tokens"], -1), torch.zeros(()))
    sets = [case["wanted"][row % len(case["wanted"])] for row in range(case["images"])]
    return torch.stack(
        [torch.stack([maps[:, list(group)].sum(1) for group in groups], 1) for maps, groups in zip(whole, sets, strict=True)]
    )


def read(case: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, inner: Any = None) -> tuple[Tensor, Tensor]:
    """The attention's result and the maps."""
    call = call_of("cross", case["height"], case["width"], case["heads"], len(q), case["images"])
    readings = Readings()
    result = probe.Probe(case["wanted"], case["tokens"], readings).attend(q, k, v, call, inner or plain(case["heads"]))
    (found,) = readings.all()
    assert found.rows == tuple(row for row in call.rows if row.half == 0)
    return result, found.maps


@given(case=cases())
@settings(max_examples=80, deadline=None)
def test_maps_are_the_columns_of_the_dense_softmax(case: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "AT_ONCE", case["at_once"])
        q, k, v = tensors(case)
        result, maps = read(case, q, k, v)
    torch.testing.assert_close(maps, expected(case, q, k), atol=1e-6, rtol=1e-5)
    assert torch.equal(result, plain(case["heads"])(q, k, v))


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_gradients_are_the_dense_ones(case: dict[str, Any]) -> None:
    q, k, v = (value.requires_grad_() for value in tensors(case, torch.float64))
    weight = torch.randn(case["images"], q.shape[1], len(case["wanted"][0]), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "AT_ONCE", case["at_once"])
        found = torch.autograd.grad((read(case, q, k, v)[1] * weight).sum(), (q, k))
    wanted = torch.autograd.grad((expected(case, q, k) * weight).sum(), (q, k))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, count, 6, dtype=torch.float64, requires_grad=True) for count in (5, 7))
    readout = torch.rand(7, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k: probe.columns(q, k, 2, readout), (q, k))


def test_half_precision_is_read_in_float32() -> None:
    """Under autocast too, whose matrix products are rounded to three digits."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, count, 32).bfloat16().requires_grad_() for count in (40, 77))
    readout = torch.eye(77)
    with torch.autocast("cpu", torch.bfloat16):
        maps = probe.columns(q, k, 4, readout)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, dense(q.float(), k.float(), 4).mean(1), atol=1e-6, rtol=1e-5)
    found = torch.autograd.grad((maps**2).sum(), (q, k))
    wanted = torch.autograd.grad((dense(q.float(), k.float(), 4).mean(1) ** 2).sum(), (q, k))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-2)


def test_only_a_part_of_the_weights_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that is made, forwards and backwards, against the whole N x M matrix."""
    monkeypatch.setattr(probe, "AT_ONCE", 4096)
    q, k = (torch.randn(1, count, 16, requires_grad=True) for count in (1024, 77))
    with Held() as held:
        probe.columns(q, k, 8, torch.eye(77)[:, :2]).sum().backward()
    whole = 8 * 1024 * 77 * 4
    assert held.most < whole / 4


def test_nothing_but_q_and_k_is_kept_for_the_gradient() -> None:
    kept: list[Tensor] = []
    q, k = (torch.randn(1, count, 16, requires_grad=True) for count in (256, 77))
    readout = torch.eye(77)[:, :2]

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        probe.columns(q, k, 8, readout)
    own = sum(value.numel() for value in kept if value.data_ptr() not in (q.data_ptr(), k.data_ptr()))
    assert own <= readout.numel()


def small(dtype: torch.dtype = torch.float64) -> Any:
    """A UNet of two levels in this precision, of random weights."""
    network = unet_of(32, small=True).model.diffusion_model.to(dtype)
    network.dtype = dtype
    return network.requires_grad_(False)


def attention_loss(readings: Readings) -> Tensor:
    """Equations 2 and 3 with a disc for a mask: every map over its own maximum."""
    maps = readings.mean()
    y, x = torch.meshgrid(torch.arange(maps.shape[2]), torch.arange(maps.shape[3]), indexing="ij")
    disc = ((y - 3) ** 2 + (x - 2) ** 2 < 6).to(maps)
    return ((maps / maps.amax((2, 3), keepdim=True) - disc) ** 2).mean()


def gradients(network: Any, dtype: torch.dtype, part: str, scope: chain.Scope) -> list[Tensor]:
    """Of the picture's loss, the maps' loss or both, with respect to the latent, the prompt and two of the weights."""
    torch.manual_seed(3)
    readings = Readings()
    given = [torch.randn(2, 9, 8, 8, dtype=dtype).requires_grad_(), torch.randn(2, 12, 128, dtype=dtype).requires_grad_()]
    attention = network.input_blocks[1][1].transformer_blocks[0].attn2
    weights = [attention.to_k.weight.requires_grad_(), network.output_blocks[1][1].transformer_blocks[0].attn2.to_q.weight.requires_grad_()]
    reader = probe.Probe((((1,), (4, 6), (11,)), ((2,), (3,), (5, 0))), 12, readings, scope)
    options = {
        "sigmas": torch.tensor([1.0]), "cond_or_uncond": [0], "optimized_attention_override": _differentiable,
        "wrappers": {WrappersMP.DIFFUSION_MODEL: {chain.KEY: [chain.Chain((reader,))]}},
    }  # fmt: skip
    result = network(given[0], torch.tensor([500.0, 100.0], dtype=dtype), context=given[1], transformer_options=options)
    losses = {"picture": (result**2).mean(), "maps": attention_loss(readings)}
    count = len(readings.all())
    loss = losses["picture"] + 0.01 * losses["maps"] if part == "both" else losses[part]
    found = torch.autograd.grad(loss, [*given, *weights], allow_unused=True)
    assert len(readings.all()) == count == len(scope.layers or ())
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip([*given, *weights], found, strict=True)]


def _differentiable(_attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


@pytest.mark.parametrize("part", ["maps", "both", "picture"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_gradient_checkpointing_changes_no_gradient(part: str, dtype: torch.dtype, tolerance: float) -> None:
    """Blocks computed again for the gradient call their probes again. Relative to each gradient's largest value."""
    plain_ = small(dtype)
    again = small(dtype)
    scope = chain.Scope(probe.layers_near(plain_, (8, 8), 8))
    assert scope.layers == keys("input", 1) | keys("output", 2, 3)
    model_copy.checkpoint_blocks(again)
    wanted, found = (gradients(network, dtype, part, scope) for network in (plain_, again))
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 0
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_learner_learns_the_same_with_and_without_checkpointing(batch: int) -> None:
    """A LoRA through ComfyUI's sampling code, by the maps alone."""
    model = unet_of(32, small=True)
    found = []
    for checkpointing in (False, True):
        learner = Learner(model, "lora", 4, checkpointing=checkpointing)
        with learner.loaded(), torch.enable_grad():
            generator = torch.Generator().manual_seed(5)
            for value in learner.parameters.values():
                value.data += 0.1 * torch.randn(value.shape, generator=generator)
            readings = Readings()
            latents = torch.randn(batch, 4, 8, 8, generator=generator)
            scope = chain.Scope(probe.layers_near(learner.network.diffusion_model, (8, 8), 8))
            shown = {"concat_latent_image": latents, "concat_mask": torch.ones(1, 1, 64, 64)}
            conditions = learner.conditions([[torch.randn(1, 9, 128, generator=generator), {}]], latents, shown)
            learner.denoised(latents, torch.full((batch,), 2.0), conditions, (probe.Probe((((2,), (3,)),), 9, readings, scope),))
            attention_loss(readings).backward()
            found.append({name: value.grad for name, value in learner.parameters.items() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any("attn2.to_k" in name for name in found[0])
    for name, wanted in found[0].items():
        assert (found[1][name] - wanted).abs().max() <= 1e-5 * max(float(wanted.abs().max()), 1e-6), name


def reader(tokens: int = 77, scope: chain.Scope = chain.EVERYWHERE, wanted: tuple[int, ...] = (1, 5)) -> tuple[Readings, probe.Probe]:
    readings = Readings()
    return readings, probe.Probe((tuple((column,) for column in wanted),), tokens, readings, scope)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_picture_is_the_same_to_the_bit_and_the_positive_half_alone_is_read(model: Any, sample: Sample, cfg: float) -> None:
    readings, patch = reader()
    assert torch.equal(sample(chain.install(model, patch), cfg=cfg, batch=2, steps=1), sample(model, cfg=cfg, batch=2, steps=1))
    found = readings.all()
    assert [reading.layer for reading in found] == list(layers.layers_of(model.get_model_object("diffusion_model")))
    for reading in found:
        assert [(row.half, row.image) for row in reading.rows] == [(0, 0), (0, 1)]
        assert reading.maps.shape == (2, reading.grid[0] * reading.grid[1], 2)


@pytest.mark.parametrize("size", [(16, 16), (13, 9)])
def test_a_longer_negative_prompt_changes_no_map(model: Any, sample: Sample, size: tuple[int, int]) -> None:
    """ComfyUI repeats the shorter prompt to the longer one's length; another positive entry is read as if it were alone."""
    import comfy.sample

    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, 4, *size, generator=generator)
    text = torch.randn(1, 77, 128, generator=generator)
    found = []
    for negative in (torch.zeros(1, 77, 128), torch.randn(1, 154, 128, generator=generator)):
        readings, patch = reader(wanted=(3, 40))
        comfy.sample.sample(chain.install(model, patch), noise, 1, 4.0, "euler", "normal", [[text, {}]], [[negative, {}]],
                            torch.zeros_like(noise), seed=1, disable_pbar=True)  # fmt: skip
        found.append(readings.on_latent())
    assert found[0].shape == (1, 2, *size)
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_it_reads_what_comes_to_the_layer_whatever_others_do_beneath(model: Any, sample: Sample) -> None:
    """Masked Attention and another pack's replacement change the first layer's result, not the map that is read there."""
    seen = []

    def theirs(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        seen.append(q.shape)
        return 0.5 * chain.attention(q, k, v, extra_options)

    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    first = chain.Scope(frozenset(keys("input", 1)))
    masked = chain.install(model, MaskedCrossAttention(grid.RegionMask(mask)))
    masked.set_model_attn2_replace(theirs, "input", 1)
    maps = []
    for base in (model, masked):
        readings, patch = reader(scope=first)
        probed = sample(chain.install(base, patch), steps=1)
        assert torch.equal(probed, sample(base, steps=1))
        maps.append(readings.mean())
    assert seen
    assert torch.equal(maps[0], maps[1])


def test_a_map_lies_where_its_conditionings_area_is(model: Any, sample: Sample) -> None:
    readings, patch = reader()
    sample(chain.install(model, patch), size=(16, 24), steps=1, positive={"area": (8, 16, 8, 4), "strength": 1.0})
    maps = readings.on_latent()
    inside = torch.zeros(16, 24, dtype=torch.bool)
    inside[8:, 4:20] = True
    assert maps.shape == (1, 2, 16, 24)
    assert (maps[:, :, inside] > 0).all()
    assert (maps[:, :, ~inside] == 0).all()
    with pytest.raises(ValueError, match="no common mean"):
        readings.mean()


def reading(cells: Tensor, latent: tuple[int, int]) -> Readings:
    """Of one layer that showed these cells [h, w]."""
    found = Readings()
    row = chain.Row(0, 0, (0, 0, *latent))
    size = (cells.shape[0], cells.shape[1])
    found.add(Reading(("input", 1, 0), size, latent, (row,), cells.reshape(1, -1, 1)))
    return found


@pytest.mark.parametrize(
    ("cells", "latent"), [((8, 8), (64, 64)), ((31, 42), (61, 83)), ((8, 11), (61, 83)), ((3, 3), (7, 5)), ((5, 5), (5, 5))]
)
def test_cells_lie_on_the_latent_where_they_are(cells: tuple[int, int], latent: tuple[int, int]) -> None:
    """A ramp over the cells' middles is the same ramp over the latent's pixels, away from the edges; the last cells reach over them."""
    edges = [grid.cell_edges(pixels, count) for pixels, count in zip(latent, cells, strict=True)]
    step = float(edges[0][1] - edges[0][0])
    ramp = ((torch.arange(cells[0]) + 0.5) * step)[:, None].expand(cells).float()
    found = reading(ramp, latent).on_latent()[0, 0]
    assert found.shape == latent
    middles = torch.arange(latent[0]) + 0.5
    sure = (middles >= step / 2) & (middles <= (cells[0] - 0.5) * step)
    torch.testing.assert_close(found[sure], middles[sure, None].expand(-1, latent[1]).float(), atol=1e-3, rtol=1e-3)


def test_the_mean_over_layers_and_its_shape() -> None:
    one = torch.rand(2, 6, 3)
    two = torch.rand(2, 6, 3)
    readings = Readings()
    rows = (chain.Row(0, 0, (0, 0, 2, 3)), chain.Row(0, 1, (0, 0, 2, 3)))
    for maps in (one, two):
        readings.add(Reading(("input", 1, 0), (2, 3), (2, 3), rows, maps))
    mean = readings.mean()
    assert mean.shape == (2, 3, 2, 3)
    torch.testing.assert_close(mean[1, 2, 1, 0], (one[1, 3, 2] + two[1, 3, 2]) / 2)
    torch.testing.assert_close(readings.on_latent(), mean)


def test_errors_say_what_is_wrong(model: Any, sample: Sample) -> None:
    with pytest.raises(ValueError, match="columns 0 to 76, not 77"):
        reader(wanted=(77,))
    for wanted in ((), ((),), (((1,), ()),), (((1,),), ((1,), (2,)))):
        with pytest.raises(ValueError, match="equally many"):
            probe.Probe(wanted, 77, Readings())
    with pytest.raises(ValueError, match="read nothing"):
        Readings().mean()
    with pytest.raises(ValueError, match="read nothing"):
        Readings().on_latent()
    with pytest.raises(RuntimeError, match=r"prompt has 70 tokens .* gets 77"):
        sample(chain.install(model, reader(tokens=70)[1]), steps=1)
    q = torch.randn(4, 6, 8)
    k = torch.randn(4, 77, 8)
    with pytest.raises(RuntimeError, match="on 4 rows where the batch has 2"):
        reader()[1].attend(q, k, k, call_of("cross", 2, 3, 2, 2, 1), plain(2))


@pytest.mark.parametrize(
    ("name", "latent", "wanted"),
    [
        ("SD 1.5", (64, 64), keys("input", 7, 8) | keys("output", 3, 4, 5)),
        ("SD 2.1", (64, 96), keys("input", 7, 8) | keys("output", 3, 4, 5)),
        ("SD 1.5", (61, 67), keys("input", 7, 8) | keys("output", 3, 4, 5)),
        ("SD 1.5", (32, 32), keys("input", 4, 5) | keys("output", 6, 7, 8)),
        ("SD 1.5", (16, 16), keys("input", 1, 2) | keys("output", 9, 10, 11)),
        ("SD 1.5", (96, 96), keys("input", 7, 8) | keys("output", 3, 4, 5)),
        ("SDXL", (128, 128), keys("input", 7, 8, depth=10) | keys("output", 0, 1, 2, depth=10)),
        ("SDXL", (32, 32), keys("input", 4, 5, depth=2) | keys("output", 3, 4, 5, depth=2)),
    ],
)
def test_the_layers_near_16_x_16(name: str, latent: tuple[int, int], wanted: set[Any]) -> None:
    """Break-a-Scene's five layers at 512 px, and their like elsewhere; never the middle."""
    assert probe.layers_near(unet(name), latent) == wanted


@pytest.mark.parametrize("name", UNETS)
@given(height=st.integers(1, 200), width=st.integers(1, 200), side=st.sampled_from([8, 16, 32]))
@settings(max_examples=20, deadline=None)
def test_the_layers_chosen_share_one_grid(name: str, height: int, width: int, side: int) -> None:
    levels = layers.levels_of(unet(name))
    chosen = probe.layers_near(unet(name), (height, width), side)
    assert len({levels[layer] for layer in chosen}) == 1
    assert chosen == {layer for layer, level in levels.items() if level == levels[min(chosen)] and layer[0] != "middle"}
