"""When a patch works: shares of the sampling, by the schedule of the model that runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from maskprompt.attention import chain, reference_regions
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.masked_joint import MaskedJointAttention
from maskprompt.attention.moment import Moment
from maskprompt.attention.reference_regions import ReferenceRegion
from maskprompt.nodes.prompt_region import PromptRegionNode

from ...support.masked_sampling import confined, corner
from ...support.models import Sample
from ...support.reference_masks import SIZE, counts, latents, prompt
from ...support.reference_masks import sample as sample_references
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import masks, region, regions, sample, text_of

FLUX, QWEN, SD35 = (next(tiny for tiny in TINIES if tiny.name == name) for name in ("Flux.1", "Qwen-Image", "SD 3.5 medium"))
TRANSFORMERS = pytest.mark.parametrize("tiny", [FLUX, QWEN, SD35], ids=lambda tiny: tiny.name)


def shifted(model: Any) -> Any:
    """With ModelSamplingAuraFlow, as ComfyUI's own graph of Qwen-Image has it: half of the sampling is at 0.86, not at 0.5."""
    from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow

    return ModelSamplingAuraFlow().patch_aura(model, 6.0)[0]


def test_shares_are_levels_of_the_schedule() -> None:
    """A schedule that falls from 10 to 0, evenly, and says 9 of its beginning: the ends count as ends whatever it says."""

    def schedule(share: float) -> float:
        return 9 - 9 * share

    for sigma in (1e9, 10.0, 9.0, 0.0):
        assert Moment(sigma, schedule).within(0.0, 1.0)
    within = [sigma for sigma in range(11) if Moment(float(sigma), schedule).within(1 / 3, 2 / 3)]
    assert within == [3, 4, 5, 6]
    before = [sigma for sigma in range(11) if Moment(float(sigma), schedule).before(2 / 3)]
    assert before == [4, 5, 6, 7, 8, 9, 10]
    assert not Moment(10.0, schedule).before(0.0)
    assert all(Moment(sigma, schedule).before(1.0) for sigma in (1e-6, 1e9))
    assert not any(Moment(sigma, schedule).within(share, share) for sigma in (10.0, 9.0, 5.0) for share in (0.0, 0.25, 0.5, 1.0))


def test_a_schedule_is_asked_once_for_a_share() -> None:
    asked: list[float] = []

    def schedule(share: float) -> float:
        asked.append(share)
        return 1 - share

    moment = Moment(0.5, schedule)
    assert [moment.within(0.2, 0.7) for _ in range(3)] == [True] * 3
    assert sorted(asked) == [0.2, 0.7]


def test_without_a_schedule_only_the_whole_sampling_has_a_meaning() -> None:
    assert Moment(math.inf).within(0.0, 1.0)
    with pytest.raises(RuntimeError, match="Set them to 0 and 1"):
        Moment(0.5).within(0.2, 1.0)


@TRANSFORMERS
def test_a_node_that_changes_the_schedule_may_stand_before_ours_or_after(tiny: Tiny) -> None:
    """To the bit, for a rule and for a region that has a pass of its own in a part of its part."""
    left, _ = masks(SIZE)
    scope = chain.Scope(None, 0.2, 0.6)
    rule = MaskedJointAttention(RegionMask(left), scope=scope)
    own = region(tiny, tiny.words(5, 20), left, scope=scope, own_pass=0.4)
    for patch in (rule, own):
        before = sample(chain.install(shifted(tiny.model()), patch), tiny, SIZE, text_of(tiny), cfg=3.0, steps=6)
        after = sample(shifted(chain.install(tiny.model(), patch)), tiny, SIZE, text_of(tiny), cfg=3.0, steps=6)
        assert torch.equal(before, after)
        assert not torch.equal(before, sample(shifted(tiny.model()), tiny, SIZE, text_of(tiny), cfg=3.0, steps=6))


def test_a_references_part_of_the_sampling_too() -> None:
    pictures = latents(FLUX)[:1]
    every = torch.ones(1, counts(FLUX)[0], dtype=torch.bool)
    given = prompt(FLUX, pictures, [ReferenceRegion(pictures[0], every, None, 1.0, 0.0, 0.5)])
    before = sample_references(reference_regions.install(shifted(FLUX.model())), FLUX, given, steps=6)
    after = sample_references(shifted(reference_regions.install(FLUX.model())), FLUX, given, steps=6)
    assert torch.equal(before, after)
    assert not torch.equal(before, sample_references(shifted(FLUX.model()), FLUX, prompt(FLUX, pictures), steps=6))


def test_a_schedule_of_a_sort_that_the_model_never_had_leaves_no_step_out() -> None:
    """Levels far above 1, at which a flow model's sampling begins: a region that acts all the time acts in the first step."""
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    def wide(model: Any) -> Any:
        return ModelSamplingContinuousEDM().patch(model, "v_prediction", 120.0, 0.002)[0]

    def ours(model: Any) -> Any:
        return PromptRegionNode.execute(model=model, text=[[FLUX.words(5, 20), {}]], mask=masks(SIZE)[0]).args[0]

    one = sample(wide(ours(FLUX.model())), FLUX, SIZE, text_of(FLUX), steps=1)
    other = sample(ours(wide(FLUX.model())), FLUX, SIZE, text_of(FLUX), steps=1)
    assert torch.equal(one, other)
    assert not torch.equal(one, sample(wide(FLUX.model()), FLUX, SIZE, text_of(FLUX), steps=1))


def test_where_nothing_tells_of_the_running_model_the_schedule_is_the_one_at_the_node() -> None:
    """A call that did not come through ComfyUI's sampling; a run with further patches (a training) knows it too."""
    from comfy.patcher_extension import WrappersMP

    patched = chain.install(FLUX.model(), *regions(FLUX, SIZE))
    (whole,) = patched.get_wrappers(WrappersMP.DIFFUSION_MODEL, chain.KEY)
    schedule = patched.get_model_object("model_sampling").percent_to_sigma
    more = chain.with_patches(patched.wrappers, *regions(FLUX, SIZE))
    (further,) = more[WrappersMP.DIFFUSION_MODEL][chain.KEY]
    assert len(further.patches) == 2 * len(whole.patches)
    for one in (whole, further):
        for sigma in (schedule(0.3) - 1e-3, schedule(0.3) + 1e-3):
            assert one.moment({"sigmas": torch.tensor([sigma])}).within(0.3, 1.0) == (sigma < schedule(0.3))


def test_on_a_unet_too(model: Any, sample: Sample) -> None:
    """Zero terminal SNR moves the levels of the early steps: Masked Attention and Prompt Region's own pass follow it."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def zero_snr(model: Any) -> Any:
        return ModelSamplingDiscrete().patch(model, "eps", True)[0]

    text = [[torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(4)), {}]]

    def ours(model: Any) -> Any:
        masked = confined(model, corner(), start_percent=0.1, end_percent=0.5)
        return PromptRegionNode.execute(model=masked, text=text, mask=corner(), own_pass=0.4).args[0]

    before, after = sample(ours(zero_snr(model)), steps=6), sample(zero_snr(ours(model)), steps=6)
    assert torch.equal(before, after)
    assert not torch.equal(before, sample(zero_snr(model), steps=6))
