"""MCGM's tables: how a preset is trained, what a mask's token tells, and what a set of pictures is kept by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from maskprompt.models.mcgm import mask_encoder
from maskprompt.nodes.train_mcgm import TrainMCGM

from benchmarks.cache import Kept
from benchmarks.tables import mcgm, mcgm_methods, mcgm_presets
from benchmarks.tables.mcgm_methods import Method
from benchmarks.tables.mcgm_scores import Score
from demo import judge
from demo.subjects import Subject

PICTURE = mcgm.PICTURES[3]


@pytest.fixture
def bench(tmp_path: Path) -> mcgm.Bench:
    bench = object.__new__(mcgm.Bench)
    bench.size = mcgm.Size()
    bench.kept = Kept(tmp_path, {})
    return bench


def test_the_recommended_preset_is_measured_with_the_node_s_defaults(bench: mcgm.Bench) -> None:
    options = bench.options(PICTURE, mcgm_methods.RECOMMENDED)
    defaults = {one.id: getattr(one, "default", None) for one in TrainMCGM.define_schema().inputs}
    assert (options.steps, options.weight_steps, options.batch) == (defaults["steps"], defaults["weight_steps"], defaults["batch_size"])
    assert options.attention_weight == defaults["attention_weight"]
    assert options.mask_attention_weight == defaults["mask_attention_weight"]
    assert options.background_weight == defaults["background_weight"]
    assert options.average == defaults["average"]
    assert options.variations == defaults["variations"]
    assert (options.rate, options.move, options.mode) == (None, defaults["move_subjects"], defaults["mask_tokens"])
    assert options.words == ("ball", "heart")


def test_the_paper_s_preset_is_measured_with_what_was_published(bench: mcgm.Bench) -> None:
    options = bench.options(PICTURE, mcgm_methods.AS_PUBLISHED)
    assert (options.method, options.mode, options.move, options.batch) == ("full", "paper", False, 1)
    assert (options.attention_weight, options.mask_attention_weight, options.background_weight) == (0.01, 0.3, 0.0)
    assert (options.steps, options.weight_steps, options.average) == (400, 400, 0.0)


def test_what_brings_posing_is_the_recommended_preset_with_one_thing_more(bench: mcgm.Bench) -> None:
    usual = bench.options(PICTURE, mcgm_methods.RECOMMENDED)
    changed = [bench.options(PICTURE, method.trained) for method in mcgm_methods.MORE[::2]]
    others = [replace(usual, batch=8), replace(usual, weight_steps=850), replace(usual, batch=8, weight_steps=850)]
    assert changed == [*others, replace(usual, method="full", rate=mcgm.RATE)]
    whole = bench.options(PICTURE, mcgm_methods.WHOLE)
    assert (whole.batch, whole.weight_steps, whole.method) == (8, 850, "full")
    assert bench.options(PICTURE, mcgm_methods.WITH_PRIOR) == replace(whole, prior_weight=1.0)


def test_a_token_tells_whose_mask_it_is() -> None:
    encoder = mask_encoder.fresh(8, 2)
    masks = torch.zeros(2, 64, 64)
    masks[0, :, :32] = 1
    masks[1, 20:40, 32:] = 1
    with torch.no_grad():
        assert encoder.subjects is not None
        encoder.subjects.copy_(torch.randn(2, 8))
        shape = masks.flatten(1) @ encoder.linear.weight.T + encoder.linear.bias
        one, other = encoder.subjects
        for asked in ("handle", "subject"):
            torch.testing.assert_close(mcgm.tokens_of(encoder, masks, asked), torch.stack([shape[0] + one, shape[1] + other]))
        torch.testing.assert_close(mcgm.tokens_of(encoder, masks, "nobody"), shape)
        torch.testing.assert_close(mcgm.tokens_of(encoder, masks, "mean"), shape + (one + other) / 2)


def test_a_set_of_pictures_is_kept_by_all_that_it_is_made_from(bench: mcgm.Bench) -> None:
    methods = (
        *mcgm_methods.PRESETS,
        *mcgm_methods.MORE,
        *mcgm_methods.WORDS,
        mcgm_methods.ONE,
        mcgm_methods.BASELINE,
        mcgm_methods.WITHOUT_LOSS,
    )
    pages = {bench.page(PICTURE, method, seed) for method in methods for seed in (0, 1)}
    assert len(pages) == 2 * len(methods)
    assert len({method.name for method in methods}) == len(methods)
    assert bench.page(PICTURE, mcgm_methods.SHAPED, 0) in pages  # the table mcgm paints it once for both


class Told:
    """A bench whose pictures are empty, and of which shaped masks overlap better than blank ones."""

    def __init__(self) -> None:
        self.size = mcgm.Size(seeds=2)
        self.eye = judge.load()

    def scores(self, picture: tuple[Subject, ...], method: Method, seed: int) -> list[Score]:
        overlap = 0.5 if method.masks == "shaped" else 0.1
        mixed = (0.2,) if len(picture) > 1 else ()
        return [Score((overlap,) * len(picture), (method.masks == "shaped",) * len(picture), mixed)] * 3

    def painted(self, picture: tuple[Subject, ...], method: Method, seed: int) -> torch.Tensor:
        return torch.full((3, 128, 128, 3), 0.5)


def test_every_preset_and_way_to_ask_for_a_word_has_its_figures() -> None:
    bench: Any = Told()
    figures = {figure.name: figure for figure in mcgm_presets.tables(bench)}
    for method in mcgm_methods.PRESETS:
        assert figures[f"{method.name}: overlap with the mask"].value == pytest.approx(0.5 if method.masks == "shaped" else 0.1)
        assert figures[f"{method.name}: overlap with the mask"].cases == 6 * sum(len(picture) for picture in mcgm.PICTURES)
    for trained in (mcgm_methods.WHOLE, mcgm_methods.RECOMMENDED, mcgm_methods.AS_PUBLISHED):
        assert figures[f"{trained.name}, shaped masks against blank ones: pairs won"].value == 1
    alone = sum(len(picture) == 1 for picture in mcgm.PICTURES)
    for method in mcgm_methods.WORDS:
        assert figures[f"{method.name}: overlap with the mask"].value == pytest.approx(0.1 if method.masks == "blank" else 0.5)
        there = figures[f"{method.name}: an object of its shape is there"]
        assert (there.value, there.cases) == (0, 6 * alone)
        assert figures[f"{method.name}: an object in the learned subject's two colours is there"].cases == 6 * alone
    for method in (*mcgm_methods.PRESETS[:4], *mcgm_methods.MORE):
        overlap = figures[f"4 pictures, {method.name}: overlap with the mask"]
        assert (overlap.value, overlap.cases) == (pytest.approx(0.5 if method.masks == "shaped" else 0.1), 6 * (1 + 1 + 2 + 2))
