"""Prompt Region as a node: on a UNet in one pass against a dense mask, beside other nodes, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from maskprompt.attention import chain, layers
from maskprompt.nodes.dreamcom import MaskedAttention
from maskprompt.nodes.prompt_region import EVERYWHERE, OUTSIDE, PromptRegionNode

from ...support.dense import Area, blended, listed, mask_of, override, softmax_attention
from ...support.models import Sample
from ...support.tiny_transformers import TINIES

WIDTH = 128


def words(count: int, seed: int) -> torch.Tensor:
    return torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def masks() -> list[torch.Tensor]:
    left, lower = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128)
    left[:, :, :64] = 1
    lower[:, 64:, 48:] = 1
    return [left, lower]


def with_regions(model: Any, **inputs: Any) -> Any:
    """In one pass, unless told."""
    given = {"own_pass": 0.0, **inputs}
    for number, mask in enumerate(masks()):
        (model,) = PromptRegionNode.execute(model=model, text=[[words(77, 40 + number), {}]], mask=mask, **given).args
    return model


def replaced(model: Any, kind: str, theirs: Any) -> Any:
    """The MODEL with another pack's replacement on every layer of a kind, attn1 or attn2."""
    clone = model.clone()
    for name, block, index in layers.layers_of(model.get_model_object("diffusion_model")):
        getattr(clone, f"set_model_{kind}_replace")(theirs, name, block, index)
    return clone


def joined_by_hand(model: Any, areas_of: Any, own: int = 77) -> Any:
    """The UNet with a dense mask in each cross-attention, for a text of three times 77 words; other texts see as ever."""
    text = listed(("words", own, 0), ("words", 77, 1), ("words", 77, 2))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        height, width = extra_options["activations_shape"][2:4]
        if k.shape[1] != len(text):
            return chain.attention(q, k, v, extra_options)
        cells = listed(("cells", height * width))
        heads = [x.unflatten(2, (extra_options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v)]
        areas = areas_of(height)
        found = [
            weight * softmax_attention(heads[0], heads[1], heads[2], mask_of(cells, text, areas, there))
            for weight, there in blended([area.strength for area in areas])
        ]
        return torch.stack(found).sum(0).transpose(1, 2).flatten(2)

    return replaced(model, "attn2", attend)


def areas(height: int, strength: float = 1.0, replaces: bool = False) -> list[Area]:
    inside = [F.avg_pool2d(mask[None], 128 // height)[0, 0].flatten() >= 0.5 for mask in masks()]
    return [Area(place, strength, replaces) for place in inside]


def run(model: Any, text: torch.Tensor, negative: torch.Tensor, cfg: float = 1.0, batch: int = 1, steps: int = 2, **options: Any) -> Any:
    import comfy.sample

    noise = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", [[text, options]], [[negative, {}]], torch.zeros_like(noise), seed=1,
        disable_pbar=True,
    )  # fmt: skip


@pytest.mark.parametrize(("strength", "base"), [(1.0, EVERYWHERE), (0.5, EVERYWHERE), (1.0, OUTSIDE)])
def test_a_unet_equals_a_dense_mask(model: Any, strength: float, base: str) -> None:
    own, negative = words(77, 7), words(77, 8)
    result = run(with_regions(model, strength=strength, base=base), own, negative, 4.0, 2)
    whole = torch.cat([own, words(77, 40), words(77, 41)], 1)
    wanted = run(joined_by_hand(model, lambda height: areas(height, strength, base == OUTSIDE)), whole, negative, 4.0, 2)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(result / scale, wanted / scale, atol=1e-5, rtol=0)


def test_a_short_prompt_beside_a_long_negative_weighs_what_it_weighs_alone(model: Any) -> None:
    """ComfyUI repeats the shorter text; the region's words must not lose against the repeats. Still one pass."""
    passes: list[int] = []

    def counted(apply: Any, arguments: dict[str, Any]) -> torch.Tensor:
        passes.append(len(arguments["input"]))
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    own, negative = words(77, 7), words(77, 8)
    patched = with_regions(model)
    patched.set_model_unet_function_wrapper(counted)
    # A text said twice is the same text.
    result = run(patched, own, negative.repeat(1, 2, 1), 4.0)
    assert passes == [2, 2]
    wanted = run(patched, own, negative, 4.0)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(result / scale, wanted / scale, atol=1e-5, rtol=0)


def test_kept_apart_a_region_does_not_see_the_other(model: Any, sample: Sample) -> None:
    """With `apart` at 1 nothing of one region reaches the other's exclusive cells through self-attention: seen in one layer."""
    patched = with_regions(model, apart=1.0)
    (whole,) = patched.get_wrappers("diffusion_model", chain.KEY)
    assert len(whole.patches) == 2
    assert not torch.equal(sample(patched), sample(with_regions(model)))


def test_strength_zero_hands_on_the_very_model(model: Any) -> None:
    (result,) = PromptRegionNode.execute(model=model, text=[[words(77, 1), {}]], mask=masks()[0], strength=0.0).args
    assert result is model


def test_after_its_part_of_the_sampling_the_model_is_untouched(model: Any) -> None:
    own, negative = words(77, 7), words(77, 8)
    (late,) = PromptRegionNode.execute(
        model=model, text=[[words(77, 40), {}]], mask=masks()[0], start_percent=1.0, end_percent=1.0
    ).args  # fmt: skip
    assert torch.equal(run(late, own, negative, 4.0), run(model, own, negative, 4.0))
    (first,) = PromptRegionNode.execute(model=model, text=[[words(77, 40), {}]], mask=masks()[0], end_percent=0.3).args
    assert not torch.equal(run(first, own, negative, 4.0), run(model, own, negative, 4.0))


def test_the_negative_half_is_what_it_was(model: Any) -> None:
    """At CFG 0 the picture is the negative's alone."""
    own, negative = words(77, 7), words(77, 8)
    result = run(with_regions(model), own, negative, 0.0)
    torch.testing.assert_close(result, run(model, own, negative, 0.0), atol=1e-4, rtol=1e-4)


def test_beside_masked_attention_in_any_order(model: Any) -> None:
    """The prompt's own mask and the regions hold both: order changes nothing."""
    inputs: dict[str, Any] = {"mask": 1 - masks()[1], "cross_attention": True, "self_attention": "off", "layers": "all"}
    (first,) = MaskedAttention.execute(model=model, **inputs).args
    (second,) = MaskedAttention.execute(model=with_regions(model), **inputs).args
    own, negative = words(77, 7), words(77, 8)
    result = run(with_regions(first), own, negative, 4.0)
    torch.testing.assert_close(run(second, own, negative, 4.0), result, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(result, run(with_regions(model), own, negative, 4.0))


def test_another_packs_replacement_serves_beneath(model: Any) -> None:
    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        height, width = extra_options["activations_shape"][2:4]
        assert q.shape[1] == height * width
        return 0.5 * chain.attention(q, k, v, extra_options)

    own, negative = words(77, 7), words(77, 8)
    result = run(with_regions(replaced(model, "attn2", theirs)), own, negative)
    assert torch.equal(run(replaced(with_regions(model), "attn2", theirs), own, negative), result)
    assert not torch.allclose(result, run(with_regions(model), own, negative))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_in_an_area_the_regions_part_inside_it_acts(model: Any, share: float) -> None:
    """The lower right quarter is all inside the lower mask and all outside the left one."""
    own, negative = words(77, 7), words(77, 8)
    area = {"area": (8, 8, 8, 8), "strength": 1.0}
    result = run(with_regions(model, own_pass=share), own, negative, **area)
    whole = torch.ones(1, 128, 128)
    (lower,) = PromptRegionNode.execute(model=model, text=[[words(77, 41), {}]], mask=whole, own_pass=share).args
    torch.testing.assert_close(result, run(lower, own, negative, **area), atol=1e-4, rtol=1e-4)


def test_bad_input_is_refused_in_words(model: Any) -> None:
    own, negative = words(77, 7), words(77, 8)
    given: dict[str, Any] = {"model": model, "text": [[words(77, 1), {}]], "mask": masks()[0]}
    with pytest.raises(ValueError, match="mask of this region is empty"):
        PromptRegionNode.execute(**{**given, "mask": torch.zeros(1, 8, 8)})
    with pytest.raises(ValueError, match="text must be a prompt, got an empty one"):
        PromptRegionNode.execute(**{**given, "text": []})
    with pytest.raises(ValueError, match="start_percent"):
        PromptRegionNode.execute(**given, start_percent=0.6, end_percent=0.2)
    (wide,) = PromptRegionNode.execute(**{**given, "mask": torch.ones(1, 64, 256)}).args
    with pytest.raises(ValueError, match="shapes differ"):
        run(wide, own, negative)
    (other,) = PromptRegionNode.execute(**{**given, "text": [[torch.randn(1, 9, 40), {}]]}).args
    with pytest.raises(ValueError, match="another text encoder"):
        run(other, own, negative)
    merged = with_regions(model).clone()
    merged.set_model_attn2_patch(lambda q, k, v, extra_options: (q[:, ::2], k, v))
    with pytest.raises(RuntimeError, match="merges or tiles tokens"):
        run(merged, own, negative)
    full = model
    for _ in range(48):
        (full,) = PromptRegionNode.execute(**{**given, "model": full}).args
    with pytest.raises(ValueError, match="48 regions"):
        PromptRegionNode.execute(**{**given, "model": full})


@pytest.mark.parametrize("name", ["HyperTile", "TomePatchModel"])
def test_cores_own_token_merging_is_refused_where_cells_are_kept_apart(model: Any, name: str) -> None:
    """Both merge or tile the tokens of self-attention, where regions act only if they are kept apart."""
    from comfy_extras import nodes_hypertile, nodes_tomesd

    def merged(patched: Any) -> Any:
        if name == "HyperTile":
            tiled: Any = nodes_hypertile.HyperTile.execute(model=patched, tile_size=32, swap_size=1, max_depth=0, scale_depth=False)
            return getattr(tiled, "args", tiled)[0]
        return nodes_tomesd.TomePatchModel.execute(model=patched, ratio=0.5).args[0]

    own, negative = words(77, 7), words(77, 8)
    result = run(merged(with_regions(model)), own, negative)
    assert not torch.allclose(result, run(merged(model), own, negative), rtol=1e-3)
    with pytest.raises(RuntimeError, match=r"merges or tiles tokens \(ToMe, HyperTile\).*bypass that node"):
        run(merged(with_regions(model, apart=1.0)), own, negative)


def test_an_unknown_transformer_is_refused_before_sampling() -> None:
    """ERNIE-Image hands no options to its attention, so nothing could act there."""

    class ErnieImageModel(torch.nn.Module):
        pass

    class Patcher:
        def get_model_object(self, name: str) -> Any:
            return ErnieImageModel()

    with pytest.raises(ValueError, match=r"ErnieImageModel\) is neither a UNet nor a transformer"):
        PromptRegionNode.execute(model=Patcher(), text=[[words(77, 1), {}]], mask=masks()[0])


def test_a_flux_samples_through_the_node() -> None:
    """Two regions, a reference and CFG, in ComfyUI's sampler; a token that another node adds is refused in words."""
    import comfy.sample

    tiny = TINIES[0]
    model = tiny.model()
    patched = model
    for number, mask in enumerate(masks()):
        entry = [[tiny.words(6, 50 + number), {"pooled_output": None, "guidance": 3.5}]]
        (patched,) = PromptRegionNode.execute(model=patched, text=entry, mask=mask, apart=0.5).args
    noise = tiny.latent((16, 16))
    prompt = [[tiny.words(9, 1), {**tiny.options, "reference_latents": [tiny.latent((6, 6))]}]]
    arguments = (2, 3.0, "euler", "simple", prompt, [[tiny.words(9, 2), {**tiny.options}]], torch.zeros_like(noise))
    plain = comfy.sample.sample(model, noise, *arguments, seed=1, disable_pbar=True)
    result = comfy.sample.sample(patched, noise, *arguments, seed=1, disable_pbar=True)
    assert torch.isfinite(result).all()
    assert not torch.allclose(result, plain)
    longer = patched.clone()
    longer.set_model_patch(lambda values: {**values, "txt": torch.cat([values["txt"], values["txt"][:, :1]], 1)}, "post_input")
    with pytest.raises(Exception, match=r"does not know what the \d+ tokens"):
        comfy.sample.sample(
            longer_positions(longer), noise, *arguments, seed=1, disable_pbar=True
        )  # fmt: skip


class StyleModel:
    """Redux as core's Apply Style Model sees it: a vision output to tokens."""

    def get_cond(self, seen: torch.Tensor) -> torch.Tensor:
        return seen


def test_redux_acts_in_its_region() -> None:
    """The tokens that core's Apply Style Model appends to an empty text are the region's text; with attn_bias they are refused."""
    import comfy.sample

    import nodes  # pyright: ignore[reportMissingImports]

    tiny = TINIES[0]
    model, size = tiny.model(), (16, 16)
    picture = tiny.words(9, 77)
    empty = [[tiny.words(4, 50), {"pooled_output": None}]]
    (styled,) = nodes.StyleModelApply().apply_stylemodel(empty, StyleModel(), picture, 1.0, "multiply")
    (patched,) = PromptRegionNode.execute(model=model, text=styled, mask=masks()[0]).args
    inside = F.avg_pool2d(masks()[0][None], 16)[0, 0].flatten() >= 0.5
    told = tiny.tokens((9, 13), size)
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override(told, [Area(inside)])
    noise = tiny.latent(size)

    def run_on(to: Any, text: torch.Tensor) -> torch.Tensor:
        prompt = [[text, {**tiny.options}]]
        return comfy.sample.sample(
            to, noise, 2, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(noise), seed=1, disable_pbar=True
        )  # fmt: skip

    result = run_on(patched, tiny.words(9, 1))
    wanted = run_on(clone, torch.cat([tiny.words(9, 1), tiny.words(4, 50), picture], 1))
    scale = float(wanted.abs().max())
    torch.testing.assert_close(result / scale, wanted / scale, atol=1e-5, rtol=0)
    (biased,) = nodes.StyleModelApply().apply_stylemodel(empty, StyleModel(), picture, 0.5, "attn_bias")
    with pytest.raises(ValueError, match="strength_type attn_bias"):
        PromptRegionNode.execute(model=model, text=biased, mask=masks()[0])


def longer_positions(model: Any) -> Any:
    """The words' places for one more word, so that the model itself could run."""
    clone = model.clone()
    clone.set_model_patch(lambda values: {**values, "txt_ids": torch.cat([values["txt_ids"], values["txt_ids"][:, :1]], 1)}, "post_input")
    return clone


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_beside_negpip_which_halves_the_words(model: Any, share: float) -> None:
    """Its text encoder gives each word and its weight in turn, and its patch takes keys from the one and values from the other."""

    def doubled(seed: int) -> torch.Tensor:
        return words(77, seed).repeat_interleave(2, dim=1)

    def regions_of(text: Any, to: Any) -> Any:
        for number, mask in enumerate(masks()):
            (to,) = PromptRegionNode.execute(model=to, text=[[text(40 + number), {}]], mask=mask, own_pass=share).args
        return to

    halved = model.clone()
    halved.set_model_attn2_patch(lambda q, k, v, extra_options: (q, k[:, 0::2], v[:, 1::2]))
    result = run(regions_of(doubled, halved), doubled(7), doubled(8))
    torch.testing.assert_close(
        result, run(regions_of(lambda seed: words(77, seed), model), words(77, 7), words(77, 8)), atol=1e-4, rtol=1e-4
    )
    odd = model.clone()
    odd.set_model_attn2_patch(lambda q, k, v, extra_options: (q, k[:, :70], v[:, :70]))
    with pytest.raises(RuntimeError, match=r"leaves 70 of .* words"):
        run(with_regions(odd), words(77, 7), words(77, 8))


@pytest.mark.parametrize("kind", ["attention", "values"])
def test_kept_apart_over_another_packs_self_attention(model: Any, kind: str) -> None:
    """Perturbed-Attention Guidance answers with the values alone, one for each token."""

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        assert q.shape[1] == k.shape[1] == v.shape[1]
        return v if kind == "values" else chain.attention(q, k, v, extra_options)

    own, negative = words(77, 7), words(77, 8)
    result = run(replaced(with_regions(model, apart=1.0), "attn1", theirs), own, negative)
    wanted = run(replaced(with_regions(model), "attn1", theirs) if kind == "values" else with_regions(model, apart=1.0), own, negative)
    torch.testing.assert_close(result, wanted, atol=1e-4, rtol=1e-4)


def test_a_text_that_changes_on_the_way_does_so_in_its_region(model: Any) -> None:
    """Set CLIP Hooks with `schedule_clip` gives an entry for each part of the sampling."""
    own, negative = words(77, 7), words(77, 8)
    mask = masks()[0]
    parts: list[Any] = [
        [words(77, 40), {"clip_start_percent": 0.0, "clip_end_percent": 0.4}],
        [words(77, 41), {"clip_start_percent": 0.4, "clip_end_percent": 1.0}],
    ]
    (together,) = PromptRegionNode.execute(model=model, text=parts, mask=mask, own_pass=0.0).args
    (one,) = PromptRegionNode.execute(model=model, text=[[words(77, 40), {}]], mask=mask, own_pass=0.0, end_percent=0.4).args
    (each,) = PromptRegionNode.execute(model=one, text=[[words(77, 41), {}]], mask=mask, own_pass=0.0, start_percent=0.4).args
    assert torch.equal(run(together, own, negative, steps=4), run(each, own, negative, steps=4))


def test_apart_where_nothing_runs_together_is_told(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    text: list[Any] = [[words(77, 1), {}]]
    PromptRegionNode.execute(model=model, text=text, mask=masks()[0], apart=0.5, own_pass=0.5)
    assert "apart does nothing" not in caplog.text
    PromptRegionNode.execute(model=model, text=text, mask=masks()[0], apart=0.5)
    assert "apart does nothing" in caplog.text


def test_a_unet_whose_self_attention_reads_the_text_is_refused() -> None:
    block = SimpleNamespace(transformer_blocks=[SimpleNamespace(disable_self_attn=True)])
    with pytest.raises(TypeError, match="self-attention reads the text"):
        layers.layers_of(SimpleNamespace(input_blocks=[[block]], output_blocks=[]))


def test_a_unet_with_layers_over_time_is_refused() -> None:
    """SVD runs them with the number of the layer that they stand in."""
    block = SimpleNamespace(transformer_blocks=[SimpleNamespace(disable_self_attn=False)], time_stack=[1])
    with pytest.raises(TypeError, match="layers over time"):
        layers.layers_of(SimpleNamespace(input_blocks=[[block]], output_blocks=[]))
