"""The table of families, `docs/families.md`: written by a whole run of tests/unit/attention/test_transformers.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .tiny_transformers import TINIES

FILE = Path(__file__).resolve().parents[2] / "docs" / "families.md"

PROPERTIES = {
    "test_regions_equal_a_dense_mask": "Prompt Region = dense mask",
    "test_a_batch_with_cfg_and_a_mask_for_each_picture": "batch with CFG",
    "test_references_are_seen_by_all_cells": "with references",
    "test_masked_attention_equals_the_formula": "Masked Attention = formula",
    "test_word_maps_equal_the_dense_softmax_and_change_nothing": "Attention Map = softmax",
    "test_where_no_region_acts_the_model_is_untouched_to_the_bit": "untouched to the bit",
    "test_another_packs_override_still_serves": "beside another's override",
    "test_half_precision_is_finite": "fp16 and bf16",
    "test_the_change_lies_in_the_region": "change in its place",
}
"""Test functions and the column that each of them fills."""

HEADER = """# Families of transformers

What the tests have shown of each family, on tiny models of random weights that are ComfyUI's own classes, in its own sampler. A run of
`tests/unit/attention/test_transformers.py` writes this table. A file of each family, HiDream's 17 billion numbers left out, also goes
through the stock loader and samples two steps through each node in a running server (`tests/live/test_stock_loader.py`); those whose
widths ComfyUI takes for granted have the published ones, in 8 bits.

- **Prompt Region = dense mask**: two overlapping regions, odd sizes, four settings; equal to a softmax with a dense mask that the test
  writes out, to 1e-5 of the largest value.
- **batch with CFG**: a mask for each picture of a batch (of a video: for each frame), the negative as long as the prompt, and longer.
- **with references**: reference latents behind or before the picture. "-": the family has none in ComfyUI, or none that is read.
- **Masked Attention = formula**: `paper`, `renormalised` and words alone, against the formula.
- **Attention Map = softmax**: the words' shares in every layer, to 1e-6; the picture beside the probe is the model's own to the bit.
- **untouched to the bit**: strength 0, outside of the part of the sampling, after a patched run; five runs alike.
- **beside another's override**: an `optimized_attention_override` of another pack, set before and after ours, still serves.
- **fp16 and bf16**: finite. **change in its place**: other words in a region change its own cells most.

"""


class Table:
    """What was found: of a family and a test function whether all of its cases passed."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], bool] = {}

    def note(self, item: Any, report: Any) -> None:
        """Takes a test's result, if it is of a family."""
        tiny = getattr(getattr(item, "callspec", None), "params", {}).get("tiny")
        name = getattr(item, "originalname", "")
        if report.when == "call" and tiny is not None and name in PROPERTIES:
            self.found[tiny.name, name] = self.found.get((tiny.name, name), True) and report.passed

    def write(self) -> None:
        """Writes the file if every family and test was there."""
        wanted = {(tiny.name, name) for tiny in TINIES for name in PROPERTIES if tiny.references or "references" not in name}
        if not wanted <= self.found.keys():
            return
        rows = [["family", *PROPERTIES.values()], ["---"] * (1 + len(PROPERTIES))]
        for tiny in TINIES:
            shown = [self.found.get((tiny.name, name)) for name in PROPERTIES]
            rows.append([tiny.name, *("-" if value is None else "yes" if value else "**no**" for value in shown)])
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(HEADER + "".join(f"| {' | '.join(row)} |\n" for row in rows), "utf-8")
