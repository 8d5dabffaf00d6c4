"""Chains of this pack's nodes in any order, with any settings: a batch with a mask for each picture equals each picture by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from maskprompt.nodes.dreamcom import MaskedAttention
from maskprompt.nodes.prompt_region import EVERYWHERE, OUTSIDE, PromptRegionNode

from ...support.meca import adapter, applied
from ...support.tiny_transformers import Tiny
from ...support.transformer_texts import families

__all__ = ["adapter"]  # a fixture
pytestmark = pytest.mark.thorough
WIDTH = 128
"""Of the UNet's text."""
Step = Callable[[Any, int | None], Any]
"""Puts a node behind a MODEL, with the masks of all pictures (None) or with that of one of them."""
Words = Callable[[int, int], list[Any]]
"""So many words, from a seed, as a CONDITIONING."""


def drawn_masks(draw: random.Random, count: int, height: int, width: int) -> torch.Tensor:
    """Masks [count, height, width] of one or two boxes."""
    masks = torch.zeros(count, height, width)
    for mask in masks:
        for _ in range(draw.randint(1, 2)):
            top, left = draw.randrange(height - 8), draw.randrange(width - 8)
            mask[top : top + draw.randint(16, height), left : left + draw.randint(16, width)] = 1
    return masks


def drawn_steps(
    draw: random.Random, kinds: list[str], counts: list[int], pixels: tuple[int, int], words: Words, adapter: Any
) -> list[Step]:
    """One to four nodes, each with one mask or as many as there are pictures."""
    return [drawn_step(draw, draw.choice(kinds), draw.choice(counts), pixels, words, adapter) for _ in range(draw.randint(1, 4))]


def drawn_step(draw: random.Random, kind: str, count: int, pixels: tuple[int, int], words: Words, adapter: Any) -> Step:
    """A node of a kind ("region", "image" or "masked") with settings drawn at random and `count` masks."""
    scale = draw.choice([1, 1, 2])
    masks = drawn_masks(draw, count, pixels[0] * scale, pixels[1] * scale)
    part: dict[str, Any] = {"start_percent": draw.choice([0.0, 0.0, 0.4]), "end_percent": draw.choice([1.0, 1.0, 0.6])}
    half = {"apply_to": draw.choice(["positive", "negative", "both"])}
    strength = draw.choice([1.0, 0.5, 1.5])

    def chosen(picture: int | None) -> torch.Tensor:
        return masks if picture is None or count == 1 else masks[picture : picture + 1]

    if kind == "region":
        text = words(draw.randint(1, 9), draw.randrange(1000))
        asked = {
            "strength": strength, "base": draw.choice([EVERYWHERE, OUTSIDE]), "apart": draw.choice([0.0, 0.5, 1.0]),
            "own_pass": draw.choice([-1.0, 0.0, 0.5, 1.0]), **part, **half,
        }  # fmt: skip
        return lambda model, picture: PromptRegionNode.execute(model, text, chosen(picture), **asked).args[0]
    if kind == "image":
        mode = draw.choice(["region", "query", "global"])
        return lambda model, picture: applied(model, adapter, chosen(picture), strength, mode, **part)
    confined = {
        "cross_attention": draw.choice([True, False]), "self_attention": draw.choice(["paper", "renormalised", "off"]),
        "layers": draw.choice(["paper", "all", "first third", "last third"]), **part, **half,
    }  # fmt: skip
    return lambda model, picture: MaskedAttention.execute(model, chosen(picture), **confined).args[0]


def check(base: Any, steps: list[Step], noise: torch.Tensor, positive: list[Any], negative: list[Any], cfg: float) -> None:
    """Sample all pictures together, twice, and each by itself."""
    import comfy.sample

    def painted(picture: int | None) -> torch.Tensor:
        model = base
        for step in steps:
            model = step(model, picture)
        given = noise if picture is None else noise[picture : picture + 1]
        return comfy.sample.sample(
            model, given, 2, cfg, "euler", "simple", positive, negative, torch.zeros_like(given), seed=3, disable_pbar=True
        )  # fmt: skip

    together = painted(None)
    assert torch.isfinite(together).all()
    assert torch.equal(together, painted(None))
    scale = float(together.abs().max())
    for picture in range(len(noise)):
        torch.testing.assert_close(together[picture : picture + 1] / scale, painted(picture) / scale, atol=2e-5, rtol=0)


@families
@pytest.mark.parametrize("seed", range(3))
def test_transformers(tiny: Tiny, seed: int) -> None:
    draw = random.Random(f"{tiny.name} {seed}")
    step = 2 if tiny.name.startswith("Z-Image") else 1  # core's Z-Image takes no odd sizes
    size = step * draw.randint(3, 7), step * draw.randint(4, 8)
    batch = draw.randint(1, 3)

    def words(count: int, number: int) -> list[Any]:
        text = tiny.words(count, number)
        return [[text, {**tiny.options, **tiny.beside(text)}]]

    counts = [1] if tiny.frames and tiny.frames > 1 else [1, batch]  # of a video several masks are of its frames
    steps = drawn_steps(draw, ["region", "region", "masked"], counts, (size[0] * 8, size[1] * 8), words, None)
    texts = words(draw.randint(3, 9), 10), words(draw.randint(3, 9), 90)
    check(tiny.model(), steps, tiny.latent(size, batch), *texts, draw.choice([1.0, 3.0]))


@pytest.mark.parametrize("seed", range(20))
def test_a_unet(model: Any, adapter: Any, seed: int) -> None:
    draw = random.Random(seed)
    size = draw.randint(7, 18), draw.randint(7, 18)
    batch = draw.randint(1, 3)

    def words(count: int, number: int) -> list[Any]:
        return [[torch.randn(1, 77 * draw.choice([1, 1, 2]), WIDTH, generator=torch.Generator().manual_seed(number)), {}]]

    steps = drawn_steps(draw, ["region", "image", "masked"], [1, batch], (size[0] * 8, size[1] * 8), words, adapter)
    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))
    check(model, steps, noise, words(77, 10), words(77, 90), draw.choice([1.0, 3.0]))
