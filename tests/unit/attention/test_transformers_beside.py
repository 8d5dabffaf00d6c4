"""Regions on transformers beside what else stands in a graph: areas, context windows, core's attention masks, other packs' wrappers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from maskprompt.attention import chain, joint, joint_probe, prompt_regions
from maskprompt.attention.grid import RegionMask

from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import close, families, masks, region, regions, sample, text_of


def plain(tiny: Tiny) -> tuple[torch.Tensor, dict[str, Any]]:
    """A text of five words that nobody filled up, as FLUX.2 dev's encoder gives it."""
    return tiny.words(5, 20), {}


def filled_behind(tiny: Tiny) -> tuple[torch.Tensor, dict[str, Any]]:
    """A text that was filled up behind its words, with a mask that says so, as klein's encoder gives it."""
    mask = torch.zeros(1, 512, dtype=torch.int64)
    mask[:, :5] = 1
    return torch.cat([tiny.words(5, 20), tiny.words(507, 21)], 1), {"attention_mask": mask}


FORMS = {"plain": plain, "filled behind": filled_behind}
FLUX_2 = next(tiny for tiny in TINIES if tiny.name == "Flux.2")
FLUX = next(tiny for tiny in TINIES if tiny.name == "Flux.1")
Z_IMAGE = next(tiny for tiny in TINIES if tiny.name == "Z-Image")
QWEN = next(tiny for tiny in TINIES if tiny.name == "Qwen-Image")
WAN = next(tiny for tiny in TINIES if tiny.name == "Wan text to video")
ANIMA = next(tiny for tiny in TINIES if tiny.name == "Anima")


def everywhere(tiny: Tiny) -> prompt_regions.PromptRegion:
    return prompt_regions.PromptRegion(tiny.words(5, 20), RegionMask(torch.ones(1, 128, 128)))


@families
def test_heads_one_after_the_other_give_what_all_of_them_give(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large call's heads go in shares, a small one's all at once: the same picture, in a batch with CFG and pictures' own masks.

    An odd number of heads goes at once.
    """
    size, model = (9, 11), tiny.model()
    left, lower = masks(size)
    own = region(tiny, tiny.words(5, 20), torch.cat([left, lower]))
    patched = chain.install(model, own, *regions(tiny, size, strength=(0.5, 1.0)))
    given: list[int] = []

    def counted(func: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(heads)
        return func(q, k, v, heads, *args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = counted
    monkeypatch.setattr(joint, "LEAST_ROWS", {"cpu": 1 << 30})
    at_once = sample(patched, tiny, size, text_of(tiny), 2, 3.0, tiny.words(7, 90), steps=1)
    most = max(given)
    monkeypatch.setattr(joint, "LEAST_ROWS", {"cpu": 1})
    in_shares = sample(patched, tiny, size, text_of(tiny), 2, 3.0, tiny.words(7, 90), steps=1)
    assert min(given) == (most if most % joint.MOST_SHARES else most // joint.MOST_SHARES)
    torch.testing.assert_close(in_shares, at_once, atol=1e-6 * float(at_once.abs().max()), rtol=0)


def test_in_an_area_the_regions_part_inside_it_acts() -> None:
    """A left region over an area in the left half is there everywhere; over one in the right half nowhere."""
    model, size = FLUX.model(), (16, 16)
    left = prompt_regions.PromptRegion(FLUX.words(5, 20), RegionMask(masks(size)[0]))
    here = {"area": (16, 8, 0, 0), "strength": 1.0}
    there = {"area": (16, 8, 0, 8), "strength": 1.0}
    patched = chain.install(model, left)
    whole = chain.install(model, everywhere(FLUX))
    close(sample(patched, FLUX, size, text_of(FLUX), **here), sample(whole, FLUX, size, text_of(FLUX), **here))
    close(sample(patched, FLUX, size, text_of(FLUX), **there), sample(model, FLUX, size, text_of(FLUX), **there))


def sampled_with_a_mask_for_each_frame(
    model: Any, each: torch.Tensor, noise: torch.Tensor, positive: list[Any], **options: Any
) -> torch.Tensor:
    """A step of these prompts with a region that has a mask [F, H, W] for each frame; `options` are the sampling's transformer options."""
    import comfy.sample

    clone = chain.install(model, prompt_regions.PromptRegion(WAN.words(5, 20), RegionMask(each)))
    clone.model_options["transformer_options"].update(options)
    return comfy.sample.sample(
        clone, noise, 1, 1.0, "euler", "simple", positive, positive, torch.zeros_like(noise), seed=3, disable_pbar=True
    )  # fmt: skip


def test_masks_follow_context_windows_in_time() -> None:
    """A mask for each of six frames, shown two frames at a time: as if each window had been given its own masks."""
    from comfy.context_windows import IndexListContextWindow

    model = WAN.model()
    each = torch.zeros(6, 128, 128)
    for frame in range(6):
        each[frame, :, frame * 20 : frame * 20 + 40] = 1
    noise = WAN.latent((16, 16), frames=2)
    positive = [[text_of(WAN), {}]]
    shown = sampled_with_a_mask_for_each_frame(
        model, each, noise, positive, context_window=IndexListContextWindow([3, 4], dim=2, total_frames=6)
    )  # fmt: skip
    assert torch.equal(shown, sampled_with_a_mask_for_each_frame(model, each[[3, 4]], noise, positive))
    assert not torch.allclose(shown, sampled_with_a_mask_for_each_frame(model, each[[0, 1]], noise, positive))


@families
def test_a_regions_text_of_another_encoder_is_refused_in_words(tiny: Tiny) -> None:
    wide = region(tiny, torch.randn(1, 5, tiny.text + 8), torch.ones(1, 64, 64))
    with pytest.raises(
        ValueError, match=rf"another text encoder than the prompt \({tiny.text + 8} numbers for each word.* prompt has {tiny.text}"
    ):
        sample(chain.install(tiny.model(), wide), tiny, (8, 8), text_of(tiny), steps=1)


def test_an_attention_mask_of_cores_own_is_refused_in_words() -> None:
    model, size = FLUX.model(), (8, 8)
    patched = chain.install(model, *regions(FLUX, size))
    whole = torch.ones(1, 23, 23)
    with pytest.raises(ValueError, match="cannot be joined with Prompt Region"):
        sample(patched, FLUX, size, text_of(FLUX), attention_mask=whole, attention_mask_img_shape=(4, 4))


def test_an_override_that_pushes_ours_out_while_sampling_is_noticed() -> None:
    """Set inside the model, where it cannot be wrapped: the region would be lost in silence."""
    patched = chain.install(FLUX.model(), *regions(FLUX, (8, 8)))
    forward = patched.get_model_object("diffusion_model.forward_orig")

    def pushing(*args: Any, transformer_options: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        other = {**transformer_options, "optimized_attention_override": lambda func, *given, **more: func(*given, **more)}
        return forward(*args, transformer_options=other, **kwargs)

    patched.add_object_patch("diffusion_model.forward_orig", pushing)
    with pytest.raises(RuntimeError, match="never came by MaskPrompt"):
        sample(patched, FLUX, (8, 8), text_of(FLUX))


def test_a_mask_of_another_shape_is_refused_in_words() -> None:
    wide = prompt_regions.PromptRegion(FLUX.words(5, 20), RegionMask(torch.ones(1, 64, 256)))
    with pytest.raises(ValueError, match="their shapes differ"):
        sample(chain.install(FLUX.model(), wide), FLUX, (16, 16), text_of(FLUX))


def test_animas_texts_go_through_its_own_adapter() -> None:
    """The region's text with its T5 ids is what the model makes of the prompt with the same text and ids."""
    model, size = ANIMA.model(), (8, 8)
    ids: dict[str, Any] = {"t5xxl_ids": torch.arange(6), "t5xxl_weights": torch.linspace(0.5, 1.0, 6)}
    words = ANIMA.words(4, 50)
    region = prompt_regions.PromptRegion(words, RegionMask(torch.ones(1, 64, 64)), replaces=True, options=ids)
    result = sample(chain.install(model, region), ANIMA, size, text_of(ANIMA))
    close(result, sample(model, ANIMA, size, words, **ids))


@pytest.mark.parametrize("tiny", [WAN, FLUX, FLUX_2, QWEN], ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_replaced_everywhere_is_the_regions_prompt(tiny: Tiny, form: str) -> None:
    """With `replaces` and a full mask the region's text is the only one that the cells read, as the model reads it alone."""
    text, options = FORMS[form](tiny)
    region = prompt_regions.PromptRegion(text, RegionMask(torch.ones(1, 64, 64)), replaces=True, options=options)
    size = (8, 8)
    wanted = sample(tiny.model(), tiny, size, text, **options)
    close(sample(chain.install(tiny.model(), region), tiny, size, text_of(tiny)), wanted)


@pytest.mark.parametrize("tiny", [QWEN, Z_IMAGE], ids=lambda tiny: tiny.name)
def test_in_a_pass_of_its_own_the_prompts_mask_is_gone_with_the_prompt(tiny: Tiny) -> None:
    """It is of the prompt's length; the region's text is shorter, and all of it is read."""
    text, options = filled_behind(tiny)
    own = tiny.words(5, 30)
    region = prompt_regions.PromptRegion(own, RegionMask(torch.ones(1, 64, 64)), replaces=True, own_pass=1.0)
    result = sample(chain.install(tiny.model(), region), tiny, (8, 8), text, **options)
    close(result, sample(tiny.model(), tiny, (8, 8), own))


def test_cores_mask_of_the_picture_beside_references_is_refused_before_it_is_cut() -> None:
    """It covers words and cells alone; an index beyond its edge ends a GPU's process."""
    mask = torch.zeros(1, 1, 20, 20)
    for given in (None, mask, torch.zeros(20), torch.zeros(1, 20), torch.zeros(1, 1, 1, 20)):
        joint._check_mask({"mask": given}, 20, 20)
    for given in (mask, torch.zeros(20), torch.zeros(1, 1, 20, 26), torch.zeros(20, 26)):
        with pytest.raises(RuntimeError, match="strength_type multiply"):
            joint._check_mask({"mask": given}, 26, 26)


def test_one_frame_in_time_has_its_own_mask() -> None:
    each = torch.zeros(6, 128, 128)
    for frame in range(6):
        each[frame, :, frame * 20 : frame * 20 + 40] = 1
    mask = RegionMask(each)
    row = chain.Row(0, 0, (0, 0, 16, 16), ((4,), 6))
    _, cells = prompt_regions.place(mask, row, (16, 16), (1, 8, 8))
    _, wanted = prompt_regions.place(mask, chain.Row(0, 4, (0, 0, 16, 16)), (16, 16), (1, 8, 8))
    assert torch.equal(cells, wanted)
    (found,), _ = joint_probe.over_frames([row], 1, torch.zeros(1, 64, 2))
    assert found.image == 4


def test_masks_follow_areas_in_time_that_run_in_one_batch() -> None:
    """Two prompts, each for a half of four frames: each half is as if its prompt ran alone."""
    model = WAN.model()
    each = torch.zeros(4, 128, 128)
    for frame in range(4):
        each[frame, :, frame * 32 : frame * 32 + 32] = 1
    noise = WAN.latent((16, 16), frames=4)
    halves = [
        [WAN.words(7, seed), {"area": ("percentage", 0.5, 1.0, 1.0, start, 0.0, 0.0), "strength": 1.0, "set_area_to_bounds": False}]
        for seed, start in ((10, 0.0), (11, 0.5))
    ]
    both, first, second = (sampled_with_a_mask_for_each_frame(model, each, noise, prompts) for prompts in (halves, halves[:1], halves[1:]))
    close(both[:, :, :2], first[:, :, :2])
    close(both[:, :, 2:], second[:, :, 2:])
