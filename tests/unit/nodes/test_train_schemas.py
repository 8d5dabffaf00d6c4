"""The Train nodes' inputs are made from the methods' options, and stay what saved graphs know: names, order, limits, words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from maskprompt.nodes.train_dreamcom import TrainDreamCom
from maskprompt.nodes.train_mask_controlnet import TrainMaskControlNet
from maskprompt.nodes.train_mcgm import TrainMCGM
from maskprompt.nodes.train_meca import TrainMECA
from maskprompt.training.engine.options import described
from maskprompt.training.mcgm.options import PRESETS, Options, with_preset

from demo.pack import ROOT

KNOWN: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "train_schemas.json").read_text("utf-8"))
"""As they were before options stood once."""
ADDED = {
    "MaskPromptTrainMCGM": ["preset", "variations"],
    "MaskPromptTrainMECA": ["visibility"],
    "MaskPromptTrainMaskControlNet": ["pairs", "references"],
}
"""Inputs that came later: the last ones, so that a saved graph's values stay in their places, with defaults that change nothing."""


@pytest.mark.parametrize("node", [TrainDreamCom, TrainMCGM, TrainMECA, TrainMaskControlNet])
def test_saved_graphs_find_the_inputs_that_they_know(node: Any) -> None:
    name = node.GET_SCHEMA().node_id
    found, known = ({part: inputs for part, inputs in all_of.items() if part != "hidden"} for all_of in (node.INPUT_TYPES(), KNOWN[name]))
    found = json.loads(json.dumps(found))
    added = ADDED.get(name, [])
    last = list(found["optional"])[-len(added) :] if added else []
    assert last == added
    for one in added:
        del found["optional"][one]
    assert json.dumps(found) == json.dumps(known)  # in order


def test_the_recommended_preset_is_the_defaults() -> None:
    usual = Options(("fox",))
    assert with_preset(usual, "recommended") == with_preset(usual, "widgets") == usual


def test_a_preset_leaves_what_a_card_holds() -> None:
    own = Options(("fox",), method="full", rank=3, batch=2, size=768, seed=4, rate=1e-3, checkpointing=False)
    paper = with_preset(own, "paper")
    for name in ("method", "rank", "batch", "size", "seed", "rate", "checkpointing", "words"):
        assert getattr(paper, name) == getattr(own, name)
    assert (paper.attention_weight, paper.mask_attention_weight, paper.background_weight, paper.move) == (0.01, 0.3, 0.0, False)
    assert (paper.steps, paper.weight_steps, paper.handle_rate, paper.mode) == (400, 400, 5e-4, "paper")
    with pytest.raises(ValueError, match=r"preset is 'ours'\. What would do: widgets, recommended, paper"):
        with_preset(own, "ours")


def test_presets_name_real_options() -> None:
    fields = {*described(Options), "masks", "mode", "handle_rate"}
    assert all(preset.keys() <= fields for preset in PRESETS.values())
