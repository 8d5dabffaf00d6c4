"""This pack beside ComfyUI's own nodes in running ComfyUI: whichever stands first, the same picture."""

from __future__ import annotations

import numpy as np
import pytest

from demo.server import Server

from . import beside_core
from .beside_core import MODELS, Model

PARTS = 5
ACT = 3
"""How many of core's nodes act beside ours at least in each part of them: fewer would say that the graphs try nothing."""
PAINTED = [np.full((2, 2, 3), value, np.uint8) for value in (0, 20, 40, 60)]
PLAIN, OURS, CORES, BOTH = PAINTED
REFUSED = "node sample (KSampler) failed with RuntimeError: not here. Bypass that node, or MaskPrompt's."


@pytest.mark.parametrize(
    ("alone", "before", "after", "kind"),
    [
        (CORES, BOTH, BOTH, "same"),
        (CORES, REFUSED, REFUSED, "words"),
        (PLAIN, OURS, OURS, "idle"),
        ("an error", "an error", "an error", "fails"),
        (CORES, BOTH, OURS, "the order matters"),
        (CORES, "an error", "an error", "an error before ours"),
        (CORES, REFUSED, "an error", "an error after ours"),
        (CORES, REFUSED, BOTH, "refused in one order alone"),
        (CORES, CORES, CORES, "ours is lost"),
        (CORES, OURS, OURS, "lost beside ours"),
        (PLAIN, BOTH, BOTH, "acts beside ours alone"),
    ],
)
def test_what_counts_as_good(alone: beside_core.Answer, before: beside_core.Answer, after: beside_core.Answer, kind: str) -> None:
    assert beside_core.judged("", "UNet", PLAIN, OURS, alone, before, after).kind == kind
    assert (kind in beside_core.GOOD) == (kind in ("same", "words", "idle", "fails"))
    compiled = beside_core.judged(beside_core.COMPILES, "UNet", PLAIN, OURS, alone, before, after).kind
    assert compiled == ("uncompiled" if kind in ("idle", "lost beside ours") else kind)


def test_rounding_alone_is_no_difference() -> None:
    rounded = PLAIN + np.uint8(1)
    assert beside_core.judged("", "UNet", PLAIN, OURS, rounded, OURS, OURS).kind == "idle"
    assert beside_core.judged("", "UNet", PLAIN, OURS, CORES, BOTH, BOTH - np.uint8(1)).kind == "same"
    assert beside_core.judged("", "UNet", PLAIN, OURS, CORES, BOTH, BOTH - np.uint8(2)).kind == "the order matters"


@pytest.mark.parametrize("model", MODELS)
def test_a_cache_and_another_schedule(server: Server, model: Model) -> None:
    outcomes = beside_core.tried(server, model, ["EasyCache", "ModelSamplingAuraFlow"])
    assert [outcome.kind for outcome in outcomes] == ["same", "same"]


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("model", MODELS)
def test_every_node_that_changes_a_model(server: Server, model: Model, part: int) -> None:
    """Tries a part of them, but for the one that compiles for minutes (`tests/unit/attention/test_compiled.py` has it)."""
    names = [name for name in beside_core.Graphs(server.object_info()).names if name != beside_core.COMPILES]
    outcomes = beside_core.tried(server, model, names[part::PARTS])
    assert [outcome for outcome in outcomes if outcome.kind not in beside_core.GOOD] == []
    assert sum(outcome.kind == "same" for outcome in outcomes) >= ACT
