"""More masks or references than pictures: said once a sampling, and never where each has its picture or its frame."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from maskprompt.attention import chain, prompt_regions, reference_regions
from maskprompt.attention.grid import RegionMask
from maskprompt.attention.reference_regions import ReferenceRegion
from maskprompt.nodes.dreamcom import MaskedAttention

from ...support import adapters, reference_masks
from ...support.meca import adapter, applied
from ...support.models import Sample
from ...support.tiny_transformers import TINIES, Tiny
from ...support.transformer_texts import sample as painted
from ...support.transformer_texts import text_of

__all__ = ["adapter"]  # the fixture
NAMES = ("Flux.1", "Qwen-Image", "Wan text to video", "SD 3")
FLUX, QWEN, WAN, SD3 = (next(tiny for tiny in TINIES if tiny.name == name) for name in NAMES)
SIZE = (8, 12)


def several(count: int) -> torch.Tensor:
    """Masks [count, H, W], each of another part of the picture."""
    masks = torch.zeros(count, 64, 96)
    for number in range(count):
        masks[number, :, number * 24 : (number + 1) * 24] = 1
    return masks


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "at one node for" in record.getMessage()]


@pytest.mark.parametrize("tiny", [FLUX, QWEN, SD3], ids=lambda tiny: tiny.name)
@pytest.mark.parametrize(("count", "batch"), [(1, 1), (2, 1), (3, 2), (2, 2), (2, 3)])
def test_masks_on_a_transformer(tiny: Tiny, count: int, batch: int, caplog: pytest.LogCaptureFixture) -> None:
    region = prompt_regions.PromptRegion(tiny.words(5, 20), RegionMask(several(count)), options=tiny.beside(tiny.words(5, 20)))
    with caplog.at_level(logging.WARNING):
        painted(chain.install(tiny.model(), region), tiny, SIZE, text_of(tiny), batch, steps=2)
    assert len(said(caplog)) == (count > batch), "once, not at every step"
    if count > batch:
        assert f"{count} masks at one node for {'1 picture' if batch == 1 else f'{batch} pictures'}" in said(caplog)[0]


def test_a_videos_masks_are_its_frames(caplog: pytest.LogCaptureFixture) -> None:
    region = prompt_regions.PromptRegion(WAN.words(5, 20), RegionMask(several(3)))
    with caplog.at_level(logging.WARNING):
        painted(chain.install(WAN.model(), region), WAN, SIZE, text_of(WAN), steps=1)
    assert said(caplog) == []


@pytest.mark.parametrize("batch", [1, 2])
def test_masks_on_a_unet(model: Any, sample: Sample, batch: int, caplog: pytest.LogCaptureFixture) -> None:
    patched = MaskedAttention.execute(model, several(2), True, "paper", "all").args[0]
    with caplog.at_level(logging.WARNING):
        sample(patched, SIZE, batch)
    assert len(said(caplog)) == (batch == 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_references(batch: int, caplog: pytest.LogCaptureFixture) -> None:
    pictures = FLUX.latent((6, 8), 3, seed=30)
    said_of = ReferenceRegion(pictures, torch.ones(3, 12, dtype=torch.bool), RegionMask(torch.ones(1, 72, 88)))
    prompt = reference_masks.prompt(FLUX, [pictures], [said_of])
    with caplog.at_level(logging.WARNING):
        reference_masks.sample(reference_regions.install(FLUX.model()), FLUX, prompt, batch)
    assert len(said(caplog)) == (batch == 1)
    assert all("3 reference pictures at one node for 1 picture:" in one for one in said(caplog))


@pytest.mark.parametrize("batch", [1, 3])
def test_image_prompts(model: Any, sample: Sample, adapter: Any, batch: int, caplog: pytest.LogCaptureFixture) -> None:
    patched = applied(model, adapter, output=adapters.encoded(3))
    with caplog.at_level(logging.WARNING):
        sample(patched, SIZE, batch)
    assert len(said(caplog)) == (batch == 1)
    assert all("3 reference pictures at one node for 1 picture:" in one for one in said(caplog))
