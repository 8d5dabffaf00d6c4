"""Layer keys, levels and named choices, on ComfyUI's own UNets built without memory."""

from __future__ import annotations

import pytest
from maskprompt.attention import layers
from maskprompt.attention.layers import Layer

from ...support.unets import UNETS, keys, unet

SD15_LAYERS = keys("input", 1, 2, 4, 5, 7, 8) | keys("middle", 0) | keys("output", *range(3, 12))
SDXL_INNER = keys("input", 4, 5, depth=2) | keys("input", 7, 8, depth=10) | keys("middle", 0, depth=10)
SDXL_LAYERS = SDXL_INNER | keys("output", 0, 1, 2, depth=10) | keys("output", 3, 4, 5, depth=2)


@pytest.mark.parametrize(("name", "wanted"), [("SD 1.5", SD15_LAYERS), ("SD 2.1", SD15_LAYERS), ("SDXL", SDXL_LAYERS)])
def test_every_layer_is_found_once_and_in_order(name: str, wanted: set[Layer]) -> None:
    found = layers.layers_of(unet(name))
    assert set(found) == wanted
    assert len(found) == len(wanted) == (70 if name == "SDXL" else 16)
    order = {"input": 0, "middle": 1, "output": 2}
    assert list(found) == sorted(found, key=lambda layer: (order[layer[0]], *layer[1:]))


@pytest.mark.parametrize("name", UNETS)
def test_the_keys_are_those_of_the_networks_own_weights(name: str) -> None:
    """Against the names in the checkpoint's layout: `input_blocks.4.1.transformer_blocks.0.attn1...`."""
    wanted = set()
    for key in unet(name).state_dict():
        parts = key.split(".")
        if "attn1" in parts:
            block = 0 if parts[0] == "middle_block" else int(parts[1])
            wanted.add((parts[0].removesuffix("_blocks").removesuffix("_block"), block, int(parts[parts.index("transformer_blocks") + 1])))
    assert set(layers.layers_of(unet(name))) == wanted
    assert wanted == set(layers.levels_of(unet(name)))


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1"])
def test_the_papers_choice_on_sd_1_5(name: str) -> None:
    """Section 4.3: all but "the last 6 layers of the U-Net decoder"."""
    found = layers.preset("paper", layers.layers_of(unet(name)))
    assert found == keys("input", 1, 2, 4, 5, 7, 8) | keys("middle", 0) | keys("output", 3, 4, 5)


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1"])
def test_the_reference_codes_choice_on_sd_1_5(name: str) -> None:
    assert layers.preset("reference code", layers.layers_of(unet(name))) == keys("output", 7, 8, 9, 10, 11)


def test_the_choices_on_sdxl() -> None:
    """The same parts of the decoder: six ninths of its six attention blocks, and five ninths."""
    known = layers.layers_of(unet("SDXL"))
    assert layers.preset("paper", known) == SDXL_INNER | keys("output", 0, 1, depth=10)
    assert layers.preset("reference code", known) == keys("output", 3, 4, 5, depth=2)
    assert layers.preset("all", known) == SDXL_LAYERS


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'outer'.*paper, reference code, all"):
        layers.preset("outer", layers.layers_of(unet("SD 1.5")))


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1"])
def test_levels_of_sd_1_5(name: str) -> None:
    inputs = {1: 0, 2: 0, 4: 1, 5: 1, 7: 2, 8: 2}
    outputs = {3: 2, 4: 2, 5: 2, 6: 1, 7: 1, 8: 1, 9: 0, 10: 0, 11: 0}
    wanted = {("input", block, 0): level for block, level in inputs.items()} | {("output", block, 0): n for block, n in outputs.items()}
    assert layers.levels_of(unet(name)) == wanted | {("middle", 0, 0): 3}


def test_levels_of_sdxl() -> None:
    by_level: dict[int, set[Layer]] = {}
    for layer, level in layers.levels_of(unet("SDXL")).items():
        by_level.setdefault(level, set()).add(layer)
    wide = keys("input", 7, 8, depth=10) | keys("middle", 0, depth=10) | keys("output", 0, 1, 2, depth=10)
    assert by_level == {1: keys("input", 4, 5, depth=2) | keys("output", 3, 4, 5, depth=2), 2: wide}


def test_a_network_without_a_middle_is_served() -> None:
    assert unet("no middle").middle_block is None
    assert not [layer for layer in layers.layers_of(unet("no middle")) if layer[0] == "middle"]
    assert set(layers.levels_of(unet("no middle")).values()) == {1, 2}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("input 4", keys("input", 4, depth=2)),
        ("input 4, output 3.1", keys("input", 4, depth=2) | {("output", 3, 1)}),
        (" Middle  0 ,\n input 4.0,", keys("middle", 0, depth=10) | {("input", 4, 0)}),
        ("input 4.1, input 4.1", {("input", 4, 1)}),
    ],
)
def test_a_list_is_read(text: str, wanted: set[Layer]) -> None:
    assert layers.parse(text, layers.layers_of(unet("SDXL"))) == wanted


@pytest.mark.parametrize("text", ["input 3", "input", "4", "output 3.2", "decoder 1", "input 4; input 5", "input 4 5", "middle 0.10"])
def test_a_list_that_names_no_layer_is_refused_in_words(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"It has: input 4, input 5, input 7, input 8, middle 0, output 0, .*for example: input 4, output 5"
    ) as error:
        layers.parse(f"middle 0, {text}", layers.layers_of(unet("SDXL")))
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["", " , ", "\n"])
def test_an_empty_list_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"list of layers is empty.*input 1, output 11"):
        layers.parse(text, layers.layers_of(unet("SD 1.5")))


@pytest.mark.parametrize("name", ["SD 1.5", "SDXL"])
def test_every_layer_is_read_as_it_is_described(name: str) -> None:
    known = layers.layers_of(unet(name))
    for layer in known:
        assert layers.parse(layers.describe(layer), known) == {layer}
