"""File names that come through a link: ComfyUI knows nothing of them when it validates."""

from __future__ import annotations

from typing import Any

import pytest
from maskprompt.nodes.caption import NODES as CAPTION
from maskprompt.nodes.mask_controlnet import NODES as MASK_CONTROLNET
from maskprompt.nodes.mcgm import NODES as MCGM
from maskprompt.nodes.meca import NODES as MECA
from maskprompt.nodes.segment import NODES as SEGMENT

LOADERS = {
    node: name
    for node in (*SEGMENT, *MCGM, *MECA, *MASK_CONTROLNET, *CAPTION)
    for name in ("sam_name", "mcgm_name", "adapter_name", "mask_controlnet_name", "blip_name")
    if "validate_inputs" in vars(node) and any(one.id == name for one in node.define_schema().inputs)
}


def test_all_five_are_here() -> None:
    assert len(LOADERS) == 5


@pytest.mark.parametrize(("node", "name"), LOADERS.items(), ids=LOADERS.values())
def test_a_linked_name_is_not_judged_before_it_is_known(node: Any, name: str) -> None:
    assert node.validate_inputs(**{name: None}) is True
    assert node.validate_inputs(**{name: [None]} if name == "blip_name" else {name: None}) is True
    assert isinstance(node.validate_inputs(**{name: "no such file"}), str)
