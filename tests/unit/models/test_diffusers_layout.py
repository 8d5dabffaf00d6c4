"""A control network's layout: every weight has its place in `diffusers`' ControlNetModel, which computes the same with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from maskprompt.models.mask_controlnet import diffusers_layout
from maskprompt.models.mask_controlnet.diffusers_layout import Shape
from maskprompt.models.mask_controlnet.network import LatentControlNet, weights_of

from demo import registration, tiny_model

from ...support.control_networks import SMALL, TINY, random_network
from ...support.unets import KOALA, SD15, SD21, SDXL, SSD1B

registration.register()


def unet_config(unet: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI finds out about a UNet by its weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_detection import model_config_from_unet

    state = UNetModel(**unet, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init).state_dict()
    found = model_config_from_unet({f"unet.{name}": value for name, value in state.items()}, "unet.")
    assert found is not None
    return found.unet_config


def witness(shape: Shape) -> Any:
    """`diffusers`' network of this configuration, without memory."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    with init_empty_weights():
        return ControlNetModel.from_config(diffusers_layout.config_of(shape))


def sizes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def check(shape: Shape) -> None:
    """That the weights map one to one onto those of `diffusers`, and configuration and names lead back."""
    import comfy.ops

    ours = LatentControlNet(shape, torch.float32, "meta", comfy.ops.disable_weight_init).state_dict()
    given = diffusers_layout.to_diffusers(ours, shape)
    assert len(given) == len(ours)
    assert sizes(given) == sizes(witness(shape).state_dict())
    assert weights_of(shape) == sum(value.numel() for value in given.values())
    assert diffusers_layout.shape_of_config(diffusers_layout.config_of(shape)) == shape
    back = diffusers_layout.from_diffusers(given, shape)
    assert back.keys() == ours.keys()
    assert all(back[name] is ours[name] for name in ours)


@pytest.mark.parametrize(
    ("unet", "channels", "heads"),
    [
        (SD15, 4, {"num_heads": 8}),
        (SD15, 9, {"num_heads": 8}),
        (SD21, 4, {"num_head_channels": 64, "attn_precision": torch.float32}),
        (SDXL, 4, {"num_head_channels": 64, "num_classes": "sequential", "adm_in_channels": 2816}),
        (tiny_model.UNET, 9, {"num_head_channels": 16}),
    ],
    ids=["SD 1.5", "SD 1.5 inpainting", "SD 2.1", "SDXL", "tiny"],
)
def test_every_weight_of_every_base_has_its_place(unet: dict[str, Any], channels: int, heads: dict[str, Any]) -> None:
    """Also for an inpainting UNet, whose control network is the same."""
    found = unet_config({**unet, "in_channels": channels})
    assert found["in_channels"] == channels
    shape = diffusers_layout.shape_of(found)
    common = ("model_channels", "num_res_blocks", "channel_mult", "transformer_depth", "transformer_depth_middle", "context_dim")
    assert shape == {
        **{name: list(unet[name]) if isinstance(unet[name], tuple) else unet[name] for name in common},
        "use_linear_in_transformer": unet["use_linear_in_transformer"], **heads,
    }  # fmt: skip
    check(shape)


@st.composite
def shapes(draw: Any) -> Shape:
    levels = draw(st.integers(1, 3))
    count = draw(st.integers(1, 2))
    depths = [draw(st.integers(0, 3)) for _ in range(levels)]
    multiples = [1, *(draw(st.integers(1, 3)) for _ in range(levels - 1))]
    return {
        "model_channels": 32 * draw(st.integers(1, 2)), "num_res_blocks": [count] * levels, "channel_mult": multiples,
        "transformer_depth": [depth for depth in depths for _ in range(count)],
        "transformer_depth_middle": depths[-1] or draw(st.integers(1, 3)), "context_dim": draw(st.integers(1, 50)),
        "use_linear_in_transformer": draw(st.booleans()),
        **draw(st.sampled_from([{"num_heads": 4}, {"num_head_channels": 8}])),
        **draw(st.sampled_from([{}, {"num_classes": "sequential", "adm_in_channels": 6 * 256 + 7}])),
        **draw(st.sampled_from([{}, {"attn_precision": torch.float32}])),
    }  # fmt: skip


@given(shape=shapes())
@settings(max_examples=10, deadline=None)
def test_so_has_every_weight_of_any_shape(shape: Shape) -> None:
    check(shape)
    assert diffusers_layout.shape_of(shape) == shape


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(8, 8), (13, 6)])
def test_it_computes_what_diffusers_computes(name: str, size: tuple[int, int]) -> None:
    """The same random weights in both, two pictures at different noise levels: hint's embedding, every level, the middle."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep
    from diffusers.models.controlnets.controlnet import ControlNetModel

    shape = SMALL[name]
    ours = random_network(shape)
    made: Any = ControlNetModel.from_config(diffusers_layout.config_of(shape))
    theirs = made.eval()
    theirs.load_state_dict(diffusers_layout.to_diffusers(ours.state_dict(), shape), strict=True)
    generator = torch.Generator().manual_seed(1)
    x, hint = torch.randn(2, 2, 4, *size, generator=generator)
    context = torch.randn(2, 7, shape["context_dim"], generator=generator)
    steps = torch.tensor([901.0, 12.0])
    more: dict[str, Any] = {}
    adm = None
    if "adm_in_channels" in shape:
        pooled = torch.randn(2, 16, generator=generator)
        numbers = torch.randint(0, 2000, (2, 6), generator=generator)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}
        adm = torch.cat([pooled, Timestep(256)(numbers.flatten().float()).reshape(2, -1)], 1)
    with torch.no_grad():
        found = ours(x, hint, steps, context, adm)
        down, middle = theirs(x, steps, encoder_hidden_states=context, controlnet_cond=hint, return_dict=False, **more)
        embedded = ours.input_hint_block(hint, None, None)
        torch.testing.assert_close(embedded, theirs.controlnet_cond_embedding(hint), atol=1e-4, rtol=1e-4)
    assert len(found["output"]) == len(down) == len(shape["num_res_blocks"]) * (shape["num_res_blocks"][0] + 1)
    for one, other in zip([*found["output"], *found["middle"]], [*down, middle], strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_model": "flux", "in_channels": 16}, "needs a UNet with cross-attention: SD 1.5, SD 2.1 or SDXL"),
        ({}, "needs a UNet with cross-attention"),
        ({**SDXL, "context_dim": None}, "needs a UNet with cross-attention"),
        (SSD1B, "some were left out, as in SSD-1B or KOALA"),
        (KOALA, "some were left out"),
        ({**SDXL, "transformer_depth": [0, 0, 2, 1, 10, 10]}, "some were left out"),
        ({**SDXL, "num_res_blocks": [2, 1, 2], "transformer_depth": [0, 0, 2, 10, 10]}, "some were left out"),
    ],
)
def test_other_models_are_refused_in_words(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusers_layout.shape_of(config)


def test_other_ways_to_write_a_configuration_are_read() -> None:
    """A single depth for all levels, heads under their newer name, heads as a list that is the same everywhere."""
    wanted = SMALL["like SD 1.5"]
    config = diffusers_layout.config_of(wanted)
    assert config["attention_head_dim"] == 4
    for change in (
        {"transformer_layers_per_block": 1}, {"num_attention_heads": 4, "attention_head_dim": 9}, {"attention_head_dim": [4, 4, 4]},
        {"upcast_attention": None}, {"addition_embed_type": None, "projection_class_embeddings_input_dim": None},
    ):  # fmt: skip
        assert diffusers_layout.shape_of_config({**config, **change}) == wanted
    with pytest.raises(KeyError, match="heads"):
        diffusers_layout.shape_of_config({**config, "attention_head_dim": [4, 4, 2]})


@pytest.mark.parametrize("change", [{"conditioning_channels": 3}, {"conditioning_embedding_out_channels": [16, 32, 96, 256]}])
def test_a_pictures_control_network_is_told_from_a_latents(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"its hint is a picture.*Load ControlNet Model"):
        diffusers_layout.shape_of_config({**diffusers_layout.config_of(TINY), **change})
