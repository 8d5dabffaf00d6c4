"""Mask encoder cross attention against equations 4 and 6 written densely, and against diffusers' IP-Adapter attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.attention import chain, grid, meca, rows
from maskprompt.attention.masked_attention import MaskedCrossAttention
from maskprompt.attention.moment import Moment

from ...support.attention import dense

LAYER = ("input", 1, 0)
Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
ORDERS = ([1, 0], [0, 1], [0], [0, 0, 1])


def run(
    unet: Any, patches: Sequence[chain.Patch], qkv: Parts, heads: int, size: tuple[int, int], halves: Sequence[int],
    beneath: Any = None, more: dict[str, Any] | None = None,
) -> torch.Tensor:  # fmt: skip
    """What the patches, in this order, make of one layer's cross-attention in the chain."""
    options: dict[str, Any] = {"sigmas": torch.tensor([1.0]), "cond_or_uncond": list(halves), **(more or {})}
    if beneath is not None:
        options["patches_replace"] = {"attn2": {LAYER: beneath}}
    q, k, v = qkv
    composed = chain.Chain(tuple(patches)).composed(unet, torch.zeros(len(q), 4, *size), options)
    replacement = composed["patches_replace"]["attn2"][LAYER]
    return replacement(q, k, v, {**options, "n_heads": heads, "activations_shape": [len(q), q.shape[-1], *size]})


def both(image: meca.ImagePrompt) -> tuple[chain.Patch, ...]:
    """The patches of one Image Prompt Region, as `install` puts them."""
    return (image,) if image.mode == "global" else (meca.TextOutside(image.region, image.weight, image.mode, image.scope), image)


def equation(qkv: Parts, image: Sequence[torch.Tensor], heads: int, inside: torch.Tensor, weight: float, mode: str) -> torch.Tensor:
    """Equations 4 and 6 for one image, densely: `inside` is the region, bool [B, N]; where a row has none there is no adapter."""
    q, k, v = qkv

    def softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return dense(q, k, v, heads, torch.ones(q.shape[0], q.shape[1], k.shape[1]))

    m = inside[:, :, None].to(q.dtype)
    text = softmax(q, k, v)
    picture = softmax(q, *image)
    if mode == "query":
        found = softmax((1 - m) * q, k, v) + weight * softmax(m * q, *image)
    elif mode == "region":
        found = (1 - min(weight, 1) * m) * text + weight * m * picture
    else:
        found = text + weight * m * picture
    return torch.where(inside.any(1)[:, None, None] & (weight != 0), found, text)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    return {
        "size": (draw(st.integers(1, 7)), draw(st.integers(1, 9))), "heads": draw(st.integers(1, 3)), "texts": draw(st.integers(1, 12)),
        "tokens": draw(st.integers(1, 6)), "images": draw(st.integers(1, 3)), "prompts": draw(st.integers(1, 3)),
        "masks": draw(st.integers(1, 3)), "density": draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])), "halves": draw(st.sampled_from(ORDERS)),
        "seed": draw(st.integers(0, 2**30)),
    }  # fmt: skip


class Drawn:
    """Random tensors of a case: text's q, k, v; the stored image keys; masks; and per row what they mean."""

    def __init__(self, case: dict[str, Any]) -> None:
        torch.manual_seed(case["seed"])
        self.size = case["size"]
        self.heads = case["heads"]
        self.halves = case["halves"]
        rows = case["images"] * len(self.halves)
        width = 4 * self.heads
        cells = self.size[0] * self.size[1]
        texts = case["texts"]
        self.qkv: Parts = (torch.randn(rows, cells, width), torch.randn(rows, texts, width), torch.randn(rows, texts, width))
        k, v = torch.randn(2, case["prompts"] + 1, case["tokens"], width)
        self.keys = meca.StoredKeys({LAYER: (k, v)})
        self.masks = (torch.rand(case["masks"], *self.size) < case["density"]).float()
        pictures = [(half, index) for half in self.halves for index in range(case["images"])]
        sets = [index % case["prompts"] if half == 0 else case["prompts"] for half, index in pictures]
        self.image = [part[sets] for part in self.keys.layers[LAYER]]
        self.inside = torch.stack([self.masks[index % case["masks"]].flatten() > 0.5 for _, index in pictures])


@given(
    case=cases(), mode=st.sampled_from(["region", "query", "global"]), weight=st.sampled_from([0.0, 0.4, 1.0, 1.7]), others=st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_it_is_equations_4_and_6(model: Any, case: dict[str, Any], mode: Any, weight: float, others: bool) -> None:
    """With one mask or several, one image prompt or several, both halves of CFG in any order, another pack beneath or not."""
    drawn = Drawn(case)
    image = meca.ImagePrompt(drawn.keys, grid.RegionMask(drawn.masks), weight, mode)
    beneath = chain.attention if others else None
    result = run(model.get_model_object("diffusion_model"), both(image), drawn.qkv, drawn.heads, drawn.size, drawn.halves, beneath)
    wanted = equation(drawn.qkv, drawn.image, drawn.heads, drawn.inside, weight, mode)
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


@given(case=cases(), mode=st.sampled_from(["region", "query", "global"]), weight=st.sampled_from([0.4, 1.0]))
@settings(max_examples=30, deadline=None)
def test_no_region_is_the_whole_picture(model: Any, case: dict[str, Any], mode: Any, weight: float) -> None:
    drawn = Drawn(case)
    image = meca.ImagePrompt(drawn.keys, None, weight, mode)
    result = run(model.get_model_object("diffusion_model"), both(image), drawn.qkv, drawn.heads, drawn.size, drawn.halves)
    wanted = equation(drawn.qkv, drawn.image, drawn.heads, torch.ones_like(drawn.inside), weight, mode)
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


@pytest.fixture
def unet(model: Any) -> Any:
    return model.get_model_object("diffusion_model")


def some(seed: int = 0, halves: Sequence[int] = (1, 0), images: int = 1, prompts: int = 1, size: tuple[int, int] = (6, 8)) -> Drawn:
    return Drawn({"size": size, "heads": 2, "texts": 7, "tokens": 4, "images": images, "prompts": prompts, "masks": 1, "density": 0.5,
                  "halves": halves, "seed": seed})  # fmt: skip


def rectangle(top: int, bottom: int, left: int, right: int, size: tuple[int, int] = (6, 8)) -> grid.RegionMask:
    mask = torch.zeros(1, *size)
    mask[:, top:bottom, left:right] = 1
    return grid.RegionMask(mask)


@pytest.mark.parametrize("mode", ["region", "query", "global"])
def test_weight_zero_and_an_empty_region_are_no_adapter_to_the_bit(unet: Any, mode: Any) -> None:
    drawn = some()
    plain = chain.attention(*drawn.qkv, {"n_heads": 2})
    for region, weight in ((rectangle(0, 3, 0, 3), 0.0), (None, 0.0), (rectangle(0, 0, 0, 0), 1.0)):
        for beneath in (None, chain.attention):
            image = meca.ImagePrompt(drawn.keys, region, weight, mode)
            assert torch.equal(run(unet, both(image), drawn.qkv, 2, drawn.size, [1, 0], beneath), plain)


def test_regions_that_do_not_meet_are_what_each_is_alone(unet: Any) -> None:
    drawn = some()
    other = some(1)
    left, right = rectangle(0, 6, 0, 3), rectangle(1, 4, 5, 8)
    images = [meca.ImagePrompt(drawn.keys, left, 1.0), meca.ImagePrompt(other.keys, right, 0.7)]
    alone = [run(unet, both(image), drawn.qkv, 2, drawn.size, [1, 0]) for image in images]
    together = run(unet, chained(*images), drawn.qkv, 2, drawn.size, [1, 0])
    plain = chain.attention(*drawn.qkv, {"n_heads": 2})
    sides = [(region.masks[0] > 0.5).flatten() for region in (left, right)]
    for side, single in zip(sides, alone, strict=True):
        torch.testing.assert_close(together[:, side], single[:, side], atol=1e-6, rtol=1e-5)
    neither = ~(sides[0] | sides[1])
    torch.testing.assert_close(together[:, neither], plain[:, neither], atol=1e-6, rtol=1e-5)
    assert (alone[0][:, sides[0]] - plain[:, sides[0]]).abs().max() > 0.1


def chained(*images: meca.ImagePrompt) -> tuple[chain.Patch, ...]:
    """The patches of several Image Prompt Region nodes in a row, through `install`'s own rule."""
    patches: tuple[chain.Patch, ...] = ()
    for image in images:
        patches = (*patches, image)
        if image.mode != "global":
            patches = meca.beneath_images(patches, meca.TextOutside(image.region, image.weight, image.mode, image.scope))
    return patches


def test_where_regions_overlap_images_add_up_and_the_text_is_gone(unet: Any) -> None:
    drawn = some()
    other = some(1)
    third = some(2)
    top, left = rectangle(0, 3, 0, 8), rectangle(0, 6, 0, 4)
    keys = (drawn.keys, other.keys, third.keys)
    images = [meca.ImagePrompt(keys[0], top), meca.ImagePrompt(keys[1], left), meca.ImagePrompt(keys[2], None, 0.5, "global")]
    result = run(unet, chained(*images), drawn.qkv, 2, drawn.size, [1, 0])
    m = [(region.masks[0] > 0.5).flatten()[None, :, None].float() for region in (top, left)]
    q, k, v = drawn.qkv

    def softmax(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return dense(q, k, v, 2, torch.ones(q.shape[0], q.shape[1], k.shape[1]))

    pictures = [softmax(*set_.image) for set_ in (drawn, other, third)]
    union = torch.maximum(*m)
    wanted = (1 - union) * softmax(k, v) + m[0] * pictures[0] + m[1] * pictures[1] + 0.5 * pictures[2]
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


def test_masked_attention_after_it_masks_the_image_too_and_before_it_the_text_alone(unet: Any) -> None:
    drawn = some()
    image = meca.ImagePrompt(drawn.keys, rectangle(0, 6, 0, 4), 1.0, "region")
    top = rectangle(0, 3, 0, 8)
    inside = [(region.masks[0] > 0.5).flatten() for region in (image.region or top, top)]
    after = run(unet, (*both(image), MaskedCrossAttention(top)), drawn.qkv, 2, drawn.size, [1, 0])
    before = run(unet, chained_on((MaskedCrossAttention(top),), image), drawn.qkv, 2, drawn.size, [1, 0])
    alone = run(unet, both(image), drawn.qkv, 2, drawn.size, [1, 0])
    torch.testing.assert_close(after, alone * inside[1][None, :, None], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(before, alone * (inside[0] | inside[1])[None, :, None], atol=1e-6, rtol=1e-5)


def chained_on(first: tuple[chain.Patch, ...], image: meca.ImagePrompt) -> tuple[chain.Patch, ...]:
    return meca.beneath_images((*first, image), meca.TextOutside(image.region, image.weight, "region"))


@pytest.mark.parametrize("halves", ORDERS)
def test_each_half_of_cfg_gets_its_own_tokens(unet: Any, halves: list[int]) -> None:
    drawn = some(halves=halves, images=2, prompts=2)
    result = run(unet, (meca.ImagePrompt(drawn.keys, None, 1.0, "global"),), drawn.qkv, 2, drawn.size, halves)
    k, v = drawn.keys.layers[LAYER]
    for row, (half, picture) in enumerate((half, picture) for half in halves for picture in range(2)):
        number = picture if half == 0 else 2
        q, *text = (part[row : row + 1] for part in drawn.qkv)
        image = (k[number : number + 1], v[number : number + 1])
        wanted = chain.attention(q, text[0], text[1], {"n_heads": 2}) + chain.attention(q, *image, {"n_heads": 2})
        torch.testing.assert_close(result[row : row + 1], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["region", "query", "global"])
def test_half_precision(unet: Any, mode: Any) -> None:
    """The stored keys are float32 and come in the queries' precision."""
    drawn = some()
    image = meca.ImagePrompt(drawn.keys, rectangle(0, 3, 0, 3), 0.8, mode)
    q, k, v = drawn.qkv
    half = run(unet, both(image), (q.half(), k.half(), v.half()), 2, drawn.size, [1, 0])
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), run(unet, both(image), drawn.qkv, 2, drawn.size, [1, 0]), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("mode", ["region", "query"])
def test_other_packs_kernels_serve_both_branches_on_their_own_side_only(unet: Any, mode: Any) -> None:
    """Sage and Flash packs set `optimized_attention_override`; nothing is attended to twice."""
    seen = []

    def override(func: Any, q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((q.shape[1], k.shape[1]))
        return func(q, k, *args, **kwargs)

    drawn = some()
    image = meca.ImagePrompt(drawn.keys, rectangle(0, 3, 0, 4), 1.0, mode)
    run(unet, both(image), drawn.qkv, 2, drawn.size, [1, 0], more={"optimized_attention_override": override})
    assert sorted(seen) == [(12, 4), (36, 7)]


def test_a_part_of_the_picture_without_the_region_is_as_the_rest(unet: Any) -> None:
    """An area's window beside the region: no image by output, the image's mean by query, in both as outside within the whole picture."""
    drawn = some(halves=[0], size=(6, 8))
    region = rectangle(0, 6, 0, 4)
    view = rows.View((6, 8), {"right": (0, 4, 6, 4)})
    modes: tuple[meca.Mode, ...] = ("region", "query", "global")
    for mode in modes:
        image = meca.ImagePrompt(drawn.keys, region, 0.6, mode)
        whole = run(unet, both(image), drawn.qkv, 2, (6, 8), [0]).unflatten(1, (6, 8))[:, :, 4:].flatten(1, 2)
        q, k, v = drawn.qkv
        right = q.unflatten(1, (6, 8))[:, :, 4:].flatten(1, 2)
        part = run(unet, both(image), (right, k, v), 2, (6, 4), [0], more={rows.VIEW: view, "uuids": ["right"]})
        torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-5)


def test_unknown_rows_are_refused_in_words() -> None:
    """Attention-couple packs run more rows than the batch has, and nothing tells which are positive."""
    drawn = some()
    call = chain.Call("cross", LAYER, 2, (6, 8), (6, 8), (chain.Row(0, 0, (0, 0, 6, 8)),), Moment(1.0), True)
    with pytest.raises(RuntimeError, match=r"2 rows where the batch has 1.*Bypass that node"):
        meca.ImagePrompt(drawn.keys).attend(*drawn.qkv, call, lambda q, k, v: q)


def test_copies_for_a_device_are_dropped_and_made_again() -> None:
    drawn = some()
    like = torch.zeros(1, dtype=torch.float16)
    first = drawn.keys.of(LAYER, (1, 0), like)
    assert first[0].dtype == torch.float16
    assert torch.equal(first[0], drawn.keys.layers[LAYER][0][[1, 0]].half())
    drawn.keys.release()
    assert not drawn.keys._ready
    assert torch.equal(drawn.keys.of(LAYER, (1, 0), like)[1], first[1])
    assert drawn.keys.layers[LAYER][0].dtype == torch.float32


SHAPES = {
    "SD 1.5, outer": (320, 8, 768), "SD 1.5, inner": (640, 8, 768), "SD 1.5, middle": (1280, 8, 768), "SDXL, outer": (640, 10, 2048),
    "SDXL, middle": (1280, 20, 2048),
}  # fmt: skip


@pytest.mark.parametrize("tokens", [4, 16], ids=["base", "plus"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_diffusers_ip_adapter(unet: Any, shape: str, tokens: int) -> None:
    """The same weights in diffusers' processor, at the models' real widths; the region is the whole picture."""
    from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0

    width, heads, context = SHAPES[shape]
    torch.manual_seed(0)
    layer: Any = Attention(query_dim=width, cross_attention_dim=context, heads=heads, dim_head=width // heads)
    theirs: Any = IPAdapterAttnProcessor2_0(width, context, (tokens,), 1.0)
    hidden = torch.randn(2, 15, width)
    text = torch.randn(2, 77, context)
    image = torch.randn(2, tokens, context)
    whole = grid.RegionMask(torch.ones(1, 24, 40))
    with torch.no_grad():
        layer.set_processor(theirs)
        qkv = layer.to_q(hidden), layer.to_k(text), layer.to_v(text)
        keys = meca.StoredKeys({LAYER: (theirs.to_k_ip[0](image), theirs.to_v_ip[0](image))})
        for weight in (1.0, 0.6):
            theirs.scale = [weight]
            wanted = layer(hidden, encoder_hidden_states=(text, [image]))
            added = run(unet, both(meca.ImagePrompt(keys, whole, weight, "global")), qkv, heads, (3, 5), [0, 1])
            torch.testing.assert_close(layer.to_out[0](added), wanted, atol=1e-4, rtol=1e-4)
        theirs.scale = [0.0]
        text_alone = layer(hidden, encoder_hidden_states=(text, [image]))
        theirs.scale = [1.0]
        branch = layer(hidden, encoder_hidden_states=(text, [image])) - text_alone
        alone = run(unet, both(meca.ImagePrompt(keys, whole, 1.0, "region")), qkv, heads, (3, 5), [0, 1])
        torch.testing.assert_close(layer.to_out[0](alone) - layer.to_out[0].bias, branch, atol=1e-4, rtol=1e-4)
