"""Regions in passes of their own: what ComfyUI's own Conditioning (Set Mask) gives, on UNets and transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.controlnet import ControlBase
from maskprompt.attention import chain, prompt_regions
from maskprompt.attention.grid import RegionMask
from maskprompt.nodes.prompt_region import EVERYWHERE, OUTSIDE, PromptRegionNode

from ...support.masked_sampling import small_sdxl
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import TEXTS, close, families, sample, text_of

WIDTH = 128
ALWAYS = 1.0


def words(count: int, seed: int) -> torch.Tensor:
    return torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def masks(height: int = 128, width: int = 128) -> list[torch.Tensor]:
    """A left half and a lower part that overlaps it, along the latent's pixels."""
    left, lower = torch.zeros(1, height, width), torch.zeros(1, height, width)
    left[:, :, : width // 16 * 8] = 1
    lower[:, height // 16 * 8 :, width // 24 * 8 :] = 1
    return [left, lower]


def with_mask(text: torch.Tensor, mask: torch.Tensor, **options: Any) -> list[Any]:
    """As Conditioning (Set Mask) makes it."""
    return [text, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0, **options}]


def paint(model: Any, positive: list[Any], negative: Any, noise: torch.Tensor, cfg: float = 1.0, steps: int = 2) -> torch.Tensor:
    import comfy.sample

    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive, [negative], torch.zeros_like(noise), seed=3, disable_pbar=True
    )  # fmt: skip


def node(model: Any, base: str, **more: Any) -> Any:
    for number, mask in enumerate(masks()):
        (model,) = PromptRegionNode.execute(model=model, text=[[words(77, 40 + number), {}]], mask=mask, base=base, **more).args
    return model


@pytest.mark.parametrize("base", [EVERYWHERE, OUTSIDE])
def test_all_the_way_it_is_cores_set_mask(model: Any, base: str) -> None:
    own, negative = words(77, 7), [words(77, 8), {}]
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    result = paint(node(model, base, own_pass=1.0), [[own, {}]], negative, noise, 4.0)
    left, lower = masks()
    around = [[own, {}]] if base == EVERYWHERE else [with_mask(own, 1 - torch.maximum(left, lower))]
    each = [with_mask(words(77, 40 + number), mask) for number, mask in enumerate((left, lower))]
    close(result, paint(model, [*around, *each], negative, noise, 4.0))


class Push(ControlBase):
    """A control network that adds a number in the UNet's middle; the UNet takes it out of its list, as it does with all of them."""

    def get_control(self, x_noisy: torch.Tensor, t: Any, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        return {"input": [], "middle": [torch.full((len(x_noisy), 1, 1, 1), 0.7)], "output": []}


@pytest.mark.parametrize("own_pass", [0.0, 1.0])
def test_a_control_network_acts_in_every_pass(model: Any, own_pass: float) -> None:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    negative = [words(77, 8), {}]
    more = {"control": Push(), "control_apply_to_uncond": False}
    result = paint(node(model, OUTSIDE, own_pass=own_pass), [[words(77, 7), more]], negative, noise, 4.0)
    assert not torch.allclose(result, paint(node(model, OUTSIDE, own_pass=own_pass), [[words(77, 7), {}]], negative, noise, 4.0))
    if own_pass:
        left, lower = masks()
        around = with_mask(words(77, 7), 1 - torch.maximum(left, lower), **more)
        each = [with_mask(words(77, 40 + number), mask, **more) for number, mask in enumerate((left, lower))]
        close(result, paint(model, [around, *each], negative, noise, 4.0))


@pytest.mark.parametrize(("base", "share"), [(OUTSIDE, 0.25), (EVERYWHERE, 0.2)])
def test_a_weaker_region_leaves_the_prompt_its_part(model: Any, base: str, share: float) -> None:
    """In one step: of the region's cells a quarter (or one in five beside the prompt's whole one) is the region's."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    given = ([words(77, 8), {}], noise, 1.0, 1)
    mask = torch.ones(1, 128, 128)
    (patched,) = PromptRegionNode.execute(
        model=model, text=[[words(77, 40), {}]], mask=mask, base=base, strength=0.25, own_pass=1.0
    ).args  # fmt: skip
    mixed = paint(patched, [[words(77, 7), {}]], *given)
    alone, prompt = (paint(model, [[words(77, seed), {}]], *given) for seed in (40, 7))
    close(mixed, share * alone + (1 - share) * prompt)


def test_the_rows_without_regions_run_once_and_later_steps_in_one_pass(model: Any) -> None:
    unet = model.get_model_object("diffusion_model")
    rows: list[int] = []
    handle = unet.time_embed.register_forward_hook(lambda _module, args, _result: rows.append(len(args[0])))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    try:
        paint(node(model, OUTSIDE, own_pass=0.5), [[words(77, 7), {}]], [words(77, 8), {}], noise, 4.0, steps=4)
    finally:
        handle.remove()
    assert rows[:3] == [2, 1, 1]
    assert rows[-1] == 2
    assert sum(rows) < 4 * 4


def test_left_alone_a_unet_has_passes_all_the_way_and_a_transformer_none(model: Any) -> None:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    given = ([[words(77, 7), {}]], [words(77, 8), {}], noise, 4.0)
    left_alone = paint(node(model, OUTSIDE), *given)
    assert torch.equal(left_alone, paint(node(model, OUTSIDE, own_pass=1.0), *given))
    assert not any(torch.equal(left_alone, paint(node(model, OUTSIDE, own_pass=share), *given)) for share in (0.0, 0.5))
    tiny = TINIES[0]
    entry = {"text": [[tiny.words(6, 50), {}]], "mask": masks()[0]}
    settings: tuple[dict[str, Any], ...] = ({}, {"own_pass": 0.0})
    (alone,), (one_pass,) = (PromptRegionNode.execute(model=tiny.model(), **entry, **more).args for more in settings)
    assert torch.equal(*(sample(patched, tiny, (16, 16), text_of(tiny)) for patched in (alone, one_pass)))


def test_a_region_beside_the_negative_has_its_pass_there(model: Any) -> None:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    left, _ = masks()
    (patched,) = PromptRegionNode.execute(
        model=model, text=[[words(77, 40), {}]], mask=left, base=OUTSIDE, apply_to="negative", own_pass=1.0
    ).args
    own, negative = words(77, 7), words(77, 8)
    import comfy.sample

    result = paint(patched, [[own, {}]], [negative, {}], noise, 4.0)
    both = [with_mask(negative, 1 - left), with_mask(words(77, 40), left)]
    wanted = comfy.sample.sample(
        model, noise, 2, 4.0, "euler", "simple", [[own, {}]], both, torch.zeros_like(noise), seed=3, disable_pbar=True
    )  # fmt: skip
    close(result, wanted)


def test_on_sdxl_each_region_has_its_own_pooled_words() -> None:
    """As with core's Set Mask, where each text brings its own; what stands behind them, about the picture's size, is the prompt's."""
    model = small_sdxl()

    def text(seed: int) -> list[Any]:
        return [words(77, seed), {"pooled_output": torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))}]

    left, lower = masks()
    patched = model
    for mask, seed in ((left, 40), (lower, 41)):
        (patched,) = PromptRegionNode.execute(model=patched, text=[text(seed)], mask=mask, base=OUTSIDE).args
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    result = paint(patched, [text(7)], text(8), noise, 4.0)
    prompt, first, second = text(7), text(40), text(41)
    each = [
        with_mask(prompt[0], 1 - torch.maximum(left, lower), **prompt[1]),
        with_mask(first[0], left, **first[1]),
        with_mask(second[0], lower, **second[1]),
    ]
    close(result, paint(model, each, text(8), noise, 4.0))


@families
def test_on_transformers_too(tiny: Tiny) -> None:
    size = (8, 12)
    left, lower = masks(size[0] * 8, size[1] * 8)
    texts = [tiny.words(TEXTS[0], 20 + number) for number in (0, 1)]
    pooled = tiny.options.get("pooled_output")
    own = [{**tiny.beside(text)} | ({} if pooled is None else {"pooled_output": pooled + number}) for number, text in enumerate(texts, 1)]
    regions = [
        replace(prompt_regions.PromptRegion(text, RegionMask(mask), options=options), replaces=True, own_pass=ALWAYS)
        for text, mask, options in zip(texts, (left, lower), own, strict=True)
    ]
    model = tiny.model()
    noise = tiny.latent(size)
    prompt, negative = ([text, {**tiny.options, **tiny.beside(text)}] for text in (text_of(tiny), tiny.words(TEXTS[0], 90)))
    patched = chain.install(model, *regions)
    result = paint(patched, [prompt], negative, noise, 3.0)
    each = [with_mask(text, mask, **{**tiny.options, **options}) for text, mask, options in zip(texts, (left, lower), own, strict=True)]
    around = with_mask(prompt[0], 1 - torch.maximum(left, lower), **prompt[1])
    close(result, paint(model, [around, *each], negative, noise, 3.0))


def test_apart_keeps_what_another_node_put_behind_the_pictures_own_keys(model: Any) -> None:
    """A reference (reference-only control), which all cells see, also those that do not see each other."""

    def with_bank(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, more: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        bank = torch.randn(v.shape, generator=torch.Generator().manual_seed(2)).to(v)
        return q, torch.cat([k, k], 1), torch.cat([v, bank], 1)

    own, negative = [[words(77, 7), {}]], [words(77, 8), {}]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    region = node(model, EVERYWHERE, own_pass=0.0, apart=1.0)
    plain = paint(region, own, negative, noise)
    region.set_model_attn1_patch(with_bank)
    assert not torch.allclose(paint(region, own, negative, noise), plain, rtol=1e-3)
