"""The patch chain in a real ComfyUI sampler, on a small model of random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from maskprompt.attention import chain, grid, layers
from maskprompt.attention.masked_attention import MaskedCrossAttention, MaskedSelfAttention
from maskprompt.attention.moment import Moment

from ...support.models import Sample, random_model


@dataclass(frozen=True)
class Nothing:
    """A patch that changes nothing, on every layer."""

    kind: chain.Kind
    scope: chain.Scope = chain.EVERYWHERE

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: chain.Call, inner: chain.Inner) -> torch.Tensor:
        return inner(q, k, v)


@dataclass(frozen=True)
class Spy(Nothing):
    """Notes its calls."""

    calls: Any = None

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: chain.Call, inner: chain.Inner) -> torch.Tensor:
        self.calls.append((call, tuple(q.shape)))
        return inner(q, k, v)


def half_mask(height: int = 128, width: int = 128) -> grid.RegionMask:
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2, : width // 2] = 1
    return grid.RegionMask(mask)


def test_patches_that_do_nothing_change_nothing_to_the_bit(model: Any, sample: Sample) -> None:
    patched = chain.install(model, Nothing("self"), Nothing("cross"))
    assert torch.equal(sample(patched), sample(model))


def test_a_model_is_as_it_was_after_a_patched_run(model: Any, sample: Sample) -> None:
    before = sample(model)
    patched = chain.install(model, MaskedCrossAttention(half_mask()), MaskedSelfAttention(half_mask()))
    changed = sample(patched)
    assert not torch.equal(changed, before)
    assert torch.equal(sample(model), before)
    assert torch.equal(sample(patched), changed)


def test_five_runs_give_the_same_picture(model: Any, sample: Sample) -> None:
    patched = chain.install(model, MaskedCrossAttention(half_mask()))
    first = sample(patched)
    assert all(torch.equal(sample(patched), first) for _ in range(4))


def test_every_layer_is_called_once_a_step_with_its_true_grid(model: Any, sample: Sample) -> None:
    calls: list[Any] = []
    sample(chain.install(model, Spy("self", calls=calls), Spy("cross", calls=calls)), size=(29, 43), steps=2, cfg=3.0)
    known = layers.layers_of(model.get_model_object("diffusion_model"))
    assert len(known) == 16
    assert [(c.layer, c.kind) for c, _ in calls] == 2 * [(layer, kind) for layer in known for kind in ("self", "cross")]
    levels = layers.levels_of(model.get_model_object("diffusion_model"))
    for call, shape in calls:
        assert call.grid == (grid.halved(29, levels[call.layer]), grid.halved(43, levels[call.layer]))
        assert shape[0] == len(call.rows) == 2
        assert {row.half for row in call.rows} == {0, 1}
        assert call.latent == (29, 43)
        assert call.plain


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_packs_replacement_on_the_same_layer_still_acts(model: Any, sample: Sample, ours_first: bool) -> None:
    seen = []

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        seen.append(q.shape[1])
        return 0.5 * chain.attention(q, k, v, extra_options)

    def add_theirs(to: Any) -> Any:
        clone = to.clone()
        clone.set_model_attn2_replace(theirs, "input", 1)
        return clone

    mask = MaskedCrossAttention(half_mask())
    both = add_theirs(chain.install(model, mask)) if ours_first else chain.install(add_theirs(model), mask)
    result = sample(both)
    assert seen == [256] * 2
    assert not torch.equal(result, sample(add_theirs(model)))
    assert not torch.equal(result, sample(chain.install(model, mask)))
    other = chain.install(add_theirs(model), mask) if ours_first else add_theirs(chain.install(model, mask))
    assert torch.equal(sample(other), result)


def test_our_patches_run_in_the_graphs_order(model: Any, sample: Sample) -> None:
    order: list[Any] = []
    one = Spy("cross", calls=order)
    two = Spy("cross", chain.Scope(frozenset({("middle", 0, 0)})), calls=order)
    sample(chain.install(chain.install(model, one), two), steps=1)
    middle = [index for index, (call, _) in enumerate(order) if call.layer == ("middle", 0, 0)]
    assert len(middle) == 2
    assert len(order) == 17


def test_a_scope_keeps_to_its_layers_steps_and_half(model: Any, sample: Sample) -> None:
    calls: list[Any] = []
    scope = chain.Scope(frozenset({("output", 3, 0)}), 0.5, 1.0, half="negative")
    sample(chain.install(model, Spy("self", scope, calls)), steps=4)
    assert {call.layer for call, _ in calls} == {("output", 3, 0)}
    assert 0 < len(calls) < 4
    latest = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert all(call.moment.sigma <= latest for call, _ in calls)


def test_one_half_of_cfg_alone_is_changed(model: Any) -> None:
    """The rows of the other half keep the very result they had."""

    @dataclass(frozen=True)
    class Zero(Nothing):
        def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: chain.Call, inner: chain.Inner) -> torch.Tensor:
            return torch.zeros_like(q)

    q = torch.randn(4, 4, 32)
    cases: list[tuple[chain.Half, list[int]]] = [("positive", [2, 3]), ("negative", [0, 1]), ("both", [0, 1, 2, 3])]
    for half, changed in cases:
        options = {"sigmas": torch.tensor([1.0]), "cond_or_uncond": [1, 0]}
        unet = model.get_model_object("diffusion_model")
        composed = chain.Chain((Zero("self", chain.Scope(half=half)),)).composed(unet, torch.zeros(4, 9, 2, 2), options)
        replacement = composed["patches_replace"]["attn1"][("input", 1, 0)]
        result = replacement(q, q, q, {**options, "n_heads": 2, "activations_shape": [4, 32, 2, 2]})
        untouched = [row for row in range(4) if row not in changed]
        assert result[changed].abs().max() == 0
        plain = chain.attention(q, q, q, {"n_heads": 2})
        assert torch.equal(result[untouched], plain[untouched])


def test_a_full_mask_is_no_mask_to_the_bit(model: Any, sample: Sample) -> None:
    full = grid.RegionMask(torch.full((1, 128, 128), 0.98))
    assert torch.equal(sample(chain.install(model, MaskedCrossAttention(full), MaskedSelfAttention(full))), sample(model))


def test_masks_of_two_nodes_meet_in_their_overlap(model: Any) -> None:
    """Two masked self-attentions on one layer: a token sees what both let it see."""
    left, top = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    left[:, :, :2] = 1
    top[:, :2] = 1
    patches = tuple(MaskedSelfAttention(grid.RegionMask(mask)) for mask in (left, top))
    options = {"sigmas": torch.tensor([1.0]), "cond_or_uncond": [0]}
    composed = chain.Chain(patches).composed(model.get_model_object("diffusion_model"), torch.zeros(1, 9, 4, 4), options)
    q, k, v = (torch.randn(1, 16, 8) for _ in range(3))
    result = composed["patches_replace"]["attn1"][("input", 1, 0)](q, k, v, {**options, "n_heads": 1, "activations_shape": [1, 8, 4, 4]})
    sides = [mask.flatten() > 0.5 for mask in (left, top)]
    allowed = torch.stack([side[:, None] == side[None] for side in sides]).all(0).float()
    wanted = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) * allowed) @ v
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


def test_an_area_gets_its_own_window_of_the_mask(model: Any, sample: Sample) -> None:
    """`Conditioning (Set Area)` shows the model a part of the latent; the mask must follow."""
    calls: list[Any] = []
    area = {"area": (8, 16, 8, 0), "strength": 1.0}
    texts = [[torch.randn(1, 77, 128), area]]
    sample(chain.install(model, Spy("cross", calls=calls)), steps=1, more=texts)
    windows = {row.window for call, _ in calls for row in call.rows}
    assert windows == {(0, 0, 16, 16), (8, 0, 8, 16)}
    mask = torch.zeros(1, 128, 128)
    mask[:, 64:] = 1
    cells = grid.RegionMask(mask).cells(0, (16, 16), (8, 0, 8, 16), (8, 16), torch.device("cpu"))
    assert cells.inside.all()


def test_a_tile_of_unknown_place_is_refused_in_words(model: Any, sample: Sample) -> None:
    patched = chain.install(model, MaskedCrossAttention(half_mask())).clone()

    def tiled(apply: Any, arguments: dict[str, Any]) -> torch.Tensor:
        tile = arguments["input"][:, :, :8]
        more = {key: value[:, :, :8] if key == "c_concat" else value for key, value in arguments["c"].items()}
        return apply(tile, arguments["timestep"], **more).repeat(1, 1, 2, 1)

    patched.set_model_unet_function_wrapper(tiled)
    with pytest.raises(RuntimeError, match="tiles or crops"):
        sample(patched)


def test_merged_tokens_are_refused_in_words(model: Any, sample: Sample) -> None:
    patched = chain.install(model, MaskedSelfAttention(half_mask(), scope=chain.Scope(frozenset({("input", 1, 0)})))).clone()
    patched.set_model_attn1_patch(lambda q, k, v, extra_options: (q[:, ::2], k, v))
    with pytest.raises(RuntimeError, match="merges or tiles tokens"):
        sample(patched)


def test_a_model_without_unet_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match="not a UNet"):
        layers.layers_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("size", [(24, 40), (29, 43), (9, 7)])
def test_any_size_samples(model: Any, sample: Sample, size: tuple[int, int]) -> None:
    region = half_mask(size[0] * 8, size[1] * 8)
    patches = (MaskedCrossAttention(region), MaskedSelfAttention(region), MaskedSelfAttention(region, "renormalised"))
    result = sample(chain.install(model, *patches), size=size, steps=1)
    assert result.shape[-2:] == size
    assert torch.isfinite(result).all()


def test_half_precision_weights(sample: Sample) -> None:
    patches = (MaskedCrossAttention(half_mask()), MaskedSelfAttention(half_mask()))
    result = sample(chain.install(random_model(dtype=torch.float16), *patches))
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_a_batch_with_a_mask_for_each_picture(model: Any, sample: Sample, cfg: float) -> None:
    """Each picture of a batch is what it would be alone with its own mask."""
    masks = torch.zeros(3, 128, 128)
    masks[0, :64] = 1
    masks[1, :, 64:] = 1
    masks[2] = 1

    def confined(which: torch.Tensor) -> Any:
        region = grid.RegionMask(which)
        return chain.install(model, MaskedCrossAttention(region), MaskedSelfAttention(region))

    together = sample(confined(masks), batch=3, cfg=cfg)
    for index in range(3):
        alike = sample(confined(masks[index : index + 1]), batch=3, cfg=cfg)
        torch.testing.assert_close(together[index], alike[index], atol=1e-4, rtol=1e-4)


def windowed(model: Any, dim: int, length: int, overlap: int, schedule: str = "standard_static") -> Any:
    """MODEL under core's Context Windows."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    answer: Any = ContextWindowsManualNode.execute(model, length, overlap, schedule, 1, False, "pyramid", dim, False)
    return answer[0]


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_context_windows_over_the_batch_leave_each_picture_its_mask(model: Any, sample: Sample, cfg: float) -> None:
    """Each of six pictures alone with its own mask is what it is in windows of two that do not overlap."""
    masks = torch.zeros(6, 128, 128)
    for number in range(6):
        masks[number, 16 * number : 16 * number + 40, 20:90] = 1
    patch = MaskedCrossAttention(grid.RegionMask(masks))
    in_windows = sample(windowed(chain.install(model, patch), 0, 2, 0), batch=6, cfg=cfg)
    whole = sample(chain.install(model, patch), batch=6, cfg=cfg)
    assert (in_windows - whole).abs().max() < 1e-4 * whole.abs().max()
    seen: list[Any] = []
    sample(windowed(chain.install(model, Spy("cross", calls=seen)), 0, 4, 2), batch=6, steps=1, cfg=cfg)
    assert {tuple(row.image for row in call.rows if row.half == 0) for call, _ in seen} == {(0, 1, 2, 3), (1, 2, 3, 4, 5)}


@pytest.mark.parametrize("dim", [2, 3])
def test_context_windows_over_rows_or_columns_see_their_part_of_the_mask(model: Any, sample: Sample, dim: int) -> None:
    seen: list[Any] = []
    sample(windowed(chain.install(model, Spy("cross", calls=seen)), dim, 16, 0), size=(32, 32), steps=1)
    windows = {row.window for call, _ in seen for row in call.rows}
    # Core shows a later window one row or column more, which it puts before.
    assert windows == ({(0, 0, 16, 32), (15, 0, 17, 32)} if dim == 2 else {(0, 0, 32, 16), (0, 15, 32, 17)})
    assert {call.latent for call, _ in seen} == {(32, 32)}


def test_scattered_rows_are_refused_in_words(model: Any, sample: Sample) -> None:
    scattered = windowed(chain.install(model, Nothing("cross")), 2, 8, 0, "standard_uniform")
    scattered.model_options["context_handler"].closed_loop = True
    scattered.model_options["context_handler"].context_stride = 2
    with pytest.raises(RuntimeError, match="do not lie side by side"):
        sample(scattered, size=(32, 32), steps=4)


def test_animate_diffs_windows_leave_each_picture_its_mask(model: Any, sample: Sample) -> None:
    """It tells in an option of its own which pictures of the batch a call shows."""
    seen: list[Any] = []
    patched = chain.install(model, Spy("cross", calls=seen))
    patched.model_options["transformer_options"]["ad_params"] = {"sub_idxs": [16, 17, 18]}
    sample(patched, batch=3, steps=1, cfg=1.0)
    assert {tuple(row.image for row in call.rows) for call, _ in seen} == {(16, 17, 18)}
    patched.model_options["transformer_options"]["ad_params"] = {"sub_idxs": None}
    seen.clear()
    sample(patched, batch=3, steps=1, cfg=1.0)
    assert {tuple(row.image for row in call.rows) for call, _ in seen} == {(0, 1, 2)}
    patched.model_options["transformer_options"]["ad_params"] = {"sub_idxs": [1, 2]}
    with pytest.raises(RuntimeError, match="shows 3 pictures of the batch where its window names 2"):
        sample(patched, batch=3, steps=1, cfg=1.0)


def test_rows_that_an_attention_couple_adds_are_refused_for_one_half() -> None:
    """Which of them is the positive prompt's is not known; the wrong ones were masked without a word."""
    call = chain.Call(
        "cross", ("input", 1, 0), 2, (2, 2), (2, 2), (chain.Row(0, 0, (0, 0, 2, 2)), chain.Row(1, 0, (0, 0, 2, 2))), Moment(1.0), True
    )
    spy = Spy("cross", scope=chain.Scope(half="positive"))
    run = chain._on_half(spy, call, lambda q, k, v: q)
    with pytest.raises(RuntimeError, match="on 4 rows where the batch has 2"):
        run(*torch.zeros(3, 4, 4, 8).unbind(0))
