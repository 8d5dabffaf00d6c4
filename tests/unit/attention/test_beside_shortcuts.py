"""Beside nodes that take a short cut: those that answer for the model (caches), run one half of CFG alone, or leave layers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import torch
from maskprompt.attention import chain, prompt_regions, reference_regions
from maskprompt.attention.arguments import Arguments
from maskprompt.attention.grid import RegionMask, Size
from maskprompt.attention.layers import Layer
from maskprompt.attention.layout import Grid
from maskprompt.attention.moment import Moment
from maskprompt.attention.reference_regions import ReferenceRegion
from maskprompt.attention.rows import Row
from maskprompt.nodes.prompt_region import PromptRegionNode

from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import close, masks, regions, sample, text_of

SIZE = (16, 16)
FLUX, QWEN, Z_IMAGE, WAN, SD35 = (
    next(tiny for tiny in TINIES if tiny.name == name) for name in ("Flux.1", "Qwen-Image", "Z-Image", "Wan text to video", "SD 3.5 medium")
)
CACHED = pytest.mark.parametrize("tiny", [FLUX, QWEN, Z_IMAGE], ids=lambda tiny: tiny.name)


class Listening:
    """A rule that changes nothing and notes where it was asked."""

    kind = "rule"
    scope = chain.EVERYWHERE

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.halves: list[int] = []

    def rule(self, row: Row, latent: Size, grid: Grid, layer: Layer, moment: Moment) -> None:
        self.layers.append(layer)
        self.halves.append(row.half)


def easy_cache(model: Any, threshold: float) -> Any:
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, threshold, 0.0, 1.0, False).args[0]


@CACHED
def test_easy_cache_after_ours_is_easy_cache_before_it(tiny: Tiny) -> None:
    """To the bit, with steps that are skipped, and not what it is without the cache."""
    own, more = regions(tiny, SIZE), {"cfg": 3.0, "steps": 6}
    after = sample(easy_cache(chain.install(tiny.model(), *own), 1.0), tiny, SIZE, text_of(tiny), **more)
    before = sample(chain.install(easy_cache(tiny.model(), 1.0), *own), tiny, SIZE, text_of(tiny), **more)
    assert torch.equal(after, before)
    assert not torch.equal(after, sample(chain.install(tiny.model(), *own), tiny, SIZE, text_of(tiny), **more))


def test_easy_cache_keeps_the_prompts_answer_and_that_of_a_regions_own_pass_apart(model: Any) -> None:
    """A cache that never skips leaves the picture as it is without; in own passes it had skipped every second one."""
    import comfy.sample

    words = [torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8, 9)]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))

    def paint(model: Any) -> torch.Tensor:
        positive, negative = [[words[0], {}]], [[words[1], {}]]
        return comfy.sample.sample(
            model, noise, 4, 3.0, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=3, disable_pbar=True
        )  # fmt: skip

    (region,) = PromptRegionNode.execute(model=model, text=[[words[2], {}]], mask=masks((16, 16))[0]).args
    cached = easy_cache(region, 1e-9)
    assert torch.equal(paint(cached), paint(region))
    assert cached.model_options["transformer_options"]["easycache"].total_steps_skipped == 0


def test_a_pack_that_answers_a_step_by_an_earlier_one_is_no_error() -> None:
    """As TeaCache does, inside of the model: no attention runs in the second step."""
    patched = chain.install(FLUX.model(), *regions(FLUX, SIZE))
    forward = patched.get_model_object("diffusion_model.forward_orig")
    kept: list[torch.Tensor] = []

    def caching(*args: Any, **kwargs: Any) -> torch.Tensor:
        if not kept:
            kept.append(forward(*args, **kwargs))
        return kept[0].clone()

    patched.add_object_patch("diffusion_model.forward_orig", caching)
    result = sample(patched, FLUX, SIZE, text_of(FLUX), steps=3)
    assert len(kept) == 1
    kept.clear()
    plain = FLUX.model()
    plain.add_object_patch("diffusion_model.forward_orig", caching)
    assert not torch.equal(result, sample(plain, FLUX, SIZE, text_of(FLUX), steps=3)), "the region acted in the step that ran"


def test_arguments_come_as_they_were_given() -> None:
    """A wrapper of another pack looks for the last of those without a name; what was added has a name."""

    def forward(x: Any, timestep: Any, context: Any = None, control: Any = None, transformer_options: Any = None, **kwargs: Any) -> Any:
        del x, timestep, context, control, transformer_options, kwargs

    given = Arguments.of(forward, (1, 2), {"transformer_options": {}, "guidance": 3})
    taken: list[Any] = []
    given.having(context=4, more=5).call(lambda *args, **kwargs: taken.extend([args, kwargs]))
    assert taken == [(1, 2), {"context": 4, "transformer_options": {}, "guidance": 3, "more": 5}]


@pytest.mark.parametrize("area", [{}, {"area": (*SIZE, 0, 0), "strength": 1.0}], ids=["", "area"])
@pytest.mark.parametrize("nested", [False, True])
def test_dual_cfg_guider_runs_the_negative_first_and_the_region_acts_on_the_positive(nested: bool, area: dict[str, Any]) -> None:
    """Where the middle and the negative are the same prompt and both scales are 3, it is plain CFG of 3, or nested of 9.

    ComfyUI gives the others a copy of a positive prompt with an area, with its id.
    """
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    own = regions(FLUX, SIZE)
    positive = [[text_of(FLUX), {**FLUX.options, **area}]]
    negative = [[FLUX.words(7, 90), FLUX.options]]
    guider = Guider_DualCFG(chain.install(FLUX.model(), *own))
    guider.set_conds(positive, negative, negative)
    guider.set_cfg(3.0, 3.0, nested)
    noise = FLUX.latent(SIZE)
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "simple", 2)
    result = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=3)
    patched = chain.install(FLUX.model(), *own)
    close(result, sample(patched, FLUX, SIZE, text_of(FLUX), cfg=9.0 if nested else 3.0, negative=FLUX.words(7, 90), **area))


def halves_after(conds_of: Callable[[dict[str, Any]], Any]) -> list[set[int]]:
    """For each step, which half a pass after CFG is taken for that runs these conditionings, given what ComfyUI tells such a node."""
    import comfy.samplers

    listening = Listening()
    patched = chain.install(FLUX.model(), listening)
    alone: list[set[int]] = []

    def after(args: dict[str, Any]) -> torch.Tensor:
        listening.halves.clear()
        comfy.samplers.calc_cond_batch(args["model"], [conds_of(args)], args["input"], args["sigma"], args["model_options"])
        alone.append(set(listening.halves))
        return args["denoised"]

    patched.set_model_sampler_post_cfg_function(after, disable_cfg1_optimization=True)
    sample(patched, FLUX, SIZE, text_of(FLUX), cfg=3.0, steps=1)
    return alone


def test_a_pass_of_the_negative_alone_is_the_negative() -> None:
    """As Self-Attention Guidance makes it, after CFG."""
    assert halves_after(lambda args: args["uncond"]) == [{1}]


def test_a_prompt_that_a_node_makes_of_its_own_is_not_the_positive_one() -> None:
    """As core's Perp-Neg node does with its empty prompt."""
    assert halves_after(lambda args: [{**cond, "uuid": uuid4()} for cond in args["cond"]]) == [{1}]


def test_layers_that_another_node_leaves_out_are_not_counted() -> None:
    """Skip Layer Guidance on SD 3.5 medium, whose blocks call attention once or twice: layers keep their numbers."""
    listening = Listening()
    patched = chain.install(SD35.model(), *regions(SD35, SIZE), listening)
    sample(patched, SD35, SIZE, text_of(SD35), steps=1)
    assert list(dict.fromkeys(listening.layers)) == [("joint", 0, 0), ("joint", 1, 0), ("joint", 2, 0)]
    listening.layers.clear()
    patched.set_model_patch_replace(lambda args, more: args, "dit", "double_block", 0)
    sample(patched, SD35, SIZE, text_of(SD35), steps=1)
    assert list(dict.fromkeys(listening.layers)) == [("joint", 1, 0), ("joint", 2, 0)]


def test_another_nodes_replacement_of_a_block_still_acts() -> None:
    """On SD 3, where ours stands around every block: one that doubles the picture's part gives the same under a region that is off."""
    patched = chain.install(SD35.model(), Listening())
    plain = SD35.model()

    def doubled(args: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        found = more["original_block"](args)
        return {**found, "img": 2 * found["img"]}

    for one in (patched, plain):
        one.set_model_patch_replace(doubled, "dit", "double_block", 1)
    assert torch.equal(sample(patched, SD35, SIZE, text_of(SD35)), sample(plain, SD35, SIZE, text_of(SD35)))


def test_an_area_in_time_gets_the_masks_of_its_frames() -> None:
    """Frames 4 and 5 of six: the masks of the others are nothing to it, its own in another order are."""
    model = WAN.model()
    each = torch.zeros(6, 128, 128)
    for frame in range(6):
        each[frame, :, frame * 20 : frame * 20 + 40] = 1

    def run(given: torch.Tensor) -> torch.Tensor:
        clone = chain.install(model, prompt_regions.PromptRegion(WAN.words(5, 20), RegionMask(given)))
        return sample(clone, WAN, SIZE, text_of(WAN), frames=6, steps=1, area=(2, 16, 16, 4, 0, 0), strength=1.0)

    whole = run(each)
    others = each.clone()
    others[:4] = each[:4].flip(0)
    assert torch.equal(run(others), whole)
    swapped = each.clone()
    swapped[4:] = each[4:].flip(0)
    assert not torch.allclose(run(swapped), whole)


def test_a_reference_of_the_same_address_is_another_reference() -> None:
    """What is kept of the shown part of one that is gone, by the rule's key, must not serve for the next."""
    keys: set[Any] = set()
    for _ in range(50):
        region = ReferenceRegion(torch.zeros(1, 4, 4, 2), torch.tensor([[True, False]]))
        rule = reference_regions.rule(Row(0, 0, (0, 0, 2, 2), references=(region,)), (2, 2), (1, 1, 1), Moment(1.0))
        assert rule is not None
        keys.add(rule.key)
        del region, rule
    assert len(keys) == 50


def test_of_a_scheduled_text_the_part_inside_the_nodes_range_acts() -> None:
    early, late = {"start_percent": 0.0, "end_percent": 0.4}, {"start_percent": 0.6, "end_percent": 1.0}
    both = [[FLUX.words(5, 20), early], [FLUX.words(5, 21), late]]
    (model,) = PromptRegionNode.execute(model=FLUX.model(), text=both, mask=masks(SIZE)[0], end_percent=0.3).args
    (alone,) = PromptRegionNode.execute(model=FLUX.model(), text=both[:1], mask=masks(SIZE)[0], end_percent=0.3).args
    assert torch.equal(sample(model, FLUX, SIZE, text_of(FLUX)), sample(alone, FLUX, SIZE, text_of(FLUX)))
    with pytest.raises(ValueError, match=r"none of the region's texts acts between start_percent \(0\) and end_percent \(0.3\)"):
        PromptRegionNode.execute(model=FLUX.model(), text=both[1:], mask=masks(SIZE)[0], end_percent=0.3)
